"""Finished runs of nerfstudio, of any method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nerfstudio.utils.eval_utils import eval_setup

from eugen_nerf.errors import UserError
from eugen_nerf.plugin.compat import without_nerfstudio_lpips


def load_run(load_config: Path) -> Any:
    """The pipeline of a finished run, with its test split.

    Raises:
        UserError: there is no such run, or it has no checkpoint.
    """
    if not load_config.is_file():
        raise UserError(f"{load_config}: does not exist. Give the config.yml of a run, as ns-train leaves it.")
    checkpoints = list((load_config.parent / "nerfstudio_models").glob("step-*.ckpt"))
    if not checkpoints:
        raise UserError(f"{load_config.parent}: holds no checkpoint (nerfstudio_models/step-*.ckpt).")
    with without_nerfstudio_lpips():
        _, pipeline, _, _ = eval_setup(load_config, test_mode="test")
    return pipeline
