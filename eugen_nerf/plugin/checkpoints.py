"""Checkpoints that ns-train has saved: finding and reading them, and whether their weights fit a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eugen_nerf.errors import UserError

MODEL = "_model."  # what the names of a model's weights begin with


def latest_checkpoint(load_config: Path, config: Any) -> Path:
    """The newest checkpoint beside a run's config.yml, wherever the run was trained.

    Raises:
        UserError: there is none.
    """
    steps = sorted((load_config.parent / config.relative_model_dir).glob("step-*.ckpt"))
    if not steps:
        raise UserError(f"{load_config.parent}: holds no checkpoint ({config.relative_model_dir}/step-*.ckpt).")
    return steps[-1]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What ns-train saved: pipeline, step, optimizers, schedulers, scalers.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu")
    except Exception as error:  # what is no pickle may raise anything: text is taken for its instructions
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if not isinstance(error, RuntimeError | EOFError | OSError | MemoryError):  # else torch speaks of its options
            reason = "damaged, or not written by ns-train"
        raise UserError(
            f"{path}: cannot be read ({reason}); was its training interrupted? Train again, or delete this checkpoint "
            "to use the one before, where there is one."
        ) from error
    whole = isinstance(checkpoint, dict) and "step" in checkpoint
    if not whole or not isinstance(checkpoint.get("pipeline"), Mapping):
        raise UserError(f"{path}: is no checkpoint of nerfstudio.")
    return checkpoint


def check_weights(model: nn.Module, state: Mapping[str, Tensor], file: Path, owner: str) -> None:
    """Load a checkpoint's weights into a model; nerfstudio itself loads what fits and says nothing about the rest.

    Args:
        model: its weights are lost.
        state: `pipeline` of the checkpoint.
        file: the checkpoint, for the message.
        owner: what the model was built from, for the message.

    Raises:
        UserError: weights are missing, or have other sizes.
    """
    own = {name.removeprefix(MODEL).removeprefix("module."): v for name, v in state.items() if name.startswith(MODEL)}
    wrong = [f"missing: {name}" for name in sorted(model.state_dict().keys() - own.keys())]
    if not wrong:
        try:
            model.load_state_dict(own, strict=False)
        except RuntimeError as error:
            wrong = [
                f"{name} is {list(own[name].shape)} and should be {list(value.shape)}"
                for name, value in model.state_dict().items()
                if own[name].shape != value.shape
            ] or [str(error)]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"{file}: does not belong to {owner} and the scene it is for; {'; '.join(wrong[:3])}{more}. Was it trained "
            "with another method, other options or another scene?"
        )
