"""The ns-train command that continues the training of a transferred run."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.configs.method_configs import all_methods


def training_command(config: Any, run: Path) -> list[str]:
    """The ns-train command with all model and dataparser options that differ from their defaults."""
    registered: Any = all_methods[config.method_name]
    default = registered.pipeline.model
    manager = config.pipeline.datamanager
    data = getattr(manager, "data", None) or getattr(manager.dataparser, "data", None)
    words = ["ns-train", config.method_name, "--data", str(data)]
    words += ["--load-dir", str(run / config.relative_model_dir)]
    words += _different(config.pipeline.model, default, "--pipeline.model.")
    # The weights are only valid in the world that the dataparser makes of the scene.
    parser = manager.dataparser
    readers = [
        [name, *_different(parser, known, "--", {"data"})]
        for name, known in all_dataparsers.items()
        if type(known) is type(parser)
    ]
    reader = min(readers, key=len, default=[])
    same = type(parser) is type(registered.pipeline.datamanager.dataparser)
    return words if same and len(reader) == 1 else words + reader


def _different(options: Any, default: Any, prefix: str, known: Container[str] = ()) -> Iterator[str]:
    """Command-line words that set `options` starting from `default`, without the names in `known`."""
    for name, value in vars(options).items():
        if name in known:
            continue
        flag = f"{prefix}{name.replace('_', '-')}"
        other = getattr(default, name, None)
        if hasattr(value, "__dataclass_fields__"):
            yield from _different(value, other, f"{flag}.")
        elif (value is None or isinstance(value, bool | int | float | str | Path)) and value != other:
            yield from (flag, str(value))
        elif isinstance(value, tuple) and value and value != other and all(isinstance(v, str | int) for v in value):
            yield from (flag, *map(str, value))
