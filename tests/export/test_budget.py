"""The largest table that a budget allows; test_web.py tests the complete export."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from eugen_nerf.errors import UserError
from eugen_nerf.export.budget import fit_table
from eugen_nerf.field import HashGrid
from eugen_nerf.ops import HashGridLayout


@pytest.mark.parametrize("log2_table_size", [6, 8, 9])
def test_a_table_that_cannot_become_small_enough_is_refused_with_its_smallest_size(log2_table_size: int) -> None:
    """A table of at most 256 entries per level is not reduced."""
    layout = HashGridLayout.build(3, 2, log2_table_size, 4, 24)
    pipeline = SimpleNamespace(model=SimpleNamespace(field=SimpleNamespace(encoding=HashGrid(layout, "reference"))))
    smallest = layout.with_table_size(min(log2_table_size, 8)).num_entries * 2 + 3 * 2 * 4
    with pytest.raises(UserError, match=f"--size-budget leaves 0.000 MB .* form takes {smallest / 1e6:.3f} MB"):
        fit_table(pipeline, 100, lambda line: None)
    with pytest.raises(UserError, match=f"leaves nothing .* Allow {(smallest + 50_000) / 1e6:.3f} MB more"):
        fit_table(pipeline, -50_000, lambda line: None)  # networks and occupancy alone exceed the budget
