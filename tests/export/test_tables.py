"""Half floats, bytes and smaller tables."""

from __future__ import annotations

import pytest
import torch

from eugen_nerf.errors import UserError
from eugen_nerf.export.tables import folded, half_precision, quantized
from eugen_nerf.ops import HashGridLayout, reference

LAYOUT = HashGridLayout.build(4, 2, 9, 4, 24)  # the first two levels dense, the others hashed


def random_table(layout: HashGridLayout, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return spread * torch.randn(layout.num_entries, layout.features_per_level, generator=generator)


def test_half_floats_keep_eleven_bits() -> None:
    table = random_table(LAYOUT)
    stored = half_precision(table, LAYOUT)
    assert stored.num_bytes == 2 * table.numel()
    assert ((stored.values() - table).abs() <= table.abs() * 2**-11 + 2**-25).all()


def test_bytes_are_finer_near_zero_and_keep_exact_zeros() -> None:
    table = random_table(LAYOUT)
    table[::3] = 0
    table[LAYOUT.offsets[2] : LAYOUT.offsets[3], 1] = 0  # no maximum to scale by
    stored = quantized(table, LAYOUT)
    values = stored.values()
    assert stored.scale is not None
    assert stored.scale.shape == (4, 2)
    assert stored.num_bytes == table.numel() + 4 * 8
    assert (values[table == 0] == 0).all()
    for level in range(4):
        rows = slice(LAYOUT.offsets[level], LAYOUT.offsets[level + 1])
        largest = table[rows].abs().amax(dim=0)
        # The step of c is 1/127, so that of c |c| is 2 |c| / 127. The error is at most half of it.
        c = (table[rows] / largest.clamp_min(1e-9)).abs().sqrt()
        assert ((values[rows] - table[rows]).abs() <= largest * (c / 127 + 1 / (4 * 127**2)) * 1.001).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e6])
def test_a_table_of_a_diverged_training_is_refused(bad: float) -> None:
    table = random_table(LAYOUT)
    table[5, 1] = bad
    with pytest.raises(UserError, match="diverged"):
        half_precision(table, LAYOUT)


def test_folding_keeps_what_vertices_of_the_smaller_table_share() -> None:
    """If rows that share a row of the smaller table are equal, the smaller table encodes the same function."""
    smaller = LAYOUT.with_table_size(7)
    assert smaller.resolutions == LAYOUT.resolutions
    assert smaller.is_dense(0)
    assert LAYOUT.is_dense(1)
    assert not smaller.is_dense(1)
    wanted = random_table(smaller)
    large = torch.zeros(LAYOUT.num_entries, 2)
    for level, resolution in enumerate(LAYOUT.resolutions):
        axis = torch.arange(resolution + 1)
        vertices = torch.cartesian_prod(axis, axis, axis)[:, None, None].expand(-1, LAYOUT.num_levels, 1, -1)
        rows = reference._vertex_rows(vertices, LAYOUT)[:, level, 0]
        large[rows] = wanted[reference._vertex_rows(vertices, smaller)[:, level, 0]]
    table, layout = folded(large, LAYOUT, 7)
    assert layout == smaller
    x = torch.rand(200, 3, generator=torch.Generator().manual_seed(5))
    expected = reference.hash_encode(x, large, LAYOUT)
    torch.testing.assert_close(reference.hash_encode(x, table, layout), expected, atol=1e-5, rtol=1e-4)


def test_folding_gives_trained_rows_more_weight() -> None:
    layout = HashGridLayout.build(1, 1, 6, 16, 16)
    table = torch.full((64, 1), 1e-4)
    table[3] = 2.0
    small, _ = folded(table, layout, 5)
    assert float(small[3]) > 1.99  # shared with row 35, which was never trained
