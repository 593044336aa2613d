"""Loading compiled kernels and launching them on PyTorch's streams, through the CUDA driver's C interface."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from eugen_nerf.ops.build import BuildError
from eugen_nerf.ops.nvrtc import compile_cached, find_nvrtc

# CUdevice_attribute and CUfunction_attribute of the driver's interface.
_SHARED_MEMORY_OPT_IN, _MULTIPROCESSORS = 97, 16
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_STATIC_SHARED_MEMORY, _MOST_DYNAMIC_SHARED_MEMORY = 1, 8
_OUT_OF_MEMORY = 2  # CUresult


class Device(Protocol):
    """Something that runs kernels: a GPU, or the emulator of the tests."""

    architecture: int  # 10 * major + minor compute capability
    shared_memory: int  # bytes available to a block
    multiprocessors: int

    def launch(
        self,
        source: str,
        constants: tuple[str, ...],
        kernel: str,
        grid: tuple[int, int],
        threads: int,
        shared_bytes: int,
        arguments: tuple[Any, ...],
    ) -> None:
        """Run a kernel of a program. Arguments are tensors, None for a null pointer, and ctypes values."""

    def resident_blocks(
        self, source: str, constants: tuple[str, ...], kernel: str, threads: int, shared_bytes: int
    ) -> int:
        """Return the number of a kernel's blocks that run on the whole device at the same time."""


class CudaError(RuntimeError):
    """A call to the CUDA driver failed."""


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BuildError(f"the CUDA driver does not load ({error})") from error


def _check(status: int, what: str) -> None:
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        # Memory may become free later, so unlike other errors this is no reason to stop using kernels.
        kind = torch.OutOfMemoryError if status == _OUT_OF_MEMORY else CudaError
        raise kind(f"{what} failed: {(text.value or b'unknown error').decode()} (CUDA error {status})")


def _check_memory(call: Callable[[], int], what: str) -> None:
    """Call the driver. Without memory left, release what PyTorch caches and try once more, as PyTorch itself does."""
    status = call()
    if status == _OUT_OF_MEMORY and not torch.cuda.is_current_stream_capturing():
        torch.cuda.empty_cache()
        status = call()
    _check(status, what)


