"""Marching, compositing and rendering in one pass on the emulator, against the references."""

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from eugen_nerf.layers import build_network, merge_chain
from eugen_nerf.occupancy import pack_bits
from eugen_nerf.ops import HashGridLayout, PackedSamples, RadianceField, Space, StepRule, cuda, reference
from eugen_nerf.ops.packing import pack_chain
from tests.emulator.device import ORDERS, EmulatedDevice, SimulatedDevice
from tests.ops.comparisons import BOUNDED, UNBOUNDED, VISIBLE, check_visible, random_samples, relative_error

BOUNDED_CONE = (BOUNDED[0], StepRule(0.03, 1 / 32))
SPACES = pytest.mark.parametrize(
    ("space", "rule"), [BOUNDED, BOUNDED_CONE, UNBOUNDED], ids=["bounded", "bounded-cone", "unbounded"]
)
RESOLUTION = 16


def random_rays(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Origins, directions, near, far, jitter."""
    generator = torch.Generator().manual_seed(n)
    origins = 2 * torch.randn(n, 3, generator=generator)
    directions = nn.functional.normalize(torch.randn(n, 3, generator=generator) - 0.4 * origins, dim=-1)
    directions[::7] = torch.tensor([0.0, 0.0, -1.0])
    near = 0.3 * torch.rand(n, generator=generator)
    return origins, directions, near, near + 15 * torch.rand(n, generator=generator), torch.rand(n, generator=generator)


def random_bits(share: float) -> Tensor:
    return pack_bits(torch.rand(RESOLUTION**3, generator=torch.Generator().manual_seed(0)) < share)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("share", [0.02, 0.5])
@SPACES
def test_march_and_sample_points(space: Space, rule: StepRule, share: float, order: str) -> None:
    device = EmulatedDevice(80, order)
    rays, bits = random_rays(150), random_bits(share)
    got = PackedSamples(*cuda.march(device, *rays, bits, RESOLUTION, space, rule))
    exact = [t.double() for t in rays]
    expected = reference.march(*exact[:4], bits, RESOLUTION, space, rule, exact[4])
    # A sample whose midpoint lies on a cell's face, up to round-off, may be assigned to either side.
    assert (got.counts() - expected.counts()).abs().sum() <= 2e-3 * expected.num_samples
    same = got.counts() == expected.counts()
    assert same.float().mean() > 0.97
    mine, theirs = same[got.ray_indices()], same[expected.ray_indices()]
    assert relative_error(got.t_starts[mine], expected.t_starts[theirs]) < 1e-3
    assert relative_error(got.t_ends[mine], expected.t_ends[theirs]) < 1e-3

    arrays = (got.ray_offsets, got.t_starts, got.t_ends)
    points = cuda.sample_points(device, rays[0], rays[1], *arrays, space)
    samples = PackedSamples(got.ray_offsets, got.t_starts.double(), got.t_ends.double())
    for one, other in zip(points, reference.sample_points(exact[0], exact[1], samples, space), strict=True):
        assert relative_error(one, other) <= 1e-5


def places_of_missing_samples(device: SimulatedDevice, rays: tuple[Tensor, ...], bits: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [R] of the empty samples of rays with two samples too many in their counts, and the expected ones.

    Expected is the end of the last sample, or the beginning of a ray without samples. NaN marks any other error.
    """
    (space, rule), n = BOUNDED, len(rays[0])
    expected = PackedSamples(*cuda.march(device, *rays, bits, RESOLUTION, space, rule))  # type: ignore[call-arg]
    room = expected.ray_offsets + 2 * torch.arange(n + 1)
    starts, ends = torch.full((2, int(room[-1])), math.nan)
    arguments, blocks = cuda._march(space, rule, RESOLUTION), cuda._occupied_blocks(device, bits, RESOLUTION)
    cuda._warp_kernel(device, "march_write", n, *rays, ctypes.c_int64(n), arguments, bits, blocks, room, starts, ends)
    empty = torch.stack([room[1:] - 2, room[1:] - 1])
    found = torch.ones(len(starts), dtype=torch.bool).index_fill(0, empty.flatten(), False)
    good = torch.equal(starts[found], expected.t_starts) and torch.equal(ends[found], expected.t_ends)
    same = (starts[empty] == starts[empty[:1]]) & (ends[empty] == starts[empty])
    last = expected.t_ends[(expected.ray_offsets[1:] - 1).clamp(min=0)]
    stop = torch.where(expected.counts() > 0, last, rays[2])
    return torch.where(same.all(dim=0) & good, starts[empty[0]], math.nan), stop


def test_march_that_finds_less_than_was_counted() -> None:
    """If the second walk rounds differently, nothing may stay unwritten, and filler samples must have no weight."""
    rays = random_rays(60)
    got, expected = places_of_missing_samples(EmulatedDevice(80), rays, random_bits(0.3))
    begin = expected == rays[2]
    assert begin.any()
    assert not begin.all()
    assert torch.equal(got, expected)


def test_march_of_odd_rays() -> None:
    device = EmulatedDevice(80)
    none = torch.empty(0, 3)
    arguments = (torch.full((1,), 255, dtype=torch.uint8), 2, BOUNDED[0], StepRule(0.1))
    offsets, *ends = cuda.march(device, none, none, *[none[:, 0]] * 3, *arguments)
    assert offsets.tolist() == [0]
    origins = torch.tensor([[math.nan, 0, 0], [0, 0, math.inf], [0, 0, -5.0], [5.0, 5, 5], [0, 0, 0]])
    directions = torch.tensor([[0.0, 0, 1], [0, 0, 1], [math.nan, 0, 1], [0, 0, 1], [0, 0, 1]])
    far = torch.full((5,), math.inf)
    offsets, *ends = cuda.march(device, origins, directions, torch.zeros(5), far, torch.full((5,), 0.5), *arguments)
    assert offsets.tolist() == [0, 0, 0, 0, 0, 20]
    assert ends[0].shape == ends[1].shape == (20,)


@pytest.mark.parametrize("resolution", [2, 6, 10])
def test_occupied_blocks(resolution: int) -> None:
    mask = torch.rand(resolution**3, generator=torch.Generator().manual_seed(0)) < 0.05
    mask = mask[: resolution**3 // 8 * 8]
    blocks = cuda._occupied_blocks(EmulatedDevice(80), pack_bits(mask), resolution)
    cells = nn.functional.pad(mask, (0, resolution**3 - mask.numel())).view(1, 1, *[resolution] * 3).float()
    expected = nn.functional.max_pool3d(cells, 4, ceil_mode=True).flatten().to(torch.uint8)
    assert torch.equal(blocks, expected)


@pytest.mark.parametrize("order", ORDERS)
def test_spherical_harmonics(order: str) -> None:
    directions = random_rays(150)[1]
    got = cuda.spherical_harmonics(EmulatedDevice(80, order), directions)
    assert relative_error(got, reference.spherical_harmonics(directions.double())) <= 1e-6


def exact_composite(
    sigma: Tensor, rgb: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels [R, 5], and the gradients of sigma and rgb for pixel gradients ``weight``; float64."""
    sigma, rgb = sigma.double().requires_grad_(), rgb.double().requires_grad_()
    color, alpha, depth = reference.composite(sigma, rgb, PackedSamples(offsets, starts.double(), ends.double()))
    out = torch.cat([color, alpha[:, None], depth[:, None]], dim=1)
    return out, *torch.autograd.grad((out * weight).sum(), (sigma, rgb))


@pytest.mark.parametrize("scale", [1e-3, 3.0, 1e8])
def test_composite(scale: float) -> None:
    device = EmulatedDevice(80, "shuffled")
    generator = torch.Generator().manual_seed(0)
    samples, sigma = random_samples([40, 0, 7, 300, 0], generator)
    rgb, weight = torch.rand(len(sigma), 3, generator=generator), torch.randn(5, 5, generator=generator)
    arrays = (scale * sigma, rgb, samples.t_starts, samples.t_ends, samples.ray_offsets)
    got = [cuda.composite_forward(device, *arrays), *cuda.composite_backward(device, *arrays, weight)]
    for mine, theirs in zip(got, exact_composite(*arrays, weight), strict=True):
        assert relative_error(mine, theirs) <= 1e-4


def select_visible(
    device: SimulatedDevice, sigma: Tensor, samples: PackedSamples, rows: list[Tensor]
) -> tuple[PackedSamples, list[Tensor]]:
    arrays = (samples.t_starts, samples.t_ends, samples.ray_offsets, [each.contiguous() for each in rows])
    found = cuda.select_visible(device, sigma, *arrays, -math.log(reference.MIN_TRANSMITTANCE))
    return PackedSamples(*found[:3]), found[3:]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("counts", "scale"), VISIBLE)
def test_select_visible(counts: list[int], scale: float, order: str) -> None:
    check_visible(functools.partial(select_visible, EmulatedDevice(80, order)), counts, scale)


def test_offsets_that_lie_do_not_lead_outside_of_the_arrays() -> None:
    device = EmulatedDevice(80)
    ones = torch.ones(4)
    for offsets in ([-3, 2, 9], [0, 9, 1], [5, 6, 7]):
        arrays = (ones, torch.ones(4, 3), ones, ones, torch.tensor(offsets))
        cuda.composite_forward(device, *arrays)
        cuda.composite_backward(device, *arrays, torch.ones(2, 5))
        rays = torch.ones(2, 3)
        cuda.sample_points(device, rays, rays, arrays[4], ones, ones, BOUNDED[0])
        cuda.select_visible(device, ones, ones, ones, arrays[4], [ones], 2.0)


def field(kind: str, features: int = 2, geometry: int = 15, **options: object) -> RadianceField:
    torch.manual_seed(3)
    grid = HashGridLayout.build(4, features, 10, 4, 32)
    table = torch.randn(grid.num_entries, features)
    density = build_network(kind, grid.out_features, 16, 1, 1 + geometry, 12, **options)  # type: ignore[arg-type]
    color = build_network(kind, 16 + geometry, 16, 2, 3, 12, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        return RadianceField(table, grid, merge_chain(density), merge_chain(color))


def render(
    device: SimulatedDevice, of: RadianceField, rays: list[Tensor], bits: Tensor, *where: object
) -> list[Tensor]:
    networks = pack_chain(of.density), pack_chain(of.color)
    field = (of.table, of.layout, *networks, reference.MIN_TRANSMITTANCE)
    out, samples = cuda.render(device, *rays, bits, RESOLUTION, *where, *field)  # type: ignore[arg-type]
    return [out[:, :3], out[:, 3], out[:, 4], samples]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["eugen", "mlp"])
@SPACES
def test_render(space: Space, rule: StepRule, kind: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUGEN_BACKEND", "reference")
    of, rays, bits = field(kind), random_rays(200)[:4], random_bits(0.3)
    expected = reference.render(*rays, bits, RESOLUTION, space, rule, of)
    assert expected[1].max() > 0.5  # the scene is not trivial
    assert expected[3].sum() > 500
    got = render(EmulatedDevice(80, order), of, list(rays), bits, space, rule)
    for mine, theirs in zip(got[:3], expected[:3], strict=True):
        assert relative_error(mine, theirs) <= 5e-3
    assert torch.equal(got[3], expected[3])


@pytest.mark.parametrize(
    ("options", "architecture"),
    [({"order": 2, "geometry": 7}, 75), ({"features": 4, "norm_first": True}, 80), ({"features": 1}, 90)],
)
def test_render_variants(options: dict[str, int], architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUGEN_BACKEND", "reference")
    of, rays, bits = field("eugen", **options), random_rays(40)[:4], random_bits(0.3)
    expected = reference.render(*rays, bits, RESOLUTION, *BOUNDED, of)
    got = render(EmulatedDevice(architecture, "shuffled"), of, list(rays), bits, *BOUNDED)
    for mine, theirs in zip(got[:3], expected[:3], strict=True):
        assert relative_error(mine, theirs) <= 5e-3


def test_render_with_a_table_of_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUGEN_BACKEND", "reference")
    of, rays, bits = field("eugen"), random_rays(40)[:4], random_bits(0.3)
    half = replace(of, table=of.table.half())
    expected = reference.render(*rays, bits, RESOLUTION, *BOUNDED, replace(of, table=half.table.float()))
    got = render(EmulatedDevice(80), half, list(rays), bits, *BOUNDED)
    for mine, theirs in zip(got[:3], expected[:3], strict=True):
        assert relative_error(mine, theirs) <= 5e-3


def test_a_density_that_is_not_a_number_is_no_surface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUGEN_BACKEND", "reference")
    of = field("eugen")
    assert of.density.bias is not None
    of.density.bias[0] = math.nan
    bits = torch.full((RESOLUTION**3 // 8,), 255, dtype=torch.uint8)
    rgb, alpha, _, samples = render(EmulatedDevice(80), of, list(random_rays(50)[:4]), bits, *BOUNDED)
    assert samples.any()
    assert torch.equal(alpha.isnan(), samples > 0)
    assert torch.equal(rgb.isnan().any(dim=1), samples > 0)


def test_render_stops_at_opaque_surfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUGEN_BACKEND", "reference")
    of = field("eugen")
    assert of.density.bias is not None
    of.density.bias[0] = 30.0  # every sample is opaque
    bits = torch.full((RESOLUTION**3 // 8,), 255, dtype=torch.uint8)
    _, alpha, _, samples = render(EmulatedDevice(80), of, list(random_rays(50)[:4]), bits, *BOUNDED)
    assert samples.max() == 1
    assert alpha[samples > 0].min() > 0.999
    nothing = [t[:0] for t in random_rays(1)[:4]]
    assert [t.shape[0] for t in render(EmulatedDevice(80), of, nothing, bits, *BOUNDED)] == [0] * 4
