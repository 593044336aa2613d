"""Entry points that nerfstudio loads at the start of every ns-* command.

nerfstudio imports the plugins of all methods at once and stops at the first one that raises. A part of this package
that cannot be imported (a broken optional package, another version of nerfstudio) must therefore not raise: its entry
point becomes an `Unavailable`, for which nerfstudio prints one warning before it continues without it.
"""

from __future__ import annotations

import importlib
from typing import Any


class Unavailable:
    """Placeholder for a method or dataparser that could not be loaded; its text gives the reason."""

    def __init__(self, name: str, reason: BaseException) -> None:
        self.name = name
        self.reason = reason

    def __repr__(self) -> str:
        return f"{self.name} of eugen-nerf, which cannot be loaded ({type(self.reason).__name__}: {self.reason})"


def _load(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(f"eugen_nerf.plugin.{module}"), name)
    except Exception as error:
        return Unavailable(name.replace("_", "-"), error)


def __getattr__(attribute: str) -> Any:
    """Resolve ``methods__NAME`` and ``dataparsers__NAME`` when an entry point asks for them."""
    module, separator, name = attribute.partition("__")
    if separator and module in ("methods", "dataparsers"):
        return _load(module, name)
    raise AttributeError(attribute)