class Gpu:
    """One NVIDIA GPU in its primary context, which is the one PyTorch uses.

    Launches neither synchronize nor allocate, so they can be captured in a CUDA graph. Every kernel must have run once
    before the capture, because compiling and loading it cannot be part of one. Several threads can launch at the same
    time.
    """

    def __init__(self, index: int) -> None:
        torch.cuda.init()
        _check(_driver().cuInit(0), "cuInit")
        self._index = index
        device = ctypes.c_int()
        _check(_driver().cuDeviceGet(ctypes.byref(device), index), "cuDeviceGet")
        self._context = ctypes.c_void_p()
        _check(_driver().cuDevicePrimaryCtxRetain(ctypes.byref(self._context), device), "cuDevicePrimaryCtxRetain")

        def attribute(number: int) -> int:
            value = ctypes.c_int()
            _check(_driver().cuDeviceGetAttribute(ctypes.byref(value), number, device), "cuDeviceGetAttribute")
            return value.value

        self.architecture = 10 * attribute(_CAPABILITY_MAJOR) + attribute(_CAPABILITY_MINOR)
        self.shared_memory = attribute(_SHARED_MEMORY_OPT_IN)
        self.multiprocessors = attribute(_MULTIPROCESSORS)
        self._loading = threading.Lock()
        self._modules: dict[tuple[str, tuple[str, ...]], ctypes.c_void_p] = {}
        self._functions: dict[tuple[str, tuple[str, ...], str], ctypes.c_void_p] = {}
        self._resident: dict[tuple[str, tuple[str, ...], str, int, int], int] = {}

    def _function(self, source: str, constants: tuple[str, ...], kernel: str) -> ctypes.c_void_p:
        key = (source, constants, kernel)
        if key not in self._functions:
            with self._loading:
                self._functions[key] = self._load(self._module(source, constants), kernel)
        return self._functions[key]

    def _module(self, source: str, constants: tuple[str, ...]) -> ctypes.c_void_p:
        key = (source, constants)
        if key not in self._modules:
            architecture, portable = find_nvrtc().target(self.architecture)
            compiled = compile_cached(source, architecture, constants, portable)
            module = ctypes.c_void_p()
            _check_memory(
                lambda: _driver().cuModuleLoadData(ctypes.byref(module), compiled.image), "loading compiled kernels"
            )
            self._modules[key] = module
        return self._modules[key]

    def _load(self, module: ctypes.c_void_p, kernel: str) -> ctypes.c_void_p:
        """Load a kernel of a module and allow it to use all shared memory available to blocks of this GPU."""
        function, static = ctypes.c_void_p(), ctypes.c_int()
        _check_memory(
            lambda: _driver().cuModuleGetFunction(ctypes.byref(function), module, kernel.encode()),
            f"finding the kernel {kernel}",
        )
        status = _driver().cuFuncGetAttribute(ctypes.byref(static), _STATIC_SHARED_MEMORY, function)
        _check(status, f"asking for the shared memory of {kernel}")
        most = self.shared_memory - static.value
        status = _driver().cuFuncSetAttribute(function, _MOST_DYNAMIC_SHARED_MEMORY, most)
        _check(status, f"reserving shared memory for {kernel}")
        return function

    def launch(
        self,
        source: str,
        constants: tuple[str, ...],
        kernel: str,
        grid: tuple[int, int],
        threads: int,
        shared_bytes: int,
        arguments: tuple[Any, ...],
    ) -> None:
        """See `Device.launch`.

        Raises:
            BuildError: the program does not compile.
            CudaError: a call to the driver failed.
            torch.OutOfMemoryError: there is not enough memory to load the program.
        """
        values = [
            ctypes.c_void_p(None if a is None else a.data_ptr()) if a is None or isinstance(a, Tensor) else a
            for a in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        with torch.cuda.device(self._index):
            _check(_driver().cuCtxSetCurrent(self._context), "cuCtxSetCurrent")
            function = self._function(source, constants, kernel)
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            size = (grid[0], grid[1], 1, threads, 1, 1, shared_bytes)
            _check_memory(
                lambda: _driver().cuLaunchKernel(function, *size, stream, pointers, None), f"launching {kernel}"
            )

    def resident_blocks(
        self, source: str, constants: tuple[str, ...], kernel: str, threads: int, shared_bytes: int
    ) -> int:
        """See `Device.resident_blocks`.

        Raises:
            BuildError: the program does not compile.
            CudaError: a call to the driver failed, or not a single block fits.
        """
        key = (source, constants, kernel, threads, shared_bytes)
        if key not in self._resident:
            with torch.cuda.device(self._index):
                _check(_driver().cuCtxSetCurrent(self._context), "cuCtxSetCurrent")
                blocks = ctypes.c_int()
                status = _driver().cuOccupancyMaxActiveBlocksPerMultiprocessor(
                    ctypes.byref(blocks),
                    self._function(source, constants, kernel),
                    ctypes.c_int(threads),
                    ctypes.c_size_t(shared_bytes),
                )
                _check(status, f"counting the blocks of {kernel}")
            if not blocks.value:
                raise CudaError(f"{kernel} with {threads} threads and {shared_bytes} bytes a block does not fit")
            self._resident[key] = blocks.value * self.multiprocessors
        return self._resident[key]


def gpu_number(device: torch.device) -> int:
    """Return PyTorch's index of a CUDA device; "cuda" without an index is the current device."""
    return torch.cuda.current_device() if device.index is None else device.index


@functools.cache
def gpu(index: int) -> Gpu:
    """Return the GPU with PyTorch's index ``index``.

    Raises:
        BuildError: there is no driver.
        CudaError: a call to the driver failed.
    """
    return Gpu(index)


# A forked process cannot use its parent's context. PyTorch refuses CUDA there, and cached handles would be invalid.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gpu.cache_clear)
