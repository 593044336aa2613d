"""Record the inputs of a trained model's fields along rays of the training views, for samples that affect images."""

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
from eugen_nerf.plugin.datamanager import SceneDataset
from eugen_nerf.plugin.model import EugenModel

RAYS_AT_ONCE = 1024
# Thresholds of recording: a sample with less weight is empty space, and an empty sample with less transmittance is
# occluded and not recorded. Rendering itself continues to a smaller transmittance.
RECORDED_TRANSMITTANCE, RECORDED_WEIGHT = 1e-3, 1e-3


@dataclass
class Samples:
    """Arguments of the calls of a field, for relevant samples only."""

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
    """Share of all pixels of the training views."""

    def __str__(self) -> str:
        kept = sum(samples.kept for samples in self.fields.values())
        seen = sum(samples.seen for samples in self.fields.values())
        return (
            f"{self.rays:,} rays, {100 * self.share:.3g} % of the pixels of {self.views} training views; "
            f"{kept:,} of their {seen:,} samples"
        )


def training_masks(dataset: Any) -> list[Tensor] | None:
    """The mask of each photo, [H, W] bool, as training sees it; None where all pixels are used."""
    if isinstance(dataset, SceneDataset):
        return [dataset.get_mask(i) for i in range(len(dataset))] if dataset.has_masks else None
    if dataset._dataparser_outputs.mask_filenames is None:
        return None
    return [dataset.get_data(i)["mask"][..., 0].bool() for i in range(len(dataset))]


def random_rays(cameras: Cameras, number: int, generator: torch.Generator, usable: list[Tensor] | None = None) -> Any:
    """Rays through random pixels of random cameras, a flat bundle of nerfstudio.

    Args:
        number: how many pixels are drawn.
        usable: masks of the cameras' photos; pixels outside of them are drawn, but get no ray.

    Returns:
        The rays; None where none of the pixels is usable.
    """
    camera = torch.randint(len(cameras), (number,), generator=generator)
    height, width = (size.cpu()[camera, 0] for size in (cameras.height, cameras.width))
    row, column = (
        (torch.rand(number, generator=generator) * size).floor().clamp(max=size - 1) + 0.5 for size in (height, width)
    )
    if usable is not None:
        places = zip(camera.tolist(), row.long().tolist(), column.long().tolist(), strict=True)
        kept = torch.tensor([bool(usable[i][y, x]) for i, y, x in places])
        if not kept.any():
            return None
        camera, row, column = camera[kept], row[kept], column[kept]
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
    """Render random training pixels with the trained model and keep the samples that its images depend on.

    Relevant samples are those that are not occluded. All of them that contribute to a pixel are kept, and as many
    random ones in empty space, which must stay empty.

    Args:
        pipeline: in evaluation mode.
        fields: paths, in the model, of the fields to record.
        pixels: share of all pixels of the training views.
        max_samples: maximum per field; no more rays are drawn once a field has this many samples.
        seed: random seed of the pixels and of the samples in empty space.
        report: called with the fraction that is done.

    Raises:
        UserError: a field has no relevant samples.
    """
    model = pipeline.model
    cameras = pipeline.datamanager.train_dataset.cameras.to(pipeline.device)
    total = int((cameras.height * cameras.width).sum())
    number = max(1, round(pixels * total))
    generator = torch.Generator().manual_seed(seed)
    usable = training_masks(pipeline.datamanager.train_dataset)
    recorded = {path: Samples() for path in fields}
    rays = 0
    while rays < number and all(samples.kept < max_samples for samples in recorded.values()):
        chunk = min(RAYS_AT_ONCE, number - rays)
        bundle = random_rays(cameras, chunk, generator, usable)
        rays += chunk
        if bundle is None:
            continue
        if isinstance(model, EugenModel):
            _record_ours(model, bundle, recorded[fields[0]], generator)
        else:
            with _listening(model, recorded, generator):
                model(bundle if model.collider is None else model.collider(bundle))
        most = max(samples.kept for samples in recorded.values())
        report(min(1.0, max(rays / number, most / max_samples)))
    empty = [path for path, samples in recorded.items() if samples.kept == 0]
    if empty:
        raise UserError(
            f"None of the samples of {rays} rays of the training views contributes to a pixel in {', '.join(empty)}: "
            "the run shows nothing of this scene, or there are too few rays (--pixel-fraction of eugen-transfer)."
        )
    return Recording(recorded, rays, len(cameras), rays / total)


def _relevant(sigma: Tensor, lengths: Tensor, transmittance: Tensor, generator: torch.Generator) -> Tensor:
    """Mask of the samples to keep, of their shape."""
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
    """Record the calls of nerfstudio's fields. Its models call forward directly, which bypasses module hooks."""
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
