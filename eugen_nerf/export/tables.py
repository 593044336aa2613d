"""The hash table as a scene file stores it: half floats, or bytes with a scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eugen_nerf.errors import UserError
from eugen_nerf.ops import HashGridLayout
from eugen_nerf.ops.reference import spatial_hash

# A byte represents (byte - 128) / 127, so the middle byte is an exact zero.
ZERO_BYTE, STEPS = 128, 127


@dataclass(frozen=True, eq=False)
class StoredTable:
    """A hash table ready to be written.

    Without `scale`, the data are the values. With it, they are bytes q, and a value of level l and feature f is
    ``scale[l, f] * c * |c|`` with ``c = (q - 128) / 127``. This is finer near zero, where most values of a trained
    table are.
    """

    layout: HashGridLayout
    data: npt.NDArray[np.float16] | npt.NDArray[np.uint8]  # [layout.num_entries, F]
    scale: npt.NDArray[np.float32] | None = None  # [L, F]

    @property
    def num_bytes(self) -> int:
        """Size in the scene file."""
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def values(self) -> Tensor:
        """The table as the viewer reads it: [layout.num_entries, F] float32."""
        if self.scale is None:
            return torch.from_numpy(self.data.astype(np.float32))
        c = (self.data.astype(np.float32) - ZERO_BYTE) / STEPS
        return torch.from_numpy(c * np.abs(c) * _per_row(self.scale, self.layout))


def half_precision(table: Tensor, layout: HashGridLayout) -> StoredTable:
    """Store the table [layout.num_entries, F] as half floats.

    Raises:
        UserError: a value is not finite, or too large for a half float.
    """
    values = _finite(table)
    with np.errstate(over="ignore"):
        data = values.astype(np.float16)
    if not np.isfinite(data).all():
        raise UserError(
            f"The hash table holds values up to {np.abs(values).max():.3g}, more than half floats can (65504): "
            "the training has diverged. Train again, with a lower learning rate."
        )
    return StoredTable(layout, data)


def quantized(table: Tensor, layout: HashGridLayout) -> StoredTable:
    """Store the table [layout.num_entries, F] with one byte per value, scaled by the maximum of level and feature.

    Raises:
        UserError: a value is not finite.
    """
    values = _finite(table)
    scale = np.stack([np.abs(rows).max(axis=0) for rows in np.split(values, layout.offsets[1:-1])])
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    relative = values / _per_row(scale, layout)
    c = np.sign(relative) * np.sqrt(np.abs(relative))
    return StoredTable(layout, np.round(c * STEPS + ZERO_BYTE).astype(np.uint8), scale)


def folded(table: Tensor, layout: HashGridLayout, log2_table_size: int) -> tuple[Tensor, HashGridLayout]:
    """Fold a table into a smaller one, as a first approximation of the same function.

    In a hashed level, the row of a vertex is the low bits of its hash. Rows of the larger table that agree in the
    remaining bits therefore share a row of the smaller one. It gets their mean, weighted by squared length, because
    rows that were never trained are near zero and should not pull the others toward zero.

    Args:
        table: [layout.num_entries, F].
        log2_table_size: logarithm of the maximum number of entries of a level, below the layout's.

    Returns:
        The table and its layout, which has the same resolutions.
    """
    smaller = layout.with_table_size(log2_table_size)
    parts = []
    for level, rows in enumerate(layout.levels(table)):
        if smaller.is_dense(level):
            parts.append(rows)
            continue
        target = _hash_rows(layout, level) & ((1 << log2_table_size) - 1)
        weights = rows.square().sum(dim=1, keepdim=True) + 1e-12
        total = torch.zeros(1 << log2_table_size, rows.shape[1] + 1, dtype=rows.dtype)
        total.index_add_(0, target, torch.cat([rows * weights, weights], dim=1))
        parts.append(total[:, :-1] / total[:, -1:].clamp_min(1e-12))
    return smaller.with_padding(torch.cat(parts)), smaller


def _hash_rows(layout: HashGridLayout, level: int) -> Tensor:
    """Hash of each row of a level, in its low bits: [rows]. Rows of a dense level are vertices and must be hashed."""
    rows = torch.arange(layout.used_rows[level])
    if not layout.is_dense(level):
        return rows
    side = layout.resolutions[level] + 1
    vertices = torch.stack([rows % side, rows // side % side, rows // (side * side)], dim=-1)
    return spatial_hash(vertices)


def _per_row(scale: npt.NDArray[np.float32], layout: HashGridLayout) -> npt.NDArray[np.float32]:
    return np.repeat(scale, np.diff(layout.offsets), axis=0)


def _finite(table: Tensor) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = table.detach().float().cpu().numpy()
    if not np.isfinite(values).all():
        raise UserError("The hash table holds values that are not numbers: the training has diverged. Train again.")
    return values
