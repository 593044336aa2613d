"""Convert YAML and JSON data to typed values, with messages that name the place and a fix."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from eugen_nerf.errors import UserError

T = TypeVar("T")


def suggestion(word: str, known: Iterable[str]) -> str:
    """A sentence that suggests the nearest known word, or lists all of them if none is near."""
    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(words)}."


def convert(annotation: Any, value: Any, where: str) -> Any:
    """Convert a value from YAML to the type of an annotation.

    Dataclasses are filled from mappings, whose keys must all be fields. YAML reads 1e-3 as text, so text that spells a
    number is accepted as a number.

    Raises:
        UserError: the value does not fit; the message begins with `where`.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin is typing.Annotated:
        return convert(arguments[0], value, where)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{where}: must be one of {', '.join(map(str, arguments))}, not {value!r}.")
        return value
    if origin in (list, tuple, collections.abc.Sequence):
        return _convert_sequence(origin, arguments, value, where)
    if origin is dict or annotation is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: must be a mapping of names to values, not {value!r}.")
        kinds = arguments or (Any, Any)
        return {
            convert(kinds[0], key, where): convert(kinds[1], entry, f"{where}.{key}") for key, entry in value.items()
        }
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return from_mapping(annotation, value, where)
    return _convert_scalar(annotation, value, where)


def from_mapping(cls: type[T], value: Any, where: str) -> T:
    """Create a dataclass from a mapping of its fields.

    Raises:
        UserError: not a mapping, an unknown key, a missing field, or a value that does not fit.
    """
    assert dataclasses.is_dataclass(cls)
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be a mapping of names to values, not {value!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in value:
        if key not in fields:
            raise UserError(f"{where}: unknown key {key!r}. {suggestion(str(key), fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise UserError(f"{where}: the key {name!r} is missing.")
    hints = typing.get_type_hints(cls)
    return cls(**{key: convert(hints[key], entry, f"{where}.{key}") for key, entry in value.items()})


def _convert_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    choices = [argument for argument in arguments if argument is not type(None)]
    # A value that already has one of the types needs no conversion: 3 stays an int in a union with str.
    exact = [choice for choice in choices if isinstance(choice, type) and type(value) is choice]
    for number, choice in enumerate(exact or choices, start=1):
        try:
            return convert(choice, value, where)
        except UserError:
            if number == len(exact or choices):
                raise
    raise UserError(f"{where}: takes no value.")


def _convert_sequence(origin: Any, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{where}: must be a list, not {value!r}.")
    fixed = origin is tuple and arguments and Ellipsis not in arguments
    if fixed and len(arguments) != len(value):
        raise UserError(f"{where}: must have {len(arguments)} entries, not {len(value)}.")
    kinds = list(arguments) if fixed else [arguments[0] if arguments else Any] * len(value)
    entries = [convert(kind, entry, f"{where}[{i}]") for i, (kind, entry) in enumerate(zip(kinds, value, strict=True))]
    return tuple(entries) if origin is tuple else entries


def _convert_scalar(annotation: Any, value: Any, where: str) -> Any:
    if annotation is bool and isinstance(value, bool):
        return value
    if annotation is Path and isinstance(value, str):
        return Path(value)
    if annotation in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if annotation is float and not math.isnan(number):
            return number
        if annotation is int and number.is_integer():
            return int(number)
    if annotation not in (int, float, bool) and isinstance(annotation, type) and isinstance(value, annotation):
        return value
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    raise UserError(f"{where}: must be {kinds.get(annotation, annotation)}, not {value!r}.")
