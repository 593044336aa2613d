"""Trained runs whose dense layers can be turned into EUGen layers."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.models.mipnerf import MipNerfModel
from nerfstudio.models.nerfacto import NerfactoModel
from nerfstudio.models.vanilla_nerf import NeRFModel
from torch import Tensor

from eugen_nerf.errors import UserError
from eugen_nerf.plugin.compat import without_nerfstudio_lpips
from eugen_nerf.plugin.model import EugenModel

MODEL = "_model."
LPIPS = f"{MODEL}lpips."

# Models of which teachers are made, and the method that reads what becomes of them.
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
    state: dict[str, Tensor]  # of the pipeline, without the weights of LPIPS
    checkpoint: dict[str, Any]  # what else the file held: step, scalers
    method: str  # of the student


def load_teacher(load_config: Path, device: torch.device) -> Teacher:
    """Load a run of `eugen-nerf-mlp`, `vanilla-nerf`, `mipnerf` or `nerfacto`. Nothing of it is ever written to.

    Raises:
        UserError: there is no such run, it is of another method, its networks are tiny-cuda-nn's, or its checkpoint
            does not belong to its configuration or its scene.
    """
    config = _read_config(load_config)
    method = _student_method(config, load_config)
    run = load_config.parent
    folder = run / config.relative_model_dir
    steps = sorted(folder.glob("step-*.ckpt"))
    if not steps:
        raise UserError(f"{run}: holds no checkpoint ({config.relative_model_dir}/step-*.ckpt).")
    checkpoint = _read_checkpoint(steps[-1])
    state = {name: value for name, value in checkpoint.pop("pipeline").items() if not name.startswith(LPIPS)}
    if any("tcnn_encoding" in name for name in state) or _asks_for_tcnn(config, state):
        raise UserError(
            f"{steps[-1]}: its networks were trained by tiny-cuda-nn, which keeps all their weights in one opaque "
            "array. Train the teacher with --pipeline.model.implementation torch (eugen-nerf-mlp: "
            "--pipeline.model.field.implementation native)."
        )
    if hasattr(config.pipeline.model, "implementation"):
        config.pipeline.model.implementation = "torch"
    registered: Any = all_methods[config.method_name]  # as nerfstudio's eval_setup does
    config.pipeline.datamanager._target = registered.pipeline.datamanager._target
    with without_nerfstudio_lpips():
        pipeline = config.pipeline.setup(device=device, test_mode="test")
    _check_scene(run, pipeline)
    _check_layers(steps[-1], load_config, pipeline, state)
    pipeline.load_pipeline(dict(state), checkpoint["step"])
    pipeline.eval()
    return Teacher(config, pipeline, state, checkpoint, method)


def _read_config(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: does not exist. Give the config.yml of a run, as ns-train leaves it.")
    try:
        config = yaml.load(path.read_text(), Loader=yaml.Loader)
    except (yaml.YAMLError, UnicodeDecodeError, ImportError, AttributeError) as error:
        raise UserError(
            f"{path}: is no configuration that ns-train wrote ({type(error).__name__}: {error})."
        ) from error
    if not hasattr(config, "pipeline") or not hasattr(config, "method_name"):
        raise UserError(f"{path}: is no configuration that ns-train wrote.")
    return copy.deepcopy(config)


def _student_method(config: Any, path: Path) -> str:
    model = config.pipeline.model
    method = METHODS.get(model._target)
    if model._target is EugenModel and model.field.network != "mlp":
        method = None
    if method is None:
        raise UserError(
            f"{path}: is a run of {config.method_name}. Teachers are runs of eugen-nerf-mlp, and of nerfstudio's "
            "vanilla-nerf, mipnerf and nerfacto (with --pipeline.model.implementation torch)."
        )
    return method


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu")
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: cannot be read ({error}); was its training interrupted?") from error
    if not isinstance(checkpoint, dict) or not {"pipeline", "step"} <= checkpoint.keys():
        raise UserError(f"{path}: is no checkpoint of nerfstudio.")
    return checkpoint


def _asks_for_tcnn(config: Any, state: dict[str, Tensor]) -> bool:
    """A field with hash grid in one array has no table of its own, however its keys are called."""
    model = config.pipeline.model
    if model._target is EugenModel:
        return bool(model.field.implementation == "tcnn")
    return model._target is NerfactoModel and not any(name.endswith("mlp_head.layers.0.weight") for name in state)


def _check_layers(file: Path, load_config: Path, pipeline: Any, state: dict[str, Tensor]) -> None:
    """nerfstudio itself loads what fits and prints a remark on the rest."""
    expected = {f"{MODEL}{name}": value.shape for name, value in pipeline.model.state_dict().items()}
    wrong = {f"missing: {name}" for name in expected if name not in state}
    wrong |= {
        f"{name} is {list(state[name].shape)} and should be {list(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    }
    if wrong:
        raise UserError(
            f"{file}: does not belong to {load_config} and the scene it names; {'; '.join(sorted(wrong)[:5])}."
        )


def _check_scene(run: Path, pipeline: Any) -> None:
    """The scene must lie in the world that it lay in when the run was trained."""
    file = run / "dataparser_transforms.json"
    outputs = getattr(pipeline.datamanager, "train_dataparser_outputs", None)
    if outputs is None or not file.is_file():
        return
    written = json.loads(file.read_text())
    transform = torch.tensor(written["transform"])
    same = transform.shape == outputs.dataparser_transform.shape and torch.allclose(
        transform, outputs.dataparser_transform.cpu().float(), atol=1e-4
    )
    if not same or abs(written["scale"] / float(outputs.dataparser_scale) - 1) > 1e-4:
        raise UserError(
            f"{pipeline.datamanager.config.data or pipeline.datamanager.config.dataparser.data}: is another scene than "
            f"the one {run} was trained on, or has changed since: its cameras are placed differently "
            f"({file.name} of the run tells how they were)."
        )
