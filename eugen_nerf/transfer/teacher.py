"""Trained runs whose dense layers can be turned into EUGen layers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nerfstudio.models.mipnerf import MipNerfModel
from nerfstudio.models.nerfacto import NerfactoModel
from nerfstudio.models.vanilla_nerf import NeRFModel
from torch import Tensor

from eugen_nerf.errors import UserError
from eugen_nerf.plugin.checkpoints import MODEL, check_weights, latest_checkpoint, read_checkpoint, undistributed
from eugen_nerf.plugin.model import EugenModel
from eugen_nerf.plugin.run_config import read_config
from eugen_nerf.plugin.runs import build_pipeline

LPIPS = f"{MODEL}lpips."

# Models that can be teachers, and the method of their students.
METHODS: dict[type, str] = {
    EugenModel: "eugen-nerf",
    NeRFModel: "eugen-vanilla-nerf",
    MipNerfModel: "eugen-mipnerf",
    NerfactoModel: "eugen-nerfacto",
}


@dataclass(frozen=True)
class Teacher:
    """A trained run, loaded for evaluation."""

    config: Any  # nerfstudio's TrainerConfig, a copy that may be changed
    pipeline: Any
    state: dict[str, Tensor]  # of the pipeline, without the LPIPS weights
    checkpoint: dict[str, Any]  # the rest of the file: step, scalers
    method: str  # of the student

    @property
    def phi(self) -> str:
        """Activation of the field's hidden layers, by its name in `eugen_nerf.layers.ACTIVATIONS`."""
        model = self.config.pipeline.model
        return str(model.field.phi) if model._target is EugenModel else "relu"


def load_teacher(load_config: Path, device: torch.device) -> Teacher:
    """Load a run of `eugen-nerf-mlp`, `vanilla-nerf`, `mipnerf` or `nerfacto`. The run is never written to.

    Raises:
        UserError: the run does not exist, is of another method or uses tiny-cuda-nn's networks, or its checkpoint does
            not match its configuration or its scene.
    """
    config = read_config(load_config)
    method = _student_method(config, load_config)
    file = latest_checkpoint(load_config, config)
    checkpoint = read_checkpoint(file)
    weights = undistributed(checkpoint.pop("pipeline"))
    state = {name: value for name, value in weights.items() if not name.startswith(LPIPS)}
    if any("tcnn_encoding" in name for name in state) or _asks_for_tcnn(config, state):
        raise UserError(
            f"{file}: its networks were trained by tiny-cuda-nn, which keeps all their weights in one opaque "
            "array. Train the teacher with --pipeline.model.implementation torch (eugen-nerf-mlp: "
            "--pipeline.model.field.implementation native)."
        )
    if hasattr(config.pipeline.model, "implementation"):
        config.pipeline.model.implementation = "torch"
    pipeline = build_pipeline(config, load_config, device)
    _check_scene(load_config.parent, pipeline)
    check_weights(pipeline.model, state, file, str(load_config))
    pipeline.load_pipeline(dict(state), checkpoint["step"])
    pipeline.eval()
    return Teacher(config, pipeline, state, checkpoint, method)


def _student_method(config: Any, path: Path) -> str:
    model = config.pipeline.model
    method = METHODS.get(model._target)
    if model._target is EugenModel and model.field.network != "mlp":
        method = None
    if method is None:
        raise UserError(
            f"{path}: is a run of {config.method_name}. Teachers are runs of eugen-nerf-mlp, and of nerfstudio's "
            "vanilla-nerf, mipnerf and nerfacto (the last with --pipeline.model.implementation torch)."
        )
    return method


def _asks_for_tcnn(config: Any, state: dict[str, Tensor]) -> bool:
    """Whether the networks are tiny-cuda-nn's. Nerfacto's have no layers of their own then, whatever their keys."""
    model = config.pipeline.model
    if model._target is EugenModel:
        return bool(model.field.implementation == "tcnn")
    return model._target is NerfactoModel and not any(name.endswith("mlp_head.layers.0.weight") for name in state)


def _check_scene(run: Path, pipeline: Any) -> None:
    """Raise UserError if the scene is not in the world in which the run was trained."""
    file = run / "dataparser_transforms.json"
    outputs = getattr(pipeline.datamanager, "train_dataparser_outputs", None)
    if outputs is None or not file.is_file():
        return
    try:
        written = json.loads(file.read_text("utf8"))
        transform = torch.tensor(written["transform"], dtype=torch.float32)
        scale = float(written["scale"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"{file}: cannot be read as what ns-train writes there ({type(error).__name__}: {error}). Restore it, or "
            "remove it if you know that the scene is still as it was when the run was trained."
        ) from error
    same = transform.shape == outputs.dataparser_transform.shape and torch.allclose(
        transform, outputs.dataparser_transform.cpu().float(), atol=1e-4
    )
    if not same or not abs(scale / float(outputs.dataparser_scale) - 1) <= 1e-4:
        raise UserError(
            f"{pipeline.datamanager.config.data or pipeline.datamanager.config.dataparser.data}: is not the scene "
            f"that {run} was trained on, or has changed since: its camera poses differ from those in {file.name}."
        )
