"""Renderer on media whose transmittance, color and depth are known in closed form."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from eugen_nerf.field import EugenField, FieldConfig
from eugen_nerf.layers.merge import FactoredChain, factor_chain
from eugen_nerf.occupancy import OccupancyGrid
from eugen_nerf.ops import Space, StepRule, dispatch
from eugen_nerf.renderer import Renderer
from tests.pretended_gpu import needs_fake_gpu

BOX = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
COLOR = (0.9, 0.5, 0.1)


class Medium(nn.Module):
    """A field of one color whose density is a function of the world position, in place of an `EugenField`."""

    backend = "reference"

    def __init__(self, space: Space, density: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.space = space
        self.world_density = density
        self.strength = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def density_at(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        return self.strength * self.world_density(self.space.to_world(unit)), torch.empty(len(unit), 0)

    def forward(self, unit: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return self.density_at(unit)[0], torch.tensor(COLOR, dtype=unit.dtype).expand(len(unit), 3)

    def merged(self) -> Medium:
        return self

    evaluator = factored = merged


def renderer(
    density: Callable[[Tensor], Tensor],
    *,
    contracted: bool = False,
    rule: StepRule | None = None,
    near: float = 0.0,
    far: float = 100.0,
    skip_occluded: bool = False,
) -> Renderer:
    space = Space(BOX, contracted)
    medium = cast(EugenField, Medium(space, density))
    return Renderer(medium, OccupancyGrid(8), space, rule or StepRule(1 / 64), near, far, skip_occluded)


def uniform(sigma: float) -> Callable[[Tensor], Tensor]:
    return lambda positions: torch.full_like(positions[:, 0], sigma)


def along_x(heights: list[float], x: float = -3.0) -> tuple[Tensor, Tensor]:
    origins = torch.tensor([[x, 0.0, h] for h in heights], dtype=torch.float64)
    return origins, torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).expand_as(origins)


def expected_depth(sigma: float, entry: float, length: float) -> float:
    """Mean distance of the light from [entry, entry + length], given that it comes from there."""
    rest = math.exp(-sigma * length)
    return entry + 1 / sigma - length * rest / (1 - rest)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 3.0])
@pytest.mark.parametrize("mode", ["render", "render_differentiable"])
def test_a_box_of_constant_density(sigma: float, mode: str) -> None:
    """Samples tile the box from x = -1 to 1 exactly, so only the depth has a quadrature error."""
    out = getattr(renderer(uniform(sigma)), mode)(*along_x([0.0, 0.5]))
    alpha = 1 - math.exp(-2 * sigma)
    torch.testing.assert_close(out.alpha, torch.full_like(out.alpha, alpha))
    torch.testing.assert_close(out.rgb, alpha * torch.tensor([COLOR, COLOR], dtype=torch.float64))
    assert out.depth.tolist() == pytest.approx([expected_depth(sigma, 2.0, 2.0)] * 2, abs=1e-3)
    assert out.num_samples.tolist() == [128, 128]


def test_a_ball_of_constant_density() -> None:
    sigma, radius = 1.5, 0.8
    heights = [0.0, 0.3, 0.6, 0.79, 0.9]
    out = renderer(lambda p: sigma * (p.norm(dim=-1) < radius), rule=StepRule(1 / 512)).render(*along_x(heights))
    for index, height in enumerate(heights):
        length = 2 * math.sqrt(max(radius**2 - height**2, 0.0))
        assert out.alpha[index].item() == pytest.approx(1 - math.exp(-sigma * length), abs=sigma * 2 / 512)
        if length > 0.2:
            depth = expected_depth(sigma, 3 - length / 2, length)
            assert out.depth[index].item() == pytest.approx(depth, abs=3 / 512)
    assert out.alpha[-1] == 0
    assert out.depth[-1] == 0


def test_a_background_at_every_distance_under_contraction() -> None:
    """In an unbounded space, light from beyond the box is visible up to the far limit."""
    far, sigma = 20.0, 0.05
    rule = StepRule(1 / 64, 1 / 32)
    out = renderer(uniform(sigma), contracted=True, rule=rule, near=0.5, far=far).render(*along_x([0.0], x=0.0))
    length = far - 0.5
    # The first and last step extend beyond the limits by up to half a step of at most far / 32.
    assert out.alpha.item() == pytest.approx(1 - math.exp(-sigma * length), abs=sigma * far / 32)
    assert out.depth.item() == pytest.approx(expected_depth(sigma, 0.5, length), rel=0.02)


def test_near_and_far_of_the_renderer_cut_the_medium() -> None:
    out = renderer(uniform(1.0), near=2.5, far=3.25).render(*along_x([0.0]))
    assert out.alpha.item() == pytest.approx(1 - math.exp(-0.75), rel=1e-12)
    assert out.depth.item() == pytest.approx(expected_depth(1.0, 2.5, 0.75), abs=1e-4)


def test_limits_of_a_crop_cut_further_and_never_widen() -> None:
    medium = renderer(uniform(1.0), near=2.5, far=3.75)
    near = torch.tensor([3.0, 0.0, 3.0, 1e10], dtype=torch.float64)
    far = torch.tensor([3.5, 99.0, 2.9, 1e10], dtype=torch.float64)
    out = medium.render(*along_x([0.0, 0.0, 0.0, 0.0]), near, far)
    # Within the renderer's own limits; wider; empty; as nerfstudio marks rays that miss the crop box.
    lengths = torch.tensor([0.5, 1.25, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(out.alpha, 1 - torch.exp(-lengths))
    assert not out.rgb[2:].any()


@pytest.mark.parametrize("length", [0.04, 0.4, 4.0])
def test_a_surface_is_seen_from_right_in_front_of_it(length: float) -> None:
    """As in ns-export: it lies in the middle of a range that begins at 0."""

    def wall(positions: Tensor) -> Tensor:
        return 1e4 * (positions[:, 0] > 0).to(positions)

    medium = renderer(wall, rule=StepRule(0.005), near=0.9, far=10.0)
    origins, directions = along_x([0.0], x=-length / 2)
    out = medium.render(origins, directions, torch.zeros_like(origins[:, 0]), torch.full_like(origins[:, 0], length))
    assert out.alpha.item() == pytest.approx(1, abs=1e-3)


def test_rays_that_leave_a_crop_box_soon_keep_the_near_limit() -> None:
    """Around a camera inside the box, which a forward-facing scene was not trained on."""
    medium = renderer(uniform(1.0), near=0.9, far=10.0)
    far = torch.tensor([0.8, 1.2, 1.5], dtype=torch.float64)
    out = medium.render(*along_x([0.0, 0.0, 0.0], x=-0.5), torch.zeros_like(far), far)
    expected = 1 - torch.exp(-(far - 0.9).clamp_min(0))
    torch.testing.assert_close(out.alpha, expected, rtol=0, atol=0.01)  # a step is 1/64


def test_early_termination_changes_less_than_its_threshold() -> None:
    medium = renderer(uniform(30.0))
    stopped = medium.render(*along_x([0.0]))
    full = medium.render_differentiable(*along_x([0.0]))
    assert stopped.num_samples < full.num_samples
    torch.testing.assert_close(stopped.rgb, full.rgb.detach(), rtol=0, atol=1e-4)
    torch.testing.assert_close(stopped.depth, full.depth.detach(), rtol=0, atol=1e-3)


def test_only_differentiable_has_gradients_and_they_are_right() -> None:
    medium = renderer(uniform(0.5))
    strength = medium.field.get_parameter("strength")
    assert not medium.render(*along_x([0.0])).rgb.requires_grad
    out = medium.render_differentiable(*along_x([0.0]))
    (gradient,) = torch.autograd.grad(out.alpha.sum(), strength)
    # alpha = 1 - exp(-2 * 0.5 * strength)
    assert gradient.item() == pytest.approx(math.exp(-1), rel=1e-9)


def test_jitter_shifts_the_samples() -> None:
    medium = renderer(lambda p: (p[:, 0].abs() < 0.5).double(), rule=StepRule(0.1))
    origins, directions = along_x([0.0] * 50)
    jitter = torch.linspace(0, 0.98, 50, dtype=torch.float64)
    out = medium.render_differentiable(origins, directions, jitter)
    assert out.alpha.detach().unique().numel() > 1
    centered = medium.render_differentiable(*along_x([0.0])).alpha
    assert out.alpha.mean().item() == pytest.approx(1 - math.exp(-1), abs=0.01)
    half = medium.render_differentiable(*along_x([0.0]), torch.tensor([0.5], dtype=torch.float64)).alpha
    assert torch.equal(centered, half)


def test_empty_cells_are_skipped() -> None:
    medium = renderer(uniform(1.0))
    # Only the half with x > 0 remains.
    medium.occupancy.update(0, lambda unit: (unit[:, 0] > 0.5).float())
    for out in (medium.render(*along_x([0.1])), medium.render_differentiable(*along_x([0.1]))):
        assert out.num_samples.item() == 64
        assert out.alpha.item() == pytest.approx(1 - math.exp(-1), rel=1e-9)


def test_no_rays() -> None:
    medium = renderer(uniform(1.0))
    none = torch.empty(0, 3, dtype=torch.float64)
    for out in (medium.render(none, none), medium.render_differentiable(none, none)):
        assert (out.rgb.shape, out.alpha.shape, out.depth.shape) == ((0, 3), (0,), (0,))


def test_occupancy_follows_the_optical_thickness_of_a_step() -> None:
    """At the threshold 0.01, a step of 1/64 through density 1.5 needs a sample; through density 0.5 it does not."""
    medium = renderer(lambda p: torch.where(p[:, 0] > 0, 1.5, 0.5))
    assert medium.update_occupancy(0)
    assert not medium.update_occupancy(1)
    assert medium.occupancy.occupied_fraction == 0.5
    torch.testing.assert_close(medium.occupancy.values.unique(), torch.tensor([0.5, 1.5]) / 64)


def test_occupancy_counts_the_shortest_step_at_every_distance() -> None:
    """Otherwise a trace of fog would keep every distant cell, where steps are long, occupied forever."""
    medium = renderer(uniform(0.5), contracted=True, rule=StepRule(1 / 64, 1 / 8), far=50.0)
    medium.update_occupancy(0)
    torch.testing.assert_close(medium.occupancy.values, torch.full((8**3,), 0.5 / 64))


def test_hidden_samples_are_left_out_of_training() -> None:
    """Behind an optical thickness of ln(1e4) nothing is left to learn; samples in front keep their gradients."""
    sigma = 20.0
    medium, shortened = (renderer(uniform(sigma), skip_occluded=skip) for skip in (False, True))
    full = medium.render_differentiable(*along_x([0.0, 0.5]))
    out = shortened.render_differentiable(*along_x([0.0, 0.5]))
    assert full.num_samples.tolist() == [128, 128]
    visible = math.floor(math.log(1e4) / (sigma / 64)) + 1
    assert out.num_samples.tolist() == [visible, visible]
    torch.testing.assert_close(out.rgb, full.rgb, rtol=0, atol=1e-4)
    torch.testing.assert_close(out.depth, full.depth, rtol=0, atol=1e-3)
    gradients = [
        torch.autograd.grad(result.alpha.sum(), scene.field.get_parameter("strength"))[0]
        for scene, result in ((medium, full), (shortened, out))
    ]
    # The rays' light is absorbed in front; the remaining samples contribute a gradient of about 13 * 1e-4 each.
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0.005)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"near": 2.0, "far": 1.0}, "limits of rays must be 0 <= near < far, not near=2.0, far=1.0"),
        ({"near": 1.0, "far": 1.0}, "limits of rays"),
        ({"near": math.nan}, "limits of rays"),
        ({"far": math.nan}, "limits of rays"),
        ({"near": -1.0}, "limits of rays"),
        ({"far": math.inf, "space": Space(BOX, True)}, "far must be finite in a contracted space"),
        ({"space": Space((BOX[0], (1.0, -1.0, 1.0)))}, "box must be finite, with low below high"),
        ({"space": Space((BOX[0], (1.0, math.inf, 1.0)))}, "box must be finite"),
        ({"space": Space((BOX[0], (1.0, math.nan, 1.0)))}, "box must be finite"),
        ({"rule": StepRule(0.0)}, "step size must be positive"),
        ({"rule": StepRule(0.1, math.nan)}, "step size must be positive and the cone angle not negative"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_leaves_nothing_to_see_is_refused(wrong: dict[str, Any], message: str) -> None:
    given = {"near": 0.5, "far": 9.0, "space": Space(BOX), "rule": StepRule(0.1), **wrong}
    medium = cast(EugenField, Medium(given["space"], uniform(1.0)))
    with pytest.raises(ValueError, match=message):
        Renderer(medium, OccupancyGrid(8), **given)


def test_a_bounded_space_may_be_seen_from_any_distance() -> None:
    out = renderer(uniform(1.0), far=math.inf).render(*along_x([0.0]))
    assert out.alpha.item() == pytest.approx(1 - math.exp(-2))


def test_rays_of_other_shapes_and_dtypes_are_refused() -> None:
    _, scene = small_scene()
    origins, directions = (tensor.float() for tensor in along_x([0.0, 0.5]))
    for call in (scene.render_differentiable, scene.render):
        with pytest.raises(ValueError, match=r"origins must have the shape \[R, 3\], not \[1, 2, 3\]"):
            call(origins[None], directions[None])
        with pytest.raises(ValueError, match=r"directions must have the origins' shape \[2, 3\], not \[1, 3\]"):
            call(origins, directions[:1])
        with pytest.raises(ValueError, match=r"origins must be torch\.float32, .* field's parameters .*float64"):
            call(origins.double(), directions.double())
        with pytest.raises(ValueError, match=r"directions must be torch\.float32"):
            call(origins, directions.double())


def test_a_field_of_doubles_takes_rays_of_doubles() -> None:
    field, scene = small_scene()
    field.double()
    assert scene.update_occupancy(0)
    for out in (scene.render_differentiable(*along_x([0.0])), scene.render(*along_x([0.0]))):
        assert out.rgb.dtype == torch.float64
    with pytest.raises(ValueError, match=r"origins must be torch\.float64"):
        scene.render(*(tensor.float() for tensor in along_x([0.0])))


def test_limits_and_jitter_are_numbers_or_one_for_each_ray() -> None:
    """A column, which is nerfstudio's shape, would be broadcast to [R, R]."""
    medium = renderer(uniform(1.0), near=2.0, far=3.75)
    rays = along_x([0.0, 0.1, 0.2])
    near, far = (torch.full((3,), value, dtype=torch.float64) for value in (2.5, 3.25))
    expected = medium.render(*rays, near, far)
    for limits in ((near[:, None], far[:, None]), (2.5, 3.25), (near, 3.25)):
        assert torch.equal(medium.render(*rays, *limits).depth, expected.depth)
    shifted = medium.render_differentiable(*rays, torch.full_like(near, 0.25))
    assert torch.equal(medium.render_differentiable(*rays, 0.25).depth, shifted.depth)

    for wrong, message in (
        (near[:2], r"must be a number or have the shape \[3\], not \[2\]"),
        (near[None], r"must be a number or have the shape \[3\], not \[1, 3\]"),
        (near.float(), r"must be torch\.float64, as the rays are, not torch\.float32"),
    ):
        with pytest.raises(ValueError, match=f"near {message}"):
            medium.render(*rays, wrong)
        with pytest.raises(ValueError, match=f"far {message}"):
            medium.render(*rays, None, wrong)
        with pytest.raises(ValueError, match=f"jitter {message}"):
            medium.render_differentiable(*rays, wrong)


