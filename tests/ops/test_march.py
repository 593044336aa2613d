"""march against a loop over rays and steps, and the maps and step rules it uses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eugen_nerf.occupancy import pack_bits
from eugen_nerf.ops import PackedSamples, Space, StepRule, march, occupied

BOUNDED = Space(((-1.0, -1.5, -1.0), (1.0, 1.5, 2.0)))
UNBOUNDED = Space(((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)), contracted=True)


def brute_force(
    origins: torch.Tensor,
    directions: torch.Tensor,
    near: torch.Tensor,
    far: torch.Tensor,
    mask: torch.Tensor,
    space: Space,
    rule: StepRule,
    jitter: torch.Tensor,
) -> list[list[tuple[float, float]]]:
    """The samples of every ray, one step at a time, with Python numbers. mask [r, r, r] is indexed z, y, x."""
    resolution = mask.shape[0]

    def distance(s: float) -> float:
        if rule.cone_angle == 0 or s <= 1 / rule.cone_angle:
            return rule.step_size * s
        return rule.step_size / rule.cone_angle * math.exp(rule.cone_angle * s - 1)

    def coordinate(t: float) -> float:
        if rule.cone_angle == 0 or t <= rule.step_size / rule.cone_angle:
            return t / rule.step_size
        return (1 + math.log(t * rule.cone_angle / rule.step_size)) / rule.cone_angle

    rays = []
    for origin, direction, begin, end, shift in zip(
        origins.tolist(), directions.tolist(), near.tolist(), far.tolist(), jitter.tolist(), strict=True
    ):
        if not space.contracted:
            for o, d, low, high in zip(origin, direction, space.box[0], space.box[1], strict=True):
                if d == 0:
                    if not low <= o <= high:
                        end = -1.0
                    continue
                first, second = sorted(((low - o) / d, (high - o) / d))
                begin, end = max(begin, first), min(end, second)
        samples = []
        if end > begin:
            s = coordinate(max(begin, 0)) + shift
            while s < coordinate(max(end, 0)):
                start, stop = distance(max(s - 0.5, 0)), distance(s + 0.5)
                middle = 0.5 * (start + stop)
                point = [o + middle * d for o, d in zip(origin, direction, strict=True)]
                unit = space.to_unit(torch.tensor(point, dtype=torch.float64)).tolist()
                cell = [math.floor(u * resolution) for u in unit]
                if all(0 <= c < resolution for c in cell) and mask[cell[2], cell[1], cell[0]]:
                    samples.append((start, stop))
                s += 1
        rays.append(samples)
    return rays


@pytest.mark.parametrize(
    ("space", "rule"),
    [
        (BOUNDED, StepRule(0.05)),
        (BOUNDED, StepRule(0.05, 1 / 32)),
        (UNBOUNDED, StepRule(0.05, 1 / 16)),
        (UNBOUNDED, StepRule(0.1)),
    ],
    ids=["bounded", "bounded-cone", "cone", "unbounded-constant"],
)
@pytest.mark.parametrize("jittered", [False, True])
def test_march(space: Space, rule: StepRule, jittered: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    n, resolution = 80, 8
    origins = torch.randn(n, 3, generator=generator, dtype=torch.float64) * 2
    directions = torch.nn.functional.normalize(
        torch.randn(n, 3, generator=generator, dtype=torch.float64) - 0.3 * origins, dim=-1
    )
    near = torch.rand(n, generator=generator, dtype=torch.float64)
    far = near + 12 * torch.rand(n, generator=generator, dtype=torch.float64)
    far[3] = near[3] / 2  # an empty range
    mask = torch.rand(resolution, resolution, resolution, generator=generator) < 0.4
    jitter = torch.rand(n, generator=generator, dtype=torch.float64)
    if not jittered:
        jitter = torch.full_like(jitter, 0.5)
    expected = brute_force(origins, directions, near, far, mask, space, rule, jitter)

    bits = pack_bits(mask.flatten())
    got = march(origins, directions, near, far, bits, resolution, space, rule, jitter if jittered else None)
    assert got.counts().tolist() == [len(samples) for samples in expected]
    assert got.num_samples > 100  # the scene is not trivial
    flat = torch.tensor([sample for samples in expected for sample in samples], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([got.t_starts, got.t_ends], dim=1), flat)


def test_march_rays_that_miss_or_start_behind() -> None:
    bits = torch.full((1,), 255, dtype=torch.uint8)
    origins = torch.tensor([[5.0, 0, 0], [5.0, 0, 0], [0, 0, 0], [0, 9.0, 0]])
    directions = torch.tensor([[-1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0], [1.0, 0, 0]])
    near, far = torch.zeros(4), torch.full((4,), 100.0)
    samples = march(origins, directions, near, far, bits, 2, BOUNDED, StepRule(0.5))
    # Through the box (length 2), away from it, from its center to the face at z = 2, past it in the plane of a face.
    assert samples.counts().tolist() == [4, 0, 4, 0]
    assert samples.t_starts[0] == 4
    assert samples.t_ends[-1] == 2


def test_march_without_rays_or_without_occupied_cells() -> None:
    empty = torch.zeros(1, dtype=torch.uint8)
    none = torch.empty(0, 3)
    samples = march(none, none, none[:, 0], none[:, 0], empty, 2, BOUNDED, StepRule(0.1))
    assert (samples.num_rays, samples.num_samples) == (0, 0)
    one = torch.tensor([[0.0, 0, -3]])
    samples = march(one, -one / 3, torch.zeros(1), torch.ones(1) * 9, empty, 2, BOUNDED, StepRule(0.1))
    assert (samples.num_rays, samples.num_samples) == (1, 0)


def test_occupied_treats_outside_and_nan_as_empty() -> None:
    bits = torch.full((1,), 255, dtype=torch.uint8)
    unit = torch.tensor([[0.5, 0.5, 0.5], [1.0, 0.5, 0.5], [-1e-6, 0.5, 0.5], [math.nan, 0.5, 0.5], [1e30, 0, 0]])
    assert occupied(unit, bits, 2).tolist() == [True, False, False, False, False]


def test_occupied_reads_the_documented_bit() -> None:
    resolution = 4
    for i, j, k in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 2, 1)]:
        index = (k * resolution + j) * resolution + i
        bits = torch.zeros(resolution**3 // 8, dtype=torch.uint8)
        bits[index // 8] = 1 << (index % 8)
        centers = (torch.stack(torch.meshgrid(*[torch.arange(resolution)] * 3, indexing="ij"), -1) + 0.5) / resolution
        found = occupied(centers.view(-1, 3), bits, resolution).view(resolution, resolution, resolution)
        assert found.nonzero().tolist() == [[i, j, k]]


@given(st.floats(0.001, 1), st.sampled_from([0.0, 1 / 256, 1 / 16, 0.5]), st.floats(0, 1e3))
@settings(deadline=None, max_examples=50)
def test_step_rule_inverts(step: float, cone: float, distance: float) -> None:
    rule = StepRule(step, cone)
    t = torch.tensor([distance], dtype=torch.float64)
    torch.testing.assert_close(rule.distance(rule.coordinate(t)), t, rtol=1e-9, atol=1e-12)


def test_step_rule_is_smooth_where_steps_begin_to_grow() -> None:
    rule = StepRule(0.01, 1 / 64)
    s = torch.tensor([64.0 - 1e-6, 64.0, 64.0 + 1e-6], dtype=torch.float64)
    slopes = rule.distance(s).diff() / 1e-6
    torch.testing.assert_close(slopes, torch.full_like(slopes, 0.01), rtol=1e-6, atol=0)


@pytest.mark.parametrize("space", [BOUNDED, UNBOUNDED], ids=["bounded", "unbounded"])
def test_space_maps_to_the_unit_cube_and_back(space: Space) -> None:
    generator = torch.Generator().manual_seed(0)
    low, high = (torch.tensor(corner, dtype=torch.float64) for corner in space.box)
    scale = 1.0 if not space.contracted else 50.0
    world = (low + high) / 2 + (high - low) * scale * (torch.rand(200, 3, generator=generator).double() - 0.5)
    unit = space.to_unit(world)
    assert (unit >= 0).all()
    assert (unit <= 1).all()
    torch.testing.assert_close(space.to_world(unit), world)


def test_contraction_leaves_the_box_linear_and_is_continuous() -> None:
    inside = torch.tensor([[0.5, -0.25, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(UNBOUNDED.to_unit(inside), 0.25 * inside + 0.5)
    edge = torch.tensor([[1 - 1e-9, 0.3, 0.2], [1 + 1e-9, 0.3, 0.2]], dtype=torch.float64)
    first, second = UNBOUNDED.to_unit(edge)
    torch.testing.assert_close(first, second, atol=1e-8, rtol=0)


def test_packed_samples_know_their_rays() -> None:
    samples = PackedSamples(torch.tensor([0, 2, 2, 3]), torch.tensor([0.0, 1, 4]), torch.tensor([1.0, 2, 6]))
    assert samples.counts().tolist() == [2, 0, 1]
    assert samples.ray_indices().tolist() == [0, 0, 2]
    origins = torch.tensor([[0.0, 0, 0], [9, 9, 9], [1, 0, 0]])
    directions = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])
    assert samples.positions(origins, directions).tolist() == [[0.5, 0, 0], [1.5, 0, 0], [1, 5, 0]]


def test_packed_samples_select() -> None:
    samples = PackedSamples(torch.tensor([0, 2, 2, 5]), torch.arange(5.0), torch.arange(5.0) + 1)
    chosen = samples.select(torch.tensor([1, 2, 4]))
    assert chosen.ray_offsets.tolist() == [0, 1, 1, 3]
    assert chosen.t_starts.tolist() == [1, 2, 4]
    assert chosen.t_ends.tolist() == [2, 3, 5]
    nothing = samples.select(torch.zeros(0, dtype=torch.int64))
    assert nothing.ray_offsets.tolist() == [0, 0, 0, 0]
