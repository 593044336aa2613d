"""Tile configurations of networks, and which networks fit into which GPU."""

from __future__ import annotations

import pytest

from eugen_nerf.ops.packing import pack_chain
from eugen_nerf.ops.tiles import SHARED_MEMORY, Shape, plan, why_not_cuda
from tests.ops.comparisons import CHAINS, chain_of


@pytest.mark.parametrize("memory", sorted(set(SHARED_MEMORY.values())))
@pytest.mark.parametrize("name", CHAINS)
def test_every_chain_fits(name: str, memory: int) -> None:
    spec = pack_chain(chain_of(name)).spec
    assert why_not_cuda(spec) is None
    tiles = plan(spec, memory)
    assert tiles is not None
    assert tiles.shared_bytes <= memory
    assert tiles.back_shared_bytes <= memory
    assert tiles.rows % 16 == tiles.back_rows % 16 == 0


def test_wide_networks_on_small_memory() -> None:
    wide = (2, 32, 256, 1, 0, 1, 1, 0, 256, 256, 1, 0, 1, 1, 0, 256, 1, 32)
    for memory in SHARED_MEMORY.values():
        assert plan(wide, memory) is not None
    assert plan(wide, 8192) is None


def test_shape_counts_padding() -> None:
    shape = Shape((1, 7, 20, 2, 0, 1, 1, 1, 3, 1, 7))  # order 2: three projections of 20, two features of 20
    assert shape.k == [16, 64]
    assert shape.n == [96, 16]
    assert shape.vector_bytes == 4 * (2 * 96 + 16)
    assert shape.weight_bytes == 2 * (96 * 24 + 16 * 72)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ((1, 7, 20, 1, 0, 3, 0, 0, 3, 1, 7), None),
        ((1, 7, 20, 1, 0, 4, 0, 0, 3, 1, 7), None),
        ((1, 300, 20, 1, 0, 1, 0, 0, 3, 1, 300), "wider than 256"),
        ((1, 7, 200, 2, 0, 1, 0, 0, 3, 1, 7), "wider than 256"),
        ((0, 257, 1, 7), "wider than 256"),
        ((9, *((16, 16, 1, 0, 1, 0, 0) * 9), 3, 1, 16), "9 stages"),
        ((1, 256, 256, 1, 0, 1, 0, 0, 256, 1, 256), None),
    ],
)
def test_why_not_cuda(spec: tuple[int, ...], reason: str | None) -> None:
    found = why_not_cuda(spec)
    assert found is None if reason is None else found is not None and reason in found
