"""Read the config.yml of a run of any nerfstudio method."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from eugen_nerf.errors import UserError


def read_config(path: Path) -> Any:
    """Read nerfstudio's configuration from a config.yml.

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
