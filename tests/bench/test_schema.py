"""Values from YAML are converted to the annotated types, or give a helpful message."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from eugen_nerf.bench.schema import convert, from_mapping, suggestion
from eugen_nerf.errors import UserError


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    inner: Inner
    names: tuple[str, ...] = ()
    limits: dict[str, float] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (float, 3, 3.0),
        (float, "1e-3", 0.001),
        (int, 3.0, 3),
        (int, "7", 7),
        (bool, False, False),
        (str, "off", "off"),
        (Path, "a/b", Path("a/b")),
        (int | None, None, None),
        (int | str, 3, 3),
        (int | str, "3", "3"),
        (float | None, 2, 2.0),
        (Literal["cpu", "cuda"], "cpu", "cpu"),
        (tuple[int, ...], [1, 2.0], (1, 2)),
        (tuple[float, float], [1, 2], (1.0, 2.0)),
        (list[str], ["a"], ["a"]),
        (dict[str, float], {"near": 2}, {"near": 2.0}),
        (Any, {"x": [1]}, {"x": [1]}),
        (Outer, {"inner": {"size": 2}, "names": ["a"]}, Outer(Inner(2), ("a",))),
    ],
)
def test_converts(annotation: Any, value: Any, expected: Any) -> None:
    converted = convert(annotation, value, "here")
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (int, 2.5, "here: must be a whole number, not 2.5"),
        (int, True, "here: must be a whole number, not True"),
        (float, "fast", "here: must be a number, not 'fast'"),
        (bool, 1, "here: must be true or false, not 1"),
        (str, 3, "here: must be text, not 3"),
        (Literal["cpu", "cuda"], "tpu", "here: must be one of cpu, cuda, not 'tpu'"),
        (tuple[float, float], [1], "here: must have 2 entries, not 1"),
        (list[int], 3, "here: must be a list, not 3"),
        (list[int], [1, "x"], r"here\[1\]: must be a whole number"),
        (dict[str, float], [1], "here: must be a mapping"),
        (Inner, 3, "here: must be a mapping"),
        (Outer, {"inner": {"size": "big"}}, "here.inner.size: must be a whole number"),
        (Outer, {}, "here: the key 'inner' is missing"),
        (Outer, {"inner": {"size": 1}, "nmaes": []}, "here: unknown key 'nmaes'. Did you mean 'names'?"),
        (int | None, "x", "here: must be a whole number"),
    ],
)
def test_refuses(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        convert(annotation, value, "here")


def test_suggestion_names_the_nearest_word_or_all() -> None:
    assert suggestion("iteration", ["iterations", "seconds"]) == "Did you mean 'iterations'?"
    assert suggestion("zzz", ["b", "a"]) == "Known are: a, b."


def test_from_mapping_fills_defaults() -> None:
    assert from_mapping(Outer, {"inner": {"size": 1}}, "here") == Outer(Inner(1), (), {})
