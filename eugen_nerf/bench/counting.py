"""Count what a network costs: stored and merged parameters, multiply-adds and samples."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.fields.base_field import Field
from torch import Tensor, nn

from eugen_nerf.errors import UserError
from eugen_nerf.field import EugenField
from eugen_nerf.layers import EUGen, LayerStack, merge_chain

OBSERVED_SIDE = 40  # pixels


def count(model: nn.Module, camera: Cameras) -> dict[str, Any]:
    """Count a model's parameters, and its work per sample and ray while it renders one image.

    An `EugenField` is counted after merging. For other methods, the parameters and multiply-adds of the layers that run
    while a field is evaluated are observed, with EUGen layers counted after merging. A field that evaluates its network
    outside of PyTorch (tiny-cuda-nn) gets None. Fields are weighted by their samples. Proposal networks, encodings and
    activations are not counted.
    """
    field = getattr(model, "field", None)
    if isinstance(field, EugenField):
        return {"stored_parameters": field.num_parameters(), **_merged(field), **_eugen_samples(model, camera)}
    stored = sum(parameter.numel() for parameter in model.parameters())
    return {"stored_parameters": stored, **_observed(model, camera)}


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
    # These methods take the same number of samples on every ray, and some need a minute for a whole frame.
    camera = copy.deepcopy(camera)
    camera.rescale_output_resolution(min(1.0, OBSERVED_SIDE / int(camera.height.max())))
    fields = [module for module in model.modules() if isinstance(module, Field)]
    stacks = [module for module in model.modules() if isinstance(module, LayerStack)]
    # A stack evaluates its layers merged, as a whole. Like merging, it refuses layers with hooks.
    inside = {module for stack in stacks for module in stack.modules() if module is not stack}
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | EUGen | LayerStack) and m not in inside]
    work = _Work({layer: _size(layer) for layer in layers})
    hooks = [layer.register_forward_hook(work.run_layer) for layer in layers]
    for field in fields:
        # nerfstudio's models call forward directly, which bypasses a module's hooks.
        field.forward = work.watched(field.forward)  # type: ignore[method-assign]
    try:
        model.get_outputs_for_camera(camera)
    finally:
        for hook in hooks:
            hook.remove()
        for field in fields:
            del field.forward
    rays = int(camera.height) * int(camera.width)
    return {
        "merged_network_parameters": sum(work.parameters.values()) or None,
        "multiply_adds_per_sample": work.multiply_adds / work.samples if work.samples and work.multiply_adds else None,
        "samples_per_ray": work.samples / rays if work.samples else None,
    }


def _size(layer: nn.Linear | EUGen | LayerStack) -> tuple[int, int]:
    """Parameters, and multiply-adds per input row."""
    if isinstance(layer, LayerStack):
        return layer.num_parameters(), layer.multiply_adds()
    if isinstance(layer, nn.Linear):
        return sum(parameter.numel() for parameter in layer.parameters()), layer.weight.numel()
    merged = merge_chain([layer])
    return merged.num_parameters, merged.multiply_adds


class _Work:
    """Counts the samples that enter a field, and the parameters and multiply-adds of the layers that run for them."""

    def __init__(self, sizes: dict[nn.Module, tuple[int, int]]) -> None:
        self._sizes = sizes
        self.samples = 0
        self.multiply_adds = 0
        self.parameters: dict[nn.Module, int] = {}
        self._inside = 0  # a field may evaluate another one

    def watched(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def counting(ray_samples: RaySamples, *arguments: Any, **options: Any) -> Any:
            if not self._inside:
                self.samples += ray_samples.frustums.starts.numel()
            self._inside += 1
            try:
                return forward(ray_samples, *arguments, **options)
            finally:
                self._inside -= 1

        return counting

    def run_layer(self, layer: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        if not self._inside:
            return
        rows = inputs[0].numel() // inputs[0].shape[-1]
        self.parameters[layer], each = self._sizes[layer]
        self.multiply_adds += rows * each
