"""composite and select_visible against the quadrature formula written as a loop, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eugen_nerf.ops import MIN_TRANSMITTANCE, PackedSamples, composite, select_visible, transmittance


def packed(counts: list[int], generator: torch.Generator, dtype: torch.dtype = torch.float64) -> PackedSamples:
    offsets = torch.tensor([0, *counts]).cumsum(0)
    starts, ends = [], []
    for count in counts:
        edges = torch.rand(2 * count, generator=generator, dtype=torch.float64).cumsum(0)
        starts.append(edges[::2])
        ends.append(edges[1::2])
    empty = torch.empty(0, dtype=torch.float64)
    return PackedSamples(offsets, torch.cat([empty, *starts]).to(dtype), torch.cat([empty, *ends]).to(dtype))


def brute_force(sigma: list[float], rgb: list[list[float]], samples: PackedSamples) -> list[list[float]]:
    rows = []
    offsets = samples.ray_offsets.tolist()
    for begin, end in itertools.pairwise(offsets):
        transmittance, total = 1.0, [0.0] * 5
        for n in range(begin, end):
            start, stop = samples.t_starts[n].item(), samples.t_ends[n].item()
            alpha = 1 - math.exp(-sigma[n] * (stop - start))
            for channel, value in enumerate([*rgb[n], 1.0, 0.5 * (start + stop)]):
                total[channel] += transmittance * alpha * value
            transmittance *= 1 - alpha
        rows.append(total)
    return rows


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_composite(counts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    samples = packed(counts, generator)
    n = samples.num_samples
    sigma = 3 * torch.rand(n, generator=generator, dtype=torch.float64)
    rgb = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    color, alpha, depth = composite(sigma, rgb, samples)
    expected = torch.tensor(brute_force(sigma.tolist(), rgb.tolist(), samples), dtype=torch.float64)
    torch.testing.assert_close(torch.cat([color, alpha[:, None], depth[:, None]], dim=1), expected)


def test_composite_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = packed([3, 0, 5], generator)
    sigma = torch.rand(8, generator=generator, dtype=torch.float64).requires_grad_()
    rgb = torch.rand(8, 3, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: composite(a, b, samples), (sigma, rgb))


@pytest.mark.parametrize("dense", [1e5, 1e30, math.inf])
def test_composite_a_dense_ray_does_not_disturb_the_next(dense: float) -> None:
    """In single precision, one running sum over all rays must not reduce the precision of later rays."""
    generator = torch.Generator().manual_seed(0)
    samples = packed([1024, 4], generator, torch.float32)
    sigma = torch.cat([torch.full((1024,), dense), torch.tensor([0.1, 0.2, 0.3, 0.4])])
    rgb = torch.rand(1028, 3, generator=generator)
    _, alpha, _ = composite(sigma, rgb, samples)
    last = -torch.expm1(-(sigma * (samples.t_ends - samples.t_starts))[1024:].double().sum())
    assert alpha[0] == pytest.approx(1.0, abs=1e-6)
    assert alpha[1].item() == pytest.approx(last.item(), rel=1e-6)


def test_composite_without_rays_or_samples() -> None:
    empty = torch.empty(0)
    for offsets in ([0], [0, 0, 0]):
        samples = PackedSamples(torch.tensor(offsets), empty, empty)
        color, alpha, depth = composite(empty, torch.empty(0, 3), samples)
        assert color.shape == (len(offsets) - 1, 3)
        assert not torch.cat([color.flatten(), alpha, depth]).any()


def test_transmittance() -> None:
    generator = torch.Generator().manual_seed(4)
    samples = packed([3, 0, 4], generator)
    sigma = 2 * torch.rand(7, generator=generator, dtype=torch.float64)
    expected = []
    for begin, end in itertools.pairwise(samples.ray_offsets.tolist()):
        passing = 1.0
        for n in range(begin, end):
            expected.append(passing)
            passing *= math.exp(-sigma[n] * (samples.t_ends[n] - samples.t_starts[n]))
    torch.testing.assert_close(transmittance(sigma, samples), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("dense", [1e18, 1e30, math.inf])
def test_transmittance_a_huge_density_spoils_no_other_ray(dense: float) -> None:
    samples = PackedSamples(torch.tensor([0, 2, 4]), torch.tensor([0.0, 1, 0, 1]), torch.tensor([1.0, 2, 1, 2]))
    got = transmittance(torch.tensor([dense, dense, 0.5, 0.5]), samples)
    torch.testing.assert_close(got, torch.tensor([1.0, 0.0, 1.0, math.exp(-0.5)]))


def test_transmittance_of_a_thin_ray_after_many_dense_ones() -> None:
    rays, each = 4000, 20
    edges = torch.arange(each + 1.0).expand(rays, -1)
    starts, ends = edges[:, :-1].reshape(-1), edges[:, 1:].reshape(-1)
    sigma = torch.full((rays * each,), 150.0)
    sigma[-each:] = 0.05
    got = transmittance(sigma, PackedSamples(each * torch.arange(rays + 1), starts, ends))
    torch.testing.assert_close(got[-each:], torch.exp(-0.05 * torch.arange(each)), rtol=1e-5, atol=1e-6)


def test_a_density_that_is_not_a_number_shows_in_its_own_ray_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = packed([3, 4, 0, 5], generator)
    sigma = torch.rand(12, generator=generator, dtype=torch.float64)
    rgb = torch.rand(12, 3, generator=generator, dtype=torch.float64)
    whole = torch.cat([part.view(4, -1) for part in composite(sigma, rgb, samples)], dim=1)
    light = transmittance(sigma, samples)
    sigma[4] = math.nan
    damaged = torch.cat([part.view(4, -1) for part in composite(sigma, rgb, samples)], dim=1)
    assert damaged[1].isnan().all()
    others = torch.tensor([0, 2, 3])
    torch.testing.assert_close(damaged[others], whole[others])
    assert transmittance(sigma, samples).isfinite().all()
    torch.testing.assert_close(transmittance(sigma, samples)[7:], light[7:])


def test_select_visible() -> None:
    generator = torch.Generator().manual_seed(1)
    samples = packed([9, 0, 40, 1, 25], generator)
    sigma = 4 * torch.rand(75, generator=generator, dtype=torch.float64)
    visible = []
    for begin, end in itertools.pairwise(samples.ray_offsets.tolist()):
        optical = 0.0
        for n in range(begin, end):
            if math.exp(-optical) >= MIN_TRANSMITTANCE:
                visible.append(n)
            optical += sigma[n].item() * (samples.t_ends[n] - samples.t_starts[n]).item()
    assert 30 < len(visible) < 70
    rows = torch.rand(75, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    got, (kept, densities) = select_visible(sigma, samples, [rows, sigma])
    assert torch.equal(got.t_starts, samples.t_starts[visible])
    assert torch.equal(got.t_ends, samples.t_ends[visible])
    assert torch.equal(got.ray_indices(), samples.ray_indices()[visible])
    assert torch.equal(densities, sigma[visible])
    assert torch.equal(kept, rows[visible])
    kept.sum().backward()
    assert rows.grad is not None
    assert rows.grad.sum() == kept.numel()
    again, _ = select_visible(densities, got, [])  # nothing is left to leave out
    assert torch.equal(again.ray_offsets, got.ray_offsets)
