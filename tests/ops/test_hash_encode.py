"""hash_encode against an interpolation written vertex by vertex."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from eugen_nerf.ops import HashGridLayout, hash_encode

SMALL = HashGridLayout.build(3, 2, 6, 2, 9)  # first level dense, the others hashed
DENSE = HashGridLayout.build(2, 3, 12, 3, 7)


def brute_force(x: torch.Tensor, table: torch.Tensor, layout: HashGridLayout) -> torch.Tensor:
    """Trilinear interpolation with Python integers, one sample and vertex at a time."""
    rows = []
    for point in x:
        features = []
        for level, resolution in enumerate(layout.resolutions):
            scaled = [float(p) * resolution for p in point]
            cell = [min(int(s), resolution - 1) for s in scaled]
            total = torch.zeros(layout.features_per_level, dtype=x.dtype)
            for corner in itertools.product((0, 1), repeat=3):
                vertex = [c + d for c, d in zip(cell, corner, strict=True)]
                weight = 1.0
                for s, c, d in zip(scaled, cell, corner, strict=True):
                    weight *= (s - c) if d else 1 - (s - c)
                if (resolution + 1) ** 3 <= 2**layout.log2_table_size:
                    row = vertex[0] + (resolution + 1) * (vertex[1] + (resolution + 1) * vertex[2])
                else:
                    hashed = vertex[0]
                    for value, prime in zip(vertex[1:], (2654435761, 805459861), strict=True):
                        hashed ^= (value * prime) % 2**32
                    row = hashed % 2**layout.log2_table_size
                total = total + weight * table[layout.offsets[level] + row]
            features.append(total)
        rows.append(torch.cat(features))
    return torch.stack(rows) if rows else torch.empty(0, layout.out_features, dtype=x.dtype)


@pytest.mark.parametrize("layout", [SMALL, DENSE], ids=["hashed", "dense"])
@pytest.mark.parametrize("n", [0, 1, 7, 33])
def test_hash_encode(layout: HashGridLayout, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    table = torch.randn(layout.num_entries, layout.features_per_level, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(hash_encode(x, table, layout), brute_force(x, table, layout))
    single = hash_encode(x.float(), table.float(), layout)
    torch.testing.assert_close(single.double(), brute_force(x, table, layout), rtol=1e-4, atol=1e-4)


def test_hash_encode_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5, 3, generator=generator, dtype=torch.float64).requires_grad_()
    table = torch.randn(SMALL.num_entries, 2, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: hash_encode(a, b, SMALL), (x, table))


def test_hash_encode_at_the_faces_and_beyond() -> None:
    table = torch.randn(DENSE.num_entries, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    encoded = hash_encode(corners, table, DENSE)
    for corner, features in zip(corners, encoded, strict=True):
        for level, resolution in enumerate(DENSE.resolutions):
            vertex = (corner * resolution).long()
            row = vertex[0] + (resolution + 1) * (vertex[1] + (resolution + 1) * vertex[2])
            expected = table[DENSE.offsets[level] + row]
            torch.testing.assert_close(features[3 * level : 3 * level + 3], expected)
    outside = corners * 3 - 1
    torch.testing.assert_close(hash_encode(outside, table, DENSE), encoded)


def test_layout_levels_grow_to_the_finest() -> None:
    layout = HashGridLayout.build(16, 2, 19, 16, 2048)
    assert layout.resolutions[0] == 16
    assert layout.resolutions[-1] == 2048
    assert list(layout.resolutions) == sorted(layout.resolutions)
    assert layout.used_rows == tuple(min((r + 1) ** 3, 2**19) for r in layout.resolutions)
    for begin, end, used in zip(layout.offsets, layout.offsets[1:], layout.used_rows, strict=False):
        assert begin % 8 == 0
        assert used <= end - begin < used + 8
    assert layout.out_features == 32


def test_padding_keeps_the_rows_of_each_level() -> None:
    used = torch.randn(sum(SMALL.used_rows), 2, generator=torch.Generator().manual_seed(0))
    table = SMALL.with_padding(used)
    assert table.shape == (SMALL.num_entries, 2)
    for level, rows in enumerate(used.split(SMALL.used_rows)):
        assert torch.equal(table[SMALL.offsets[level] :][: len(rows)], rows)
    assert torch.equal(torch.cat(SMALL.levels(table)), used)
    assert table.count_nonzero() == used.count_nonzero()


@pytest.mark.parametrize("bad", [dict(num_levels=0), dict(max_resolution=3), dict(features_per_level=0)])
def test_layout_refuses_nonsense(bad: dict[str, int]) -> None:
    good = dict(num_levels=2, features_per_level=2, log2_table_size=8, base_resolution=4, max_resolution=8)
    with pytest.raises(ValueError, match=r"must be at least 1|below base_resolution"):
        HashGridLayout.build(**{**good, **bad})


def test_a_coordinate_that_is_not_a_number_counts_as_zero() -> None:
    layout = HashGridLayout.build(2, 2, 8, 4, 8)
    table = torch.randn(layout.num_entries, 2, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[math.nan, 0.3, 0.7], [math.inf, 0.3, -math.inf]])
    same = torch.tensor([[0.0, 0.3, 0.7], [1.0, 0.3, 0.0]])
    expected = hash_encode(same, table, layout, backend="reference")
    assert torch.equal(hash_encode(x, table, layout, backend="reference"), expected)
