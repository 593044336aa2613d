"""The memory that a launch sees: bounds, alignment, and values that were never written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

OWN_START = 1024  # so that an offset is not mistaken for an address
POISON = 0xFF  # bytes of shared and local memory at the start; numbers made of them are NaN


class PtxError(Exception):
    """A kernel violated a rule of PTX."""


@dataclass
class Buffer:
    """A copy of a tensor's memory.

    Attributes:
        content: the bytes, at the same place within 16 bytes as in the tensor, so that arrays of all types can be laid
            over it.
    """

    tensor: Tensor
    start: int  # address
    size: int
    content: np.ndarray
    written: bool = False
    constant: bool = False  # read by ld.global.nc


class GlobalMemory:
    """The tensors that a launch may access, at their own addresses."""

    def __init__(self) -> None:
        self._buffers: dict[int, Buffer] = {}  # by address

    def add(self, tensor: Tensor) -> int:
        """Add a tensor and return its address."""
        assert tensor.is_contiguous()
        start, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        if size and start not in self._buffers:
            padded = np.zeros(-(-(start % 16 + size) // 16) * 16, np.uint8)
            padded[start % 16 : start % 16 + size] = tensor.detach().reshape(-1).view(torch.uint8).numpy()
            self._buffers[start] = Buffer(tensor, start, size, padded)
        return start

    def copy_back(self) -> None:
        """Write what kernels stored to the tensors."""
        for buffer in self._buffers.values():
            if buffer.written:
                begin = buffer.start % 16
                content = torch.from_numpy(buffer.content[begin : begin + buffer.size])
                buffer.tensor.detach().reshape(-1).view(torch.uint8).copy_(content)

    def place(
        self, addresses: np.ndarray, dtype: np.dtype, count: int, write: bool, constant: bool = False
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Where ``count`` neighboring numbers at each address lie.

        Returns:
            For each tensor: which of the addresses are in it, its memory as an array of the dtype, and the indices of
            the first numbers in it.

        Raises:
            PtxError: an address is outside of all tensors or not aligned, or a tensor is read as constant
                (ld.global.nc) and written by the same kernel.
        """
        size = dtype.itemsize * count
        addresses = addresses.astype(np.int64)
        if (addresses % size).any():
            raise PtxError(f"an access of {size} bytes is not aligned")
        found, inside = [], 0
        first, last = int(addresses.min()), int(addresses.max())
        for buffer in self._buffers.values():
            begin, end = buffer.start, buffer.start + buffer.size
            if last < begin or first + size > end:
                continue
            here = np.flatnonzero((addresses >= begin) & (addresses + size <= end))
            if not len(here):
                continue
            inside += len(here)
            buffer.written |= write
            buffer.constant |= constant
            if buffer.written and buffer.constant:
                raise PtxError("a kernel writes to memory that it reads as constant")
            offsets = addresses[here] - (begin - begin % 16)
            found.append((here, buffer.content.view(dtype), offsets // dtype.itemsize))
        if inside != len(addresses):
            raise PtxError(f"an access of {size} bytes is out of bounds")
        return found


class OwnMemory:
    """Shared memory, which each block has, local memory, which each thread has, or the parameters of a launch."""

    def __init__(self, owners: int, size: int, content: bytes = b"") -> None:
        self._size = size
        self._stride = -(-size // 16) * 16
        self._bytes = np.full(owners * self._stride, POISON, np.uint8)
        self._bytes[: len(content)] = np.frombuffer(content, np.uint8)

    def place(
        self, addresses: np.ndarray, owners: np.ndarray, dtype: np.dtype, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The memory as an array of the dtype, and the index of the first of ``count`` numbers at each address.

        Raises:
            PtxError: an address is out of bounds or not aligned.
        """
        bytes_each = dtype.itemsize * count
        offsets = addresses.astype(np.int64) - OWN_START
        if (offsets % bytes_each).any():
            raise PtxError(f"an access of {bytes_each} bytes to shared, local or parameter memory is not aligned")
        if len(offsets) and (offsets.min() < 0 or int(offsets.max()) + bytes_each > self._size):
            raise PtxError(f"an access of {bytes_each} bytes to shared, local or parameter memory is out of bounds")
        return self._bytes.view(dtype), (owners * self._stride + offsets) // dtype.itemsize
