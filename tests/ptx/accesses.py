"""How well the accesses of a kernel's warps fit the memory: sectors of global memory, banks of shared memory.

    PYTHONPATH=benchmarks python -m tests.ptx.accesses [--markdown FILE]

prints this for the network kernels and for the gradient of the hash grid. It needs no GPU.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eugen_nerf.layers import build_network, merge_chain
from eugen_nerf.ops import HashGridLayout, cuda
from eugen_nerf.ops.network_spec import inputs_of, outputs_of
from eugen_nerf.ops.packing import PackedChain, pack_chain
from tests.ops.comparisons import in_padded_rows
from tests.ptx.device import PtxDevice
from tests.ptx.machine import WARP

SECTOR = 32  # bytes that global memory is transferred in
BANKS = 32  # of shared memory, four bytes wide
ROWS = 256  # a multiple of the rows that a block takes at once


@dataclass
class Count:
    """Accesses of one kind.

    Attributes:
        requests: instructions of warps.
        transfers: sectors that these touch; for shared memory, cycles, which are more if a bank is needed twice.
        needed: the least number of transfers for as many different bytes.
    """

    requests: int = 0
    transfers: int = 0
    needed: int = 0

    def __sub__(self, other: Count) -> Count:
        return Count(self.requests - other.requests, self.transfers - other.transfers, self.needed - other.needed)

    def __floordiv__(self, parts: int) -> Count:
        return Count(self.requests // parts, self.transfers // parts, self.needed // parts)


class Accesses(defaultdict[tuple[str, str, bool], Count]):
    """Counts by kernel, state space and whether they are stores. An object is the `watch` of a `PtxDevice`.

    "atomic" stands for atomic operations on global memory.
    """

    def __init__(self) -> None:
        super().__init__(Count)

    def __call__(
        self, kernel: str, space: str, write: bool, addresses: np.ndarray, threads: np.ndarray, size: int
    ) -> None:
        if space not in ("global", "atomic", "shared"):
            return
        count = self[kernel, space, write]
        for warp in np.unique(threads // WARP):
            here = threads // WARP == warp
            count.requests += 1
            if space != "shared":
                first = addresses[here].astype(np.int64)
                touched = np.unique(np.concatenate([first // SECTOR, (first + size - 1) // SECTOR]))
                count.transfers += len(touched)
                count.needed += -(-len(np.unique(first)) * size // SECTOR)
            else:
                for part in _parts(addresses[here].astype(np.int64), threads[here], size):
                    words = np.unique(part[:, None] // 4 + np.arange(max(1, size // 4)))
                    count.transfers += int(np.bincount(words % BANKS).max())
                    count.needed += 1


def _parts(addresses: np.ndarray, threads: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The parts of a request that a cycle can serve: 128 bytes, so 16 threads of 8 bytes or 8 of 16 bytes."""
    each = BANKS * 4 // max(size, 4)
    groups = threads % WARP // each
    for group in np.unique(groups):
        yield addresses[groups == group]


def of_network(
    width: int, dtype: torch.dtype, inputs: int = 32, outputs: int = 16, padded: bool = False
) -> dict[tuple[str, str, bool], Count]:
    """Accesses of the kernels of a merged EUGen network IN-W-W-OUT for 32 rows; those of its weights do not count.

    Args:
        padded: lay the inputs in padded rows.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        packed = pack_chain(merge_chain(build_network("eugen", inputs, 64, 2, outputs, width, norm_first=False)))
    few, many = (_of_rows(packed, rows, dtype, padded) for rows in (ROWS, 3 * ROWS))
    return {key: (count - few[key]) // (2 * ROWS // 32) for key, count in many.items()}


def _of_rows(packed: PackedChain, rows: int, dtype: torch.dtype, padded: bool) -> Accesses:
    accesses = Accesses()
    device = PtxDevice(90, blocks=1, watch=accesses)
    x, grad = (torch.randn(rows, of(packed.spec)).to(dtype) for of in (inputs_of, outputs_of))
    if padded:
        x = in_padded_rows(x)
    cuda.network_forward(device, x, packed.parameters, packed.spec, packed.eps)
    cuda.network_backward(device, x, packed.parameters, grad, packed.spec, packed.eps, True)
    return accesses


def of_hash_grid(positions: torch.Tensor, layout: HashGridLayout, architecture: int = 90) -> Count:
    """Additions of gradients to the hash grid's table, for positions [n, 3]."""
    accesses = Accesses()
    device = PtxDevice(architecture, watch=accesses)
    table = torch.zeros(layout.num_entries, layout.features_per_level)
    grad = torch.ones(len(positions), layout.out_features)
    cuda.hash_encode_backward(device, positions, table, grad, layout, True, False)
    return accesses["hash_encode_backward", "atomic", True]


def along_rays(rays: int, samples: int) -> torch.Tensor:
    """[rays * samples, 3] samples at the default step size, 1 / 1024 of the diagonal, along random rays in the cube."""
    generator = torch.Generator().manual_seed(0)
    origins = 0.5 * torch.rand(rays, 1, 3, generator=generator)
    directions = torch.nn.functional.normalize(torch.rand(rays, 1, 3, generator=generator), dim=-1)
    return (origins + directions * torch.arange(samples)[:, None] * 3**0.5 / 1024).reshape(-1, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    rows = []
    halves, floats = torch.float16, torch.float32
    networks: list[tuple[int, torch.dtype, int, int, bool]] = [
        *((width, dtype, 32, 16, False) for width in (32, 64, 128) for dtype in (halves, floats)),
        *((64, floats, 31, 3, padded) for padded in (False, True)),
    ]
    for width, dtype, inputs, outputs, padded in networks:
        network = f"{inputs}-{width}-{width}-{outputs}, {str(dtype)[6:]}{', padded rows' * padded}"
        for (kernel, space, write), count in of_network(width, dtype, inputs, outputs, padded).items():
            if kernel.startswith("network") and count.requests:
                kind = f"{space}, {'stores' if write else 'loads'}"
                numbers = (count.requests, count.transfers, count.needed)
                rows.append([f"{kernel}, {network}", kind, *map(str, numbers)])
    from printing import print_table  # of benchmarks

    title = "Accesses of the network kernels for 32 rows, sm_90"
    print_table(title, ["kernel", "memory", "requests", "transfers", "needed"], rows, arguments.markdown)

    layout, rows = HashGridLayout.build(16, 2, 19, 16, 2048), []
    for name, positions in (("random", torch.rand(1024, 3)), ("16 rays of 64 samples", along_rays(16, 64))):
        for architecture in (80, 90):
            count = of_hash_grid(positions, layout, architecture)
            rows.append([name, f"sm_{architecture}", f"{count.requests / 32:.0f}", f"{count.transfers / 1024:.1f}"])
    title = "Additions to the gradient of the default hash grid's table"
    heads = ["samples", "architecture", "requests of a warp", "sectors of a sample"]
    print_table(title, heads, rows, arguments.markdown)


if __name__ == "__main__":
    main()
