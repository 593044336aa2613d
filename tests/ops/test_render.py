"""render against march, field and composite in sequence, and the guarantees of early termination."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from eugen_nerf import ops
from eugen_nerf.occupancy import pack_bits
from eugen_nerf.ops import Space, StepRule, composite, march
from eugen_nerf.ops.reference import MIN_TRANSMITTANCE, render

BOUNDED = (Space(((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))), StepRule(0.05))
UNBOUNDED = (Space(((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)), contracted=True), StepRule(0.05, 1 / 16))
SPACES = pytest.mark.parametrize(("space", "rule"), [BOUNDED, UNBOUNDED], ids=["bounded", "unbounded"])
RESOLUTION = 8


def field(unit: Tensor, directions: Tensor, density: float = 4.0) -> tuple[Tensor, Tensor]:
    """A smooth function in place of a radiance field."""
    sigma = density * (1 + torch.sin(7 * unit).prod(dim=-1))
    return sigma, torch.sigmoid(3 * torch.cos(5 * unit) + directions)


def rays(n: int = 60) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    origins = 2 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    directions = torch.nn.functional.normalize(
        torch.randn(n, 3, generator=generator, dtype=torch.float64) - origins, dim=-1
    )
    near = torch.rand(n, generator=generator, dtype=torch.float64)
    far = near + 8
    far[3:4] = near[3:4] / 2  # an empty range
    return origins, directions, near, far


def bits() -> Tensor:
    return pack_bits(torch.rand(RESOLUTION**3, generator=torch.Generator().manual_seed(1)) < 0.6)


def expected(space: Space, rule: StepRule, **options: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    origins, directions, near, far = rays()
    samples = march(origins, directions, near, far, bits(), RESOLUTION, space, rule)
    unit = space.to_unit(samples.positions(origins, directions))
    sigma, rgb = field(unit, directions[samples.ray_indices()], **options)
    return *composite(sigma, rgb, samples), samples.counts()


@SPACES
@pytest.mark.parametrize("wave", [1, 3, 8, 1000])
def test_render_without_termination_is_march_field_composite(space: Space, rule: StepRule, wave: int) -> None:
    got = render(*rays(), bits(), RESOLUTION, space, rule, field, min_transmittance=0, wave=wave)
    reference = expected(space, rule)
    for name, actual, wanted in zip(("rgb", "alpha", "depth", "count"), got, reference, strict=True):
        torch.testing.assert_close(actual, wanted, msg=lambda m, n=name: f"{n}: {m}")
    assert reference[3].max() > 20  # the scene is not trivial
    assert reference[3][3] == 0


@SPACES
def test_render_does_not_depend_on_the_wave(space: Space, rule: StepRule) -> None:
    def dense(unit: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return field(unit, directions, density=40.0)

    first, *others = (render(*rays(), bits(), RESOLUTION, space, rule, dense, wave=wave) for wave in (1, 2, 7, 64))
    for other in others:
        for actual, wanted in zip(other, first, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-14)


@SPACES
def test_early_termination_leaves_out_less_than_the_light_that_still_passes(space: Space, rule: StepRule) -> None:
    def dense(unit: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return field(unit, directions, density=40.0)

    rgb, alpha, _, evaluated = render(*rays(), bits(), RESOLUTION, space, rule, dense)
    full_rgb, full_alpha, _, counts = expected(space, rule, density=40.0)
    for shortened, full in ((rgb, full_rgb), (alpha, full_alpha)):
        missing = full - shortened
        assert missing.min() >= -1e-12
        assert missing.max() < MIN_TRANSMITTANCE
    stopped = evaluated < counts
    assert stopped.sum() > 10
    assert (1 - full_alpha[stopped] < MIN_TRANSMITTANCE).all()


def test_the_samples_counted_are_those_before_the_stop() -> None:
    """Equal steps of transmittance 1/10 each: after four of them, only round-off takes it below 1e-4."""
    space, rule = Space(((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))), StepRule(1 / 16)

    def constant(unit: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(unit[:, 0], 16 * math.log(10) * 1.01), torch.ones_like(unit)

    origins = torch.tensor([[-1.0, 0.5, 0.5]], dtype=torch.float64)
    directions = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    near, far = torch.zeros(1, dtype=torch.float64), torch.full((1,), 9.0, dtype=torch.float64)
    full = torch.full((1,), 255, dtype=torch.uint8)
    for wave in (1, 8):
        rgb, alpha, _, evaluated = render(origins, directions, near, far, full, 2, space, rule, constant, wave=wave)
        assert evaluated.tolist() == [4]
        assert alpha.item() == pytest.approx(1 - 10 ** (-4 * 1.01), rel=1e-12)
        assert rgb.tolist() == [[alpha.item()] * 3]


def test_render_without_rays_and_of_rays_that_miss() -> None:
    space, rule = BOUNDED
    none = torch.empty(0, 3)
    empty = render(none, none, none[:, 0], none[:, 0], bits(), RESOLUTION, space, rule, field)
    assert [tuple(t.shape) for t in empty] == [(0, 3), (0,), (0,), (0,)]

    def unreachable(unit: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("the field was asked about a ray without samples")

    origins = torch.tensor([[5.0, 0, 0], [0, 0, 0]])
    directions = torch.tensor([[0.0, 1, 0], [1, 0, 0]])
    # The first ray misses the box; the limits of the second one exclude it.
    near, far = torch.tensor([0.0, 3.0]), torch.tensor([10.0, 2.0])
    rgb, alpha, depth, evaluated = render(origins, directions, near, far, bits(), RESOLUTION, space, rule, unreachable)
    assert not torch.cat([rgb.flatten(), alpha, depth, evaluated]).any()


@pytest.mark.parametrize("threshold", [0.5, 0.05])
def test_the_threshold_is_passed_on(threshold: float) -> None:
    def dense(unit: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return field(unit, directions, density=40.0)

    scene = (*rays(), bits(), RESOLUTION, *BOUNDED, dense)
    alpha = ops.render(*scene, threshold)[1]
    full = ops.render(*scene, 0)[1]
    assert threshold / 10 < (full - alpha).max() < threshold


def test_without_native_code_rays_are_rendered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples of a whole image would not fit into a GPU's memory at once."""
    whole = ops.render(*rays(), bits(), RESOLUTION, *BOUNDED, field)
    sizes: list[int] = []

    def watched(origins: Tensor, *rest: Any) -> Any:
        sizes.append(origins.shape[0])
        return render(origins, *rest)

    monkeypatch.setattr("eugen_nerf.ops.reference.render", watched)
    monkeypatch.setattr(importlib.import_module("eugen_nerf.ops.render"), "RAYS_AT_ONCE", 25)
    for part, expected in zip(ops.render(*rays(), bits(), RESOLUTION, *BOUNDED, field), whole, strict=True):
        torch.testing.assert_close(part, expected)
    assert sizes == [25, 25, 10]
    assert [len(out) for out in ops.render(*rays(0), bits(), RESOLUTION, *BOUNDED, field)] == [0] * 4
