"""Find and read checkpoints of ns-train, and check that their weights fit a model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from eugen_nerf.errors import UserError
from eugen_nerf.plugin.run_config import CLASS, plain_config

MODEL = "_model."  # prefix of the names of a model's weights
# The options that decide which function of which world a model's weights are. Many of them change no weight's size.
MEANING = (
    "pipeline.model.field",
    "pipeline.model.eugen",
    "pipeline.model.contraction",
    "pipeline.model.collider_params",
    "pipeline.model.disable_scene_contraction",
    "pipeline.model.base_res",
    "pipeline.model.max_res",
    "pipeline.model.proposal_net_args_list",
    "pipeline.model.average_init_density",
    "pipeline.datamanager.dataparser",
)
# Options below those that training may change without harm.
HARMLESS = {"implementation", "trainable_projections", "candidate_features", "downscale_factor", "eval_interval"}


def latest_checkpoint(load_config: Path, config: Any) -> Path:
    """The newest checkpoint next to a run's config.yml, regardless of where the run was trained.

    Raises:
        UserError: there is none.
    """
    steps = sorted((load_config.parent / config.relative_model_dir).glob("step-*.ckpt"))
    if not steps:
        raise UserError(f"{load_config.parent}: holds no checkpoint ({config.relative_model_dir}/step-*.ckpt).")
    return steps[-1]


def chosen_checkpoint(load_dir: Path | None, load_step: int | None, load_checkpoint: Path | None) -> Path | None:
    """The checkpoint that ns-train's options of these names select; None to train from scratch.

    Raises:
        UserError: there is no such file.
    """
    if load_dir is None:
        if load_checkpoint is not None and not os.path.isfile(load_checkpoint):
            raise UserError(f"{load_checkpoint}: does not exist; load-checkpoint takes a file step-*.ckpt.")
        return load_checkpoint
    files = sorted(load_dir.glob("step-*.ckpt"))
    if not files:
        raise UserError(
            f"{load_dir}: holds no checkpoint (step-*.ckpt); load-dir takes the folder nerfstudio_models of a run."
        )
    if load_step is None:
        return files[-1]
    wanted = load_dir / f"step-{load_step:09d}.ckpt"
    if wanted not in files:
        there = ", ".join(str(int(file.stem.removeprefix("step-"))) for file in files)
        raise UserError(f"{wanted}: does not exist; {load_dir} has checkpoints of load-step {there}.")
    return wanted


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


def trained_config(file: Path) -> dict[str, Any] | None:
    """The configuration that a checkpoint was trained with, see `plain_config`; None if it was moved out of its run."""
    for place in (file.absolute(), file.resolve()):
        try:
            return plain_config((place.parent.parent / "config.yml").read_text("utf8"))
        except (OSError, ValueError):
            pass
    return None


def options_changed_since(file: Path, config: Any) -> list[str]:
    """Warnings about options that give a checkpoint's weights another meaning than they were trained for.

    Args:
        file: the checkpoint; see `trained_config`.
        config: nerfstudio's configuration that is to continue with its weights.
    """
    trained = trained_config(file)
    if trained is None:
        return []
    now = plain_config(yaml.dump(config))
    return [
        f"{path} is {new}, but {file.name} was trained with {old}."
        for name in MEANING
        for path, old, new in _differences(name, option(trained, name), option(now, name))
    ]


def option(config: Mapping[str, Any], path: str) -> Any:
    """A value of a plain configuration, by its dotted path; None if there is none."""
    value: Any = config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping) and old.get(CLASS) == new.get(CLASS):
        for name in new:
            # Another version of this package may have had other options.
            if name in old and name not in HARMLESS and name != "_target":
                yield from _differences(f"{path}.{name}", old[name], new[name])
    elif old != new:
        yield path, *(value.get(CLASS, value) if isinstance(value, Mapping) else value for value in (old, new))
