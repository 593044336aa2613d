"""What the fields of a trained model are asked along rays of the training views, where it matters for pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.fields.base_field import Field
from torch import Tensor, nn

from eugen_nerf import ops
from eugen_nerf.errors import UserError
from eugen_nerf.plugin.model import EugenModel

RAYS_AT_ONCE = 1024
# From these on a sample is recorded: what adds less to a pixel is empty space, and that is hidden where less light
# reaches it. Rendering itself goes on to a smaller transmittance.
RECORDED_TRANSMITTANCE, RECORDED_WEIGHT = 1e-3, 1e-3


@dataclass
class Samples:
    """Arguments with which a field was called, for relevant samples only."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    kept: int = 0
    seen: int = 0


@dataclass(frozen=True)
class Recording:
    """Samples of each field, by the field's path in the model."""

    fields: dict[str, Samples]
    rays: int
    views: int
    share: float
    """Of all pixels of the training views."""

    def __str__(self) -> str:
        kept = sum(samples.kept for samples in self.fields.values())
        seen = sum(samples.seen for samples in self.fields.values())
        return (
            f"{self.rays:,} rays, {100 * self.share:.3g} % of the pixels of {self.views} training views; "
            f"{kept:,} of their {seen:,} samples"
        )


def random_rays(cameras: Cameras, number: int, generator: torch.Generator) -> Any:
    """Rays through random pixels of random cameras, a flat bundle of nerfstudio."""
    camera = torch.randint(len(cameras), (number,), generator=generator)
    height, width = (size.cpu()[camera, 0] for size in (cameras.height, cameras.width))
    row, column = (
        (torch.rand(number, generator=generator) * size).floor().clamp(max=size - 1) + 0.5 for size in (height, width)
    )
    coords = torch.stack([row, column], dim=-1).to(cameras.device)
    return cameras.generate_rays(camera_indices=camera[:, None].to(cameras.device), coords=coords)


@torch.no_grad()
def record(
    pipeline: Any,
    fields: list[str],
    pixels: float,
    max_samples: int,
    seed: int,
    report: Callable[[float], None] = lambda part: None,
) -> Recording:
    """Render random training pixels with the trained model and keep the samples that its pictures depend on.

    Relevant are samples that light reaches. Of these, all are kept that add to a pixel, and as many random ones of
    empty space, which must stay empty.

    Args:
        pipeline: in evaluation mode.
        fields: paths of the fields to listen to, in the model.
        pixels: share of all pixels of the training views.
        max_samples: of each field; rays stop being drawn when one has this many.
        seed: of pixels and of samples in empty space.
        report: told the part that is done.

    Raises:
        UserError: there are no such samples.
    """
    model = pipeline.model
    cameras = pipeline.datamanager.train_dataset.cameras.to(pipeline.device)
    total = int((cameras.height * cameras.width).sum())
    number = max(1, round(pixels * total))
    generator = torch.Generator().manual_seed(seed)
    recorded = {path: Samples() for path in fields}
    rays = 0
    while rays < number and all(samples.kept < max_samples for samples in recorded.values()):
        chunk = min(RAYS_AT_ONCE, number - rays)
        bundle = random_rays(cameras, chunk, generator)
        if isinstance(model, EugenModel):
            _record_ours(model, bundle, recorded[fields[0]], generator)
        else:
            with _listening(model, recorded, generator):
                model(bundle if model.collider is None else model.collider(bundle))
        rays += chunk
        most = max(samples.kept for samples in recorded.values())
        report(min(1.0, max(rays / number, most / max_samples)))
    empty = [path for path, samples in recorded.items() if samples.kept == 0]
    if empty:
        raise UserError(
            f"No sample of {rays} rays of the training views adds anything to a pixel in {', '.join(empty)}: the run "
            "shows nothing of this scene, or these are too few rays (--pixels of eugen-transfer)."
        )
    return Recording(recorded, rays, len(cameras), rays / total)


def _relevant(sigma: Tensor, lengths: Tensor, transmittance: Tensor, generator: torch.Generator) -> Tensor:
    """Which samples to keep, bool of their shape."""
    weights = transmittance * -torch.expm1(-sigma * lengths)
    adds = weights >= RECORDED_WEIGHT
    empty = ~adds & (transmittance >= RECORDED_TRANSMITTANCE)
    share = adds.sum() / empty.sum().clamp_min(1)
    lot = torch.rand(sigma.shape, generator=generator).to(sigma.device)
    return adds | (empty & (lot < share))


def _record_ours(model: EugenModel, bundle: Any, samples: Samples, generator: torch.Generator) -> None:
    renderer, field = model.renderer, model.field
    near, far = renderer.limits(bundle.origins)
    packed = ops.march(
        bundle.origins,
        bundle.directions,
        near,
        far,
        renderer.occupancy.bits,
        renderer.occupancy.resolution,
        renderer.space,
        renderer.rule,
        backend=field.backend,
    )
    unit, views = ops.sample_points(bundle.origins, bundle.directions, packed, renderer.space, backend=field.backend)
    samples.seen += unit.shape[0]
    if unit.shape[0] == 0:
        return
    sigma, _ = field.density_at(unit)
    keep = _relevant(sigma, packed.t_ends - packed.t_starts, ops.transmittance(sigma, packed), generator)
    samples.kept += int(keep.sum())
    if keep.any():
        samples.calls.append((unit[keep], views[keep]))


@contextmanager
def _listening(model: nn.Module, recorded: dict[str, Samples], generator: torch.Generator) -> Iterator[None]:
    """Notes what nerfstudio's fields are called with; its models call forward itself, past the hooks of a module."""
    fields = {path: model.get_submodule(path) for path in recorded}

    def noting(samples: Samples, forward: Callable[..., Any]) -> Callable[..., Any]:
        def called(ray_samples: Any, *arguments: Any, **options: Any) -> Any:
            outputs = forward(ray_samples, *arguments, **options)
            optical = (outputs[FieldHeadNames.DENSITY] * ray_samples.deltas)[..., 0]
            transmittance = torch.exp(-(optical.cumsum(dim=-1) - optical))
            keep = _relevant(optical, torch.ones_like(optical), transmittance, generator)
            samples.seen += keep.numel()
            samples.kept += int(keep.sum())
            if keep.any():
                samples.calls.append((ray_samples[keep],))
            return outputs

        return called

    for path, module in fields.items():
        assert isinstance(module, Field)
        module.forward = noting(recorded[path], module.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in fields.values():
            del module.forward
