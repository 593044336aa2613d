"""Read the config.yml of a run of any nerfstudio method."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from eugen_nerf.errors import UserError


def read_config(path: Path) -> Any:
    """Read nerfstudio's configuration from a config.yml, as nerfstudio does: the file can run code.

    Raises:
        UserError: there is no such file, or it is not such a configuration.
    """
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder. Give the config.yml of a run, as written by ns-train.")
    if not os.path.isfile(path):
        raise UserError(f"{path}: does not exist. Give the config.yml of a run, as written by ns-train.")
    try:
        config = yaml.load(path.read_text("utf8"), Loader=yaml.Loader)
    except Exception as error:  # loading calls what the file names: a Windows path, a class with changed arguments
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: is not a configuration written by ns-train ({type(error).__name__}: {reason})."
        ) from error
    if not hasattr(config, "method_name") or not hasattr(getattr(config, "pipeline", None), "datamanager"):
        raise UserError(f"{path}: is not a configuration written by ns-train. Give the config.yml of a run.")
    return config


CLASS = "class"  # key under which `plain_config` keeps an object's class


def plain_config(text: str) -> dict[str, Any]:
    """The content of a config.yml as plain mappings, lists, numbers and strings. Nothing is imported or called.

    Raises:
        ValueError: the text is something else.
    """
    try:
        config = yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(config, dict) or CLASS not in config:
        raise ValueError("no configuration")
    return config


class _PlainLoader(yaml.SafeLoader):
    """Turns Python objects into plain values."""


def _plain(loader: _PlainLoader, tag: str, node: yaml.Node) -> Any:
    kind, _, name = tag.partition(":")
    if isinstance(node, yaml.MappingNode):
        return {CLASS: name.rpartition(".")[2], **loader.construct_mapping(node, deep=True)}
    if isinstance(node, yaml.SequenceNode):
        items = loader.construct_sequence(node, deep=True)
        return str(Path(*items)) if kind == "object/apply" and name.startswith("pathlib.") else items
    return name or loader.construct_scalar(node)  # type: ignore[arg-type]


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)