def small_scene() -> tuple[EugenField, Renderer]:
    torch.manual_seed(0)
    field = EugenField(FieldConfig(num_levels=2, log2_hashmap_size=8, base_resolution=4, max_resolution=8))
    return field, Renderer(field, OccupancyGrid(8), Space(BOX), StepRule(1 / 16), 0.0, 10.0)


def test_a_real_field_renders_alike_with_and_without_gradients() -> None:
    field, scene = small_scene()
    with torch.no_grad():
        field.get_parameter("encoding.table").normal_()
    generator = torch.Generator().manual_seed(0)
    origins = 3 * torch.nn.functional.normalize(torch.randn(40, 3, generator=generator), dim=-1)
    directions = torch.nn.functional.normalize(-origins + 0.5 * torch.randn(40, 3, generator=generator), dim=-1)
    trained, shown = scene.render_differentiable(origins, directions), scene.render(origins, directions)
    assert shown.alpha.max() > 0.3
    for name in ("rgb", "alpha", "depth"):
        torch.testing.assert_close(
            getattr(shown, name),
            getattr(trained, name).detach(),
            rtol=1e-3,
            atol=1e-3,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_networks_are_merged_once_a_step(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUGEN_BACKEND", backend)
    merged: list[nn.Sequential] = []

    def merge(layers: nn.Sequential) -> FactoredChain:
        merged.append(layers)
        return factor_chain(layers)

    monkeypatch.setattr("eugen_nerf.field.factor_chain", merge)
    field, scene = small_scene()
    origins, directions = (t.float() for t in along_x([0.0, 0.5]))
    scene.render_differentiable(origins, directions).rgb.sum().backward()
    assert merged == [field.density_network.layers, field.color_network.layers]
    assert all(parameter.grad is not None for parameter in field.parameters())


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_mixed_precision_trains_as_float32_does(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ns-train --mixed-precision True: native code decides by itself what to compute in half precision."""
    monkeypatch.setenv("EUGEN_BACKEND", backend)
    results = []
    for enabled in (False, True):
        field, scene = small_scene()
        origins, directions = (t.float() for t in along_x([0.0, 0.5, -0.3]))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = scene.render_differentiable(origins, directions)
        (out.rgb.sum() + out.depth.sum()).backward()
        results.append([out.rgb, out.depth, *(parameter.grad for parameter in field.parameters())])
    for one, other in zip(*results, strict=True):
        assert other is not None
        assert other.dtype == torch.float32
        assert torch.equal(one, other)


class NativeOps(TorchDispatchMode):
    """Records which of the package's operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.rendered_table: torch.dtype | None = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "eugen_nerf":
            name = function.__name__.removesuffix(".default")
            self.names.add(name)
            if name == "render":
                self.rendered_table = args[9].dtype
        return function(*args, **(kwargs or {}))


@needs_fake_gpu
@pytest.mark.parametrize("contracted", [False, True])
@pytest.mark.parametrize("network", ["eugen", "mlp"])
def test_on_a_gpu_every_op_is_native(network: str, contracted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake GPU tensors show which operators would run on a GPU, and that nothing comes from the host."""
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_native_cuda_problem", lambda index: None)
    monkeypatch.setattr(dispatch, "_cuda_network_problem", lambda *_: None)
    monkeypatch.setattr(importlib.import_module("eugen_nerf.ops.render"), "_has_kernel", lambda *_: True)
    space, rule = Space(BOX, contracted), StepRule(1 / 64, 1 / 256 if contracted else 0.0)
    with FakeTensorMode(shape_env=ShapeEnv()), NativeOps() as ops:
        with torch.device("cuda:0"):
            field = EugenField(FieldConfig(network=network, log2_hashmap_size=10))  # type: ignore[arg-type]
            made = Renderer(field, OccupancyGrid(8), space, rule, 0.05, 100.0)
            origins, directions, jitter = torch.empty(9, 3), torch.empty(9, 3), torch.empty(9)
        trained, drawn = made.render_differentiable(origins, directions, jitter), made.render(origins, directions)
        assert trained.rgb.device == drawn.rgb.device == origins.device
        assert trained.rgb.requires_grad
    assert ops.names == {"march", "sample_points", "select_visible", "hash_encode", "network", "spherical_harmonics",
                         "composite", "render"}  # fmt: skip
    assert ops.rendered_table == torch.float16
