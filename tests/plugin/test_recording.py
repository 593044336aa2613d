"""Which samples of a trained model are kept: visible ones, and as many from the empty space in front of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.fields.base_field import Field
from torch import Tensor, nn

from eugen_nerf.plugin.recording import random_rays, record, training_masks

SAMPLES, LENGTH = 40, 0.1
UNMASKED = SimpleNamespace(mask_filenames=None)


class Layers(Field):
    """Density by depth, the same along every ray of a camera that looks along an axis."""

    def __init__(self, density: Tensor) -> None:
        super().__init__()
        self.density = density

    def forward(self, ray_samples: Any, compute_normals: bool = False) -> dict[FieldHeadNames, Tensor]:  # type: ignore[override]
        shape = (*ray_samples.deltas.shape[:-1], 1)
        return {FieldHeadNames.DENSITY: self.density[:, None].expand(shape)}


class Model(nn.Module):
    """Samples rays and queries its field, like nerfstudio's models."""

    collider = None

    def __init__(self, density: Tensor) -> None:
        super().__init__()
        self.field = Layers(density)

    def forward(self, bundle: Any) -> None:
        starts = torch.arange(SAMPLES)[None, :, None] * LENGTH
        starts = starts.expand(len(bundle), SAMPLES, 1)
        self.field.forward(bundle.get_ray_samples(starts, starts + LENGTH))


def kept_depths(density: Tensor) -> Tensor:
    """For a field with these densities, the number of times each sample is kept, over 2,000 rays."""
    cameras = Cameras(torch.eye(4)[None, :3], fx=1e4, fy=1e4, cx=50.0, cy=50.0, width=100, height=100)
    pipeline: Any = SimpleNamespace(
        model=Model(density),
        datamanager=SimpleNamespace(train_dataset=SimpleNamespace(cameras=cameras, _dataparser_outputs=UNMASKED)),
        device="cpu",
    )
    recording = record(pipeline, ["field"], 0.2, 10**9, seed=0)
    assert recording.rays == 2000
    samples = recording.fields["field"]
    assert samples.seen == 2000 * SAMPLES
    (call,) = zip(*samples.calls, strict=True)
    depths = torch.cat([each.frustums.starts[:, 0] for each in call]) / LENGTH
    assert len(depths) == samples.kept
    return depths.round().long().bincount(minlength=SAMPLES)


def test_a_surface_is_kept_and_what_lies_behind_it_is_not() -> None:
    """Light reaches a sample through the samples in front of it, not through itself."""
    density = torch.zeros(SAMPLES)
    density[20:] = 1000.0
    kept = kept_depths(density)
    assert kept[20] == 2000
    assert not kept[21:].any()


@pytest.mark.parametrize("surface", [10, 30])
def test_as_many_samples_of_empty_space_as_of_surfaces(surface: int) -> None:
    density = torch.zeros(SAMPLES)
    density[surface:] = 1000.0
    kept = kept_depths(density)[:surface]
    assert int(kept.sum()) == pytest.approx(2000, rel=0.1)
    # Equally often everywhere.
    assert kept.double().std() < 3 * (2000 / surface) ** 0.5


def test_where_there_is_little_empty_space_all_of_it() -> None:
    density = torch.full((SAMPLES,), 0.5)
    density[0] = 0.0
    kept = kept_depths(density)
    assert (kept == 2000).all()


class Photos:
    """A dataset of two photos, of which one half of the first is masked."""

    _dataparser_outputs = SimpleNamespace(mask_filenames=["a.png", "b.png"])
    cameras = Cameras(torch.eye(4)[None, :3].repeat(2, 1, 1), fx=1e4, fy=1e4, cx=5.0, cy=5.0, width=10, height=10)

    def __len__(self) -> int:
        return 2

    def get_data(self, index: int) -> dict[str, Tensor]:
        mask = torch.ones(10, 10, 1, dtype=torch.bool)
        mask[:, :5] = index == 1
        return {"mask": mask}


def test_masked_pixels_get_no_rays() -> None:
    usable = training_masks(Photos())
    assert usable is not None
    generator = torch.Generator().manual_seed(0)
    rays = random_rays(Photos.cameras, 4000, generator, usable)
    first = rays.directions[rays.camera_indices[:, 0] == 0]
    assert (first[:, 0] > 0).all()  # the camera looks along -z, with x to the right
    assert len(rays) == pytest.approx(3000, abs=150)
    assert random_rays(Photos.cameras, 20, generator, [torch.zeros(10, 10, dtype=torch.bool)] * 2) is None


def test_photos_without_masks() -> None:
    plain: Any = Photos()
    plain._dataparser_outputs = UNMASKED
    assert training_masks(plain) is None
