"""Find and read checkpoints of ns-train, and check that their weights fit a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eugen_nerf.errors import UserError

MODEL = "_model."  # prefix of the names of a model's weights


def latest_checkpoint(load_config: Path, config: Any) -> Path:
    """The newest checkpoint next to a run's config.yml, regardless of where the run was trained.

    Raises:
        UserError: there is none.
    """
    steps = sorted((load_config.parent / config.relative_model_dir).glob("step-*.ckpt"))
    if not steps:
        raise UserError(f"{load_config.parent}: holds no checkpoint ({config.relative_model_dir}/step-*.ckpt).")
    return steps[-1]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ns-train: pipeline, step, optimizers, schedulers, scalers.

    Raises:
        UserError: the file cannot be read, or is not such a checkpoint.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu")
    except Exception as error:  # any file is read as pickle opcodes, so any exception is possible
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if not isinstance(error, RuntimeError | EOFError | OSError | MemoryError):  # theirs are about torch's options
            reason = "damaged, or not written by ns-train"
        raise UserError(
            f"{path}: cannot be read ({reason}); was its training interrupted? Train again, or delete this checkpoint "
            "to use an earlier one, if there is one."
        ) from error
    whole = isinstance(checkpoint, dict) and "step" in checkpoint
    if not whole or not isinstance(checkpoint.get("pipeline"), Mapping):
        raise UserError(f"{path}: is not a nerfstudio checkpoint.")
    return checkpoint


def undistributed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A pipeline's weights with the names that they have without DistributedDataParallel, which adds "module."."""
    return {name.replace(f"{MODEL}module.", MODEL, 1): value for name, value in state.items()}


def check_weights(model: nn.Module, state: Mapping[str, Tensor], file: Path, owner: str) -> None:
    """Load a checkpoint's weights into a model and check that all of them fit.

    nerfstudio itself loads the weights that fit and silently ignores the others.

    Args:
        model: the model; its weights are overwritten.
        state: `pipeline` of the checkpoint.
        file: the checkpoint, for the message.
        owner: what the model was built from, for the message.

    Raises:
        UserError: weights are missing or have other sizes.
    """
    own = {name.removeprefix(MODEL): v for name, v in undistributed(state).items() if name.startswith(MODEL)}
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
            f"{file}: does not belong to {owner} and its scene; {'; '.join(wrong[:3])}{more}. Was it trained with "
            "another method, other options or another scene?"
        )
