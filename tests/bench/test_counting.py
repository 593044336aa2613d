"""Work per sample and per ray, against counts by hand."""

from __future__ import annotations

from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.fields.base_field import Field
from torch import Tensor, nn

from eugen_nerf.bench.counting import count
from eugen_nerf.layers import EUGen, LayerStack
from eugen_nerf.plugin.runs import load_run


class HandField(Field):
    """3 -> 5 -> 4 for every sample, and a linear layer that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(100, 100)

    def forward(self, ray_samples: RaySamples, compute_normals: bool = False) -> Any:
        return self.second(self.first(ray_samples.frustums.get_positions()))


class HandModel(nn.Module):
    """Seven samples per ray through the field, and a proposal network that is not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.field = HandField()
        self.proposal = nn.Linear(3, 9)

    def get_outputs_for_camera(self, camera: Cameras) -> dict[str, Tensor]:
        rays = camera.generate_rays(camera_indices=0, keep_shape=True).flatten()
        edges = torch.linspace(1, 2, 8).expand(len(rays), 8)[..., None]
        samples = rays.get_ray_samples(edges[:, :-1], edges[:, 1:])
        self.proposal(rays.origins)
        return {"rgb": self.field.forward(samples)[..., :3].mean(1).reshape(4, 6, 3)}


def test_other_methods_are_counted_as_they_run() -> None:
    camera = Cameras(torch.eye(4)[None, :3], 10.0, 10.0, 3.0, 2.0, width=6, height=4)
    model = HandModel()
    assert count(model, camera) == {
        "stored_parameters": 20 + 24 + 10100 + 36,
        "merged_network_parameters": 20 + 24,
        "multiply_adds_per_sample": 15 + 20,
        "samples_per_ray": 7,
    }
    assert not any(module._forward_hooks for module in model.modules())
    assert "forward" not in vars(model.field)


def test_a_large_frame_is_counted_on_a_smaller_one() -> None:
    class Sized(HandModel):
        def get_outputs_for_camera(self, camera: Cameras) -> dict[str, Tensor]:
            self.size = int(camera.height), int(camera.width)
            rays = camera.generate_rays(camera_indices=0, keep_shape=True).flatten()
            edges = torch.linspace(1, 2, 8).expand(len(rays), 8)[..., None]
            self.field.forward(rays.get_ray_samples(edges[:, :-1], edges[:, 1:]))
            return {}

    camera = Cameras(torch.eye(4)[None, :3], 400.0, 400.0, 200.0, 100.0, width=400, height=200)
    model = Sized()
    assert count(model, camera)["samples_per_ray"] == 7
    assert model.size == (40, 80)
    assert int(camera.height) == 200


def test_converted_layers_are_counted_after_merging() -> None:
    """3 -> 5 is a stack of an EUGen layer with 2 features and a linear layer; 5 -> 4 is a single EUGen layer."""
    camera = Cameras(torch.eye(4)[None, :3], 10.0, 10.0, 3.0, 2.0, width=6, height=4)
    model: Any = HandModel()
    model.field.first = LayerStack([EUGen(3, 9, 2, norm=False), nn.Linear(9, 5)], [None, None])
    model.field.second = EUGen(5, 4, 2, norm=False)
    counted = count(model, camera)
    assert counted["multiply_adds_per_sample"] == (3 * 2 + 2 * 5) + (5 * 2 + 2 * 4)
    assert counted["merged_network_parameters"] == counted["multiply_adds_per_sample"] + 5 + 4
    assert counted["samples_per_ray"] == 7


def test_a_model_without_countable_layers_gets_no_number() -> None:
    class Opaque(nn.Module):
        def get_outputs_for_camera(self, camera: Cameras) -> dict[str, Tensor]:
            return {"rgb": torch.zeros(4, 6, 3)}

    camera = Cameras(torch.eye(4)[None, :3], 10.0, 10.0, 3.0, 2.0, width=6, height=4)
    counted = count(Opaque(), camera)
    assert counted["multiply_adds_per_sample"] is None
    assert counted["merged_network_parameters"] is None
    assert counted["samples_per_ray"] is None


def test_eugen_fields_are_counted_after_merging(finished: Any) -> None:
    _, store, _, _ = finished
    values = {r.job["name"]: r.result.values for r in store.read() if r.kind == "training" and r.result.values}
    pipeline = load_run(store.folder / values["EUGen"]["load_config"])
    field = pipeline.model.field
    assert values["EUGen"]["multiply_adds_per_sample"] == field.multiply_adds()
    assert values["EUGen"]["merged_network_parameters"] == field.network_parameters()
    assert values["EUGen"]["multiply_adds_per_sample"] < values["MLP"]["multiply_adds_per_sample"]
    assert 0 < values["EUGen"]["samples_per_ray"] < 64  # the maximum, for a ray along the diagonal
