"""The ops on an NVIDIA GPU: which kernels run, on what, in which order.

The functions here take a `cuda_driver.Device` and tensors that have been checked; `cuda_ops` registers them for CUDA
tensors. Kernels of networks are compiled for their widths at first use, in a few seconds, and kept on disk.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eugen_nerf.errors import UserError
from eugen_nerf.ops.cuda_driver import Device
from eugen_nerf.ops.tiles import MAX_STAGES, Tiles, plan

MAX_LEVELS = 32  # of a hash grid, as in src/grid.cuh
PRECISIONS = ("fp16", "bf16")

THREADS = 128  # of a block in kernels that give each thread one item


def precision() -> str:
    """What tensor cores multiply: EUGEN_PRECISION, by default fp16. Sums, parameters and gradients are float32.

    Raises:
        UserError: the name is unknown.
    """
    name = os.environ.get("EUGEN_PRECISION", "fp16")
    if name not in PRECISIONS:
        raise UserError(f"EUGEN_PRECISION is {name!r}, but the precisions are {', '.join(PRECISIONS)}.")
    return name


def network_tiles(device: Device, spec: Sequence[int]) -> Tiles:
    """How the device divides a network's work.

    Raises:
        ValueError: the network does not fit; dispatch asks before it gets here.
    """
    tiles = plan(tuple(spec), device.shared_memory)
    if tiles is None:
        raise ValueError("the network does not fit into the GPU's shared memory")
    return tiles


def network_constants(spec: Sequence[int], tiles: Tiles, half_rows: bool) -> tuple[str, ...]:
    """Preprocessor definitions of src/network.cu for a network."""
    numbers = ",".join(str(number) for number in spec)
    bf16 = int(precision() == "bf16")
    return (f"EUGEN_SPEC={numbers}", *tiles.constants(), f"EUGEN_HALF_ROWS={int(half_rows)}", f"EUGEN_BF16={bf16}")


def _epsilons(eps: Sequence[float]) -> ctypes.Array[ctypes.c_float]:
    """struct Epsilons of src/chain.cuh."""
    return (ctypes.c_float * MAX_STAGES)(*eps)


def _blocks(n: int, each: int) -> int:
    return -(-n // each)


def network_forward(
    device: Device, x: Tensor, parameters: Tensor, spec: Sequence[int], eps: Sequence[float]
) -> Tensor:
    """[n, in] -> [n, out] of the dtype of ``x``: float32, or the precision's own half type."""
    n = x.shape[0]
    out = x.new_empty(n, spec[-3])
    tiles = network_tiles(device, spec)
    kernel = "network.cu", network_constants(spec, tiles, x.dtype != torch.float32), "network_forward"
    size = 32 * tiles.warps, tiles.shared_bytes
    if n:
        grid = min(_blocks(n, tiles.rows), device.resident_blocks(*kernel, *size))
        arguments = (x, parameters, _epsilons(eps), ctypes.c_int64(n), out)
        device.launch(*kernel, (grid, 1), *size, arguments)
    return out


def network_backward(
    device: Device,
    x: Tensor,
    parameters: Tensor,
    grad: Tensor,
    spec: Sequence[int],
    eps: Sequence[float],
    needs_x: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x (empty if nobody needs it) and of the packed parameters, float32."""
    n = x.shape[0]
    grad_x = torch.empty_like(x) if needs_x else x.new_empty(0)
    grad_parameters = torch.zeros_like(parameters)
    tiles = network_tiles(device, spec)
    constants = network_constants(spec, tiles, x.dtype != torch.float32)
    size = 32 * tiles.back_warps, tiles.back_shared_bytes
    if n:
        largest = torch.zeros(1, dtype=torch.int32, device=x.device)
        grid = min(_blocks(grad.numel(), 1024), device.multiprocessors * 8)
        arguments: tuple[Any, ...] = (grad, ctypes.c_int64(grad.numel()), largest)
        device.launch("network.cu", constants, "largest_magnitude", (grid, 1), 256, 0, arguments)
        kernel = "network.cu", constants, "network_backward"
        grid = min(_blocks(n, tiles.back_rows), device.resident_blocks(*kernel, *size))
        arguments = (x, parameters, _epsilons(eps), ctypes.c_int64(n), grad, largest, grad_x if needs_x else None,
                     grad_parameters)  # fmt: skip
        device.launch(*kernel, (grid, 1), *size, arguments)
    return grad_x, grad_parameters
