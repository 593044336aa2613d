"""Make a scene file smaller: bytes instead of half floats, then smaller tables that are retrained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from eugen_nerf.errors import UserError
from eugen_nerf.export.tables import StoredTable, folded, half_precision, quantized
from eugen_nerf.field import HashGrid
from eugen_nerf.ops import HashGridLayout
from eugen_nerf.optim import BETAS, MaskedAdam
from eugen_nerf.plugin.evaluation import forked_rng
from eugen_nerf.plugin.runs import fixed_image_order

REFIT_STEPS = 300
# A trained table changes little. Learning rates decay to a thirtieth, as in training.
TABLE_RATE, NETWORK_RATE, FINAL_PART = 1e-2, 5e-4, 1 / 30
SMALLEST_LOG2 = 8


def fit_table(pipeline: Any, most_bytes: int, tell: Callable[[str], None], steps: int = REFIT_STEPS) -> StoredTable:
    """Store a run's hash table in at most `most_bytes`, and set the pipeline's model to the stored values.

    The table is stored as half floats if they fit, else with one byte per value. If that is too large as well, the
    largest table that fits is folded from the trained one and trained for some more steps together with the networks.

    Args:
        pipeline: of a run of eugen-nerf, with its training data.
        most_bytes: maximum size of the stored table.
        tell: called with a line on what was done.
        steps: training steps after folding.

    Raises:
        UserError: no table is that small, or the table has values that are not finite.
    """
    field = pipeline.model.field
    grid: HashGrid = field.encoding
    stored = half_precision(grid.table, grid.layout)
    if stored.num_bytes <= most_bytes:
        tell("The hash table fits as half floats; no reduction was needed.")
        return _adopt(grid, stored)
    stored = quantized(grid.table, grid.layout)
    if stored.num_bytes <= most_bytes:
        tell("Hash table stored with one byte per value.")
        return _adopt(grid, stored)
    log2 = _largest_that_fits(grid, most_bytes)
    table, layout = folded(grid.table.detach().cpu(), grid.layout, log2)
    smaller = HashGrid(layout, grid.backend).to(grid.table.device)
    smaller.table.data.copy_(table)
    field.encoding = smaller
    field.config.log2_hashmap_size = log2
    tell(f"Hash table folded from 2^{grid.layout.log2_table_size} to 2^{log2} entries a level; training {steps} steps.")
    _train(pipeline, steps)
    return _adopt(smaller, quantized(smaller.table, layout))


def _largest_that_fits(grid: HashGrid, most_bytes: int) -> int:
    layout = grid.layout
    for log2 in range(layout.log2_table_size - 1, SMALLEST_LOG2 - 1, -1):
        if _quantized_bytes(layout.with_table_size(log2)) <= most_bytes:
            return log2
    # A table that is already below the smallest size keeps its size.
    smallest = layout.with_table_size(min(layout.log2_table_size, SMALLEST_LOG2))
    left = f"leaves {most_bytes / 1e6:.3f} MB" if most_bytes > 0 else "leaves nothing"
    takes = _quantized_bytes(smallest)
    raise UserError(
        f"--size-budget {left} for the hash table, and its smallest form takes {takes / 1e6:.3f} MB. Allow "
        f"{(takes - most_bytes) / 1e6:.3f} MB more, or train with fewer levels (--pipeline.model.field.num-levels)."
    )


def _quantized_bytes(layout: HashGridLayout) -> int:
    """Size of a table with one byte per value and a scale for each level and feature."""
    return (layout.num_entries + 4 * layout.num_levels) * layout.features_per_level


def _adopt(grid: HashGrid, stored: StoredTable) -> StoredTable:
    """Make the model render with the stored values."""
    with torch.no_grad():
        grid.table.copy_(stored.values())
    return stored


def _train(pipeline: Any, steps: int) -> None:
    field = pipeline.model.field
    networks = [*field.density_network.parameters(), *field.color_network.parameters()]
    optimizers = [
        MaskedAdam([field.encoding.table], lr=TABLE_RATE, betas=BETAS, eps=1e-15),
        torch.optim.Adam(networks, lr=NETWORK_RATE, betas=BETAS, eps=1e-15),
    ]
    schedules = [torch.optim.lr_scheduler.LinearLR(o, 1.0, FINAL_PART, max(steps, 1)) for o in optimizers]
    pipeline.train()
    with forked_rng(pipeline.device), fixed_image_order():
        torch.manual_seed(0)
        for step in range(steps):
            _, losses, _ = pipeline.get_train_loss_dict(step)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            sum(losses.values()).backward()
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
    pipeline.eval()
