"""What a network costs: stored and merged parameters, multiply-adds and samples."""

from __future__ import annotations

from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.fields.base_field import Field
from torch import nn

from eugen_nerf.errors import UserError
from eugen_nerf.field import EugenField


def count(model: nn.Module, camera: Cameras) -> dict[str, Any]:
    """Sizes of a model, and its work per sample and ray while it renders one picture.

    An `EugenField` is counted after merging. For other methods the multiply-adds are those of the linear layers
    that run while the main field is evaluated, counted as they run; a field that evaluates its network outside
    of PyTorch (tiny-cuda-nn) gets None. Proposal networks, encodings and activations are not counted.
    """
    field = getattr(model, "field", None)
    if isinstance(field, EugenField):
        return {"stored_parameters": field.num_parameters(), **_merged(field), **_eugen_samples(model, camera)}
    stored = sum(parameter.numel() for parameter in model.parameters())
    return {"stored_parameters": stored, "merged_network_parameters": None, **_observed(model, camera)}


def _merged(field: EugenField) -> dict[str, int | None]:
    try:
        return {
            "merged_network_parameters": field.network_parameters(),
            "multiply_adds_per_sample": field.multiply_adds(),
        }
    except UserError:  # tiny-cuda-nn's networks are opaque
        return {"merged_network_parameters": None, "multiply_adds_per_sample": None}


@torch.no_grad()
def _eugen_samples(model: Any, camera: Cameras) -> dict[str, float]:
    bundle = camera.generate_rays(camera_indices=0, keep_shape=True).flatten()
    chunk = model.config.eval_num_rays_per_chunk
    samples = 0.0
    for start in range(0, len(bundle), chunk):
        samples += float(model(bundle[start : start + chunk])["num_samples_per_ray"].sum())
    return {"samples_per_ray": samples / len(bundle)}


@torch.no_grad()
def _observed(model: Any, camera: Cameras) -> dict[str, float | None]:
    samples = 0
    multiply_adds = 0
    depth = 0  # fields that are being evaluated now

    def enter_field(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal samples, depth
        depth += 1
        if depth == 1 and inputs and isinstance(inputs[0], RaySamples):
            samples += inputs[0].frustums.starts.numel()

    def leave_field(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    def run_linear(layer: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        nonlocal multiply_adds
        if depth and isinstance(layer, nn.Linear):
            multiply_adds += inputs[0].numel() * layer.out_features

    hooks = []
    for module in model.modules():
        if isinstance(module, Field):
            hooks += [module.register_forward_pre_hook(enter_field), module.register_forward_hook(leave_field)]
        elif isinstance(module, nn.Linear):
            hooks.append(module.register_forward_hook(run_linear))
    try:
        model.get_outputs_for_camera(camera)
    finally:
        for hook in hooks:
            hook.remove()
    rays = int(camera.height) * int(camera.width)
    return {
        "multiply_adds_per_sample": multiply_adds / samples if samples and multiply_adds else None,
        "samples_per_ray": samples / rays if samples else None,
    }
