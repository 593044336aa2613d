"""How a network's kernels divide their work, derived from the network's widths and a GPU's shared memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eugen_nerf.ops.network_spec import has_bias, inputs_of, outputs_of, stages_of

# Bytes of shared memory available to a block, by compute capability (CUDA C++ Programming Guide, table of technical
# specifications). A device reports its own value; these are used without a device.
SHARED_MEMORY = {75: 65536, 80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}

OLDEST_ARCHITECTURE = 75  # Turing, the first architecture with ldmatrix
MAX_STAGES = 8  # as in src/chain.cuh
MAX_LEVELS = 32  # of a hash grid, as in src/grid.cuh
WIDEST = 256  # padded inputs or outputs of a matrix
ROW_PADDING = 8  # halves, as in src/chain.cuh
RENDER_WARPS = 4  # of a block of src/render.cu
# Registers of a thread of the backward kernel for gradients and sums; its other values need the rest of the 255.
HELD_REGISTERS = 144

IDENTITY, RELU = 0, 1  # as in packing.PHI_NUMBERS


class Shape:
    """A packed chain's padded widths, as in src/chain.cuh. Matrix i belongs to stage i, the last one to the output."""

    def __init__(self, spec: Sequence[int]) -> None:
        self.spec = tuple(spec)
        stages = stages_of(spec)
        self.stages = len(stages)
        self.orders = [stage.order for stage in stages]
        self.phis = [stage.phi for stage in stages]
        self.out, self.inputs = outputs_of(spec), inputs_of(spec)
        features = [stage.features for stage in stages]
        in_blocks = [(1, self.inputs), *zip(self.orders, features, strict=True)]
        self.out_blocks = [*(stage.projections for stage in stages), 1]
        out_block = [*features, self.out]
        norm_rows = [*(stage.norm_rows for stage in stages), 0]
        self.k = [blocks * padded(length) for blocks, length in in_blocks]
        self.n = [
            blocks * padded(length) + padded(rows)
            for blocks, length, rows in zip(self.out_blocks, out_block, norm_rows, strict=True)
        ]
        self.row = [k + ROW_PADDING for k in self.k]
        self.has_norm = [*(bool(stage.norm) for stage in stages), False]
        self.has_vectors = [*(bool(stage.offsets or stage.norm) for stage in stages), has_bias(spec)]

    @property
    def vector_bytes(self) -> int:
        return 4 * sum(n * (1 + norm) for n, norm in zip(self.n, self.has_norm, strict=True))

    @property
    def weight_bytes(self) -> int:
        return 2 * sum(n * row for n, row in zip(self.n, self.row, strict=True))

    def weights_in_shared(self, streamed: bool) -> int:
        """Bytes of the weights in shared memory: all of them, or twice the largest part for double buffering."""
        parts = [
            max(16 * blocks * row, n * (16 + ROW_PADDING))
            for blocks, row, n in zip(self.out_blocks, self.row, self.n, strict=True)
        ]
        return self.vector_bytes + (2 * 2 * max(parts) if streamed else self.weight_bytes)

    def backward_bytes(self, warps: int, tiles: int, streamed: bool) -> int:
        """Bytes of shared memory of the backward kernel: weights, activations of a block's rows, one gradient."""
        rows = 16 * warps * tiles
        return self.weights_in_shared(streamed) + 2 * rows * (sum(self.row) + max(self.n) + ROW_PADDING)

    def sum_registers(self, warps: int) -> int:
        """Registers per thread for a warp's share of all weight gradients."""
        total = 0
        for n, k, vectors in zip(self.n, self.k, self.has_vectors, strict=True):
            total += 8 * -(-(n // 16) * (k // 16) // warps) + (4 * -(-(n // 16) // warps) if vectors else 0)
        return total

    def forward_registers(self, tiles: int) -> int:
        """Registers per thread for activations during the evaluation of a stage."""
        following = [*self.k[1:], 0]
        return tiles * max((k + after) // 4 for k, after in zip(self.k, following, strict=True))

    def backward_registers(self, tiles: int) -> int:
        """Registers per thread for gradients, and for the inputs of stages whose projections are recomputed."""
        most = max(self.n[-1] // 4, self.forward_registers(1))
        for i in range(1, self.stages + 1):
            shown = self.orders[i - 1] == 1 and self.phis[i - 1] in (IDENTITY, RELU)
            again = 0 if shown else self.k[i - 1]
            most = max(most, (self.n[i] + self.n[i - 1] + again) // 4)
        return tiles * most


def padded(n: int) -> int:
    """Round up to whole tensor-core tiles."""
    return -(-n // 16) * 16


@dataclass(frozen=True)
class Tiles:
    """The tile configuration that the kernels in src/network.cu are compiled for."""

    warps: int
    tiles: int
    streamed: bool
    shared_bytes: int
    back_warps: int
    back_tiles: int
    back_streamed: bool
    back_shared_bytes: int
    keep_sums: bool

    def constants(self) -> tuple[str, ...]:
        """Preprocessor definitions."""
        return tuple(f"EUGEN_{name.upper()}={int(value)}" for name, value in vars(self).items())

    @property
    def rows(self) -> int:
        """Rows that a block of the forward kernel processes at a time."""
        return 16 * self.warps * self.tiles

    @property
    def back_rows(self) -> int:
        """Rows that a block of the backward kernel processes at a time."""
        return 16 * self.back_warps * self.back_tiles


@functools.cache
def plan(spec: tuple[int, ...], shared_memory: int) -> Tiles | None:
    """Choose tiles for a network on a GPU with the given bytes of shared memory per block; None if nothing fits.

    Weights stay in shared memory if possible. More rows per warp reuse each weight that is read more often.
    """
    shape = Shape(spec)
    forward = next(_forward_choices(shape, shared_memory), None)
    backward = next(_backward_choices(shape, shared_memory), None)
    return None if forward is None or backward is None else _both(forward, backward)


def choices(spec: tuple[int, ...], shared_memory: int) -> tuple[list[Tiles], list[Tiles]]:
    """All tiles that fit, for measurements: those for the forward and those for the backward kernel.

    `plan` takes the first of each. The other kernel's are those of `plan`.
    """
    shape = Shape(spec)
    forward, backward = list(_forward_choices(shape, shared_memory)), list(_backward_choices(shape, shared_memory))
    return [_both(each, backward[0]) for each in forward], [_both(forward[0], each) for each in backward]


_Forward = tuple[int, int, bool, int]  # the first fields of Tiles
_Backward = tuple[int, int, bool, int, bool]  # and the others


def _both(forward: _Forward, backward: _Backward) -> Tiles:
    warps, tiles, streamed, shared_bytes = forward
    return Tiles(warps, tiles, streamed, shared_bytes, *backward)


def _forward_choices(shape: Shape, shared_memory: int) -> Iterator[_Forward]:
    for streamed in (False, True):
        for warps, tiles in ((4, 2), (8, 1), (4, 1)):
            needed = shape.weights_in_shared(streamed)
            if shape.forward_registers(tiles) <= 136 and needed <= shared_memory:
                yield warps, tiles, streamed, needed


def _backward_choices(shape: Shape, shared_memory: int) -> Iterator[_Backward]:
    for keep_sums, streamed in ((True, False), (False, False), (True, True), (False, True)):
        for warps, tiles in ((4, 2), (8, 1), (4, 1), (2, 1), (1, 1)):
            held = shape.backward_registers(tiles) + (shape.sum_registers(warps) if keep_sums else 0)
            needed = shape.backward_bytes(warps, tiles, streamed)
            if held <= HELD_REGISTERS and needed <= shared_memory:
                yield warps, tiles, streamed, needed, keep_sums


def render_shared_bytes(density_spec: Sequence[int], color_spec: Sequence[int]) -> int:
    """Bytes of shared memory of a block of src/render.cu: the weights of both networks, and the rows of each warp."""
    density, color = Shape(density_spec), Shape(color_spec)
    weights = density.weights_in_shared(streamed=False) + color.weights_in_shared(streamed=False)
    return weights + RENDER_WARPS * 32 * (2 * (density.row[0] + color.row[0]) + 4 * 4)


def render_blocks(density_spec: Sequence[int], color_spec: Sequence[int]) -> int:
    """Blocks of src/render.cu that share a multiprocessor's registers.

    Fewer fit for products of many projections, which need more registers because they hold both factors.
    """
    shapes = Shape(density_spec), Shape(color_spec)
    products = [n for shape in shapes for n, order in zip(shape.n, shape.orders, strict=False) if order > 1]
    return 2 if max(products, default=0) >= 64 else 3


def why_not_cuda(spec: Sequence[int]) -> str | None:
    """Say why there are no CUDA kernels for a packed chain; None if there are."""
    shape = Shape(spec)
    if shape.stages > MAX_STAGES:
        return f"{shape.stages} stages are more than {MAX_STAGES}"
    if max(shape.k) > WIDEST or max(shape.n[-1:]) > WIDEST:
        return f"a layer is wider than {WIDEST}"
    return None
