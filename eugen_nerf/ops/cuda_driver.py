"""Loading compiled kernels and launching them on torch's streams, through the CUDA driver's C interface."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
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
    """What runs kernels: a GPU, or the emulator of the tests."""

    architecture: int  # 10 * major + minor compute capability
    shared_memory: int  # bytes that a block may use
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
        """Blocks of a kernel that run on the whole device at the same time."""


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
        # Memory may be free again later: no reason to do without kernels from now on, as other errors are.
        kind = torch.OutOfMemoryError if status == _OUT_OF_MEMORY else CudaError
        raise kind(f"{what} failed: {(text.value or b'unknown error').decode()} (CUDA error {status})")


class Gpu:
    """One NVIDIA GPU in its primary context, the one that torch uses.

    Launches neither wait nor allocate, so they may be captured in a CUDA graph once each kernel has run before: its
    compilation and loading may not be part of a capture. Threads may launch at the same time.
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
            _check(_driver().cuModuleLoadData(ctypes.byref(module), compiled.image), "loading compiled kernels")
            self._modules[key] = module
        return self._modules[key]

    def _load(self, module: ctypes.c_void_p, kernel: str) -> ctypes.c_void_p:
        """A kernel of a module, which may use all the shared memory that blocks of this GPU may have."""
        function, static = ctypes.c_void_p(), ctypes.c_int()
        status = _driver().cuModuleGetFunction(ctypes.byref(function), module, kernel.encode())
        _check(status, f"finding the kernel {kernel}")
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
            CudaError: the driver refuses.
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
            _check(_driver().cuLaunchKernel(function, *size, stream, pointers, None), f"launching {kernel}")

    def resident_blocks(
        self, source: str, constants: tuple[str, ...], kernel: str, threads: int, shared_bytes: int
    ) -> int:
        """See `Device.resident_blocks`.

        Raises:
            BuildError: the program does not compile.
            CudaError: the driver refuses, or not a single block fits.
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
    """torch's number of a CUDA device; "cuda" without one is the current device."""
    return torch.cuda.current_device() if device.index is None else device.index


@functools.cache
def gpu(index: int) -> Gpu:
    """The GPU with torch's number ``index``.

    Raises:
        BuildError: there is no driver.
        CudaError: it refuses.
    """
    return Gpu(index)


# A forked process has no part in its parent's context; torch refuses CUDA there, and handles must not survive.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gpu.cache_clear)
