"""The emulator as a device on which `eugen_nerf.ops.cuda` can run its kernels; see emulator.h."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from eugen_nerf.ops import operators
from eugen_nerf.ops.build import SOURCE
from eugen_nerf.ops.cuda import Pointers
from eugen_nerf.ops.tiles import SHARED_MEMORY

HERE = Path(__file__).parent
KERNELS = {
    "network.cu": ("network_forward", "network_backward", "largest_magnitude", "round_weights"),
    "grid.cu": ("hash_encode_forward", "hash_encode_backward", "hash_encode_position_gradient"),
    "adam.cu": ("masked_adam",),
    "products.cu": ("factor_products_forward", "factor_products_backward"),
    "rays.cu": (
        "spherical_harmonics",
        "occupied_blocks",
        "march_count",
        "march_write",
        "sample_points",
        "visible_count",
        "visible_rows",
        "composite_forward",
        "composite_backward",
    ),
    "render.cu": ("render",),
}
ORDERS = {"forwards": 0, "backwards": 1, "shuffled": 2}
# Kernels are unrolled for registers that a CPU does not have: compiling takes longer than running, minutes with -O2,
# and with -Og two thirds of the time of -O1. Several programs with constants of the same name are loaded into one
# process, so these must not be unique in it.
FLAGS = ("-std=c++17", "-Og", "-mf16c", "-fPIC", "-w", "-fno-gnu-unique")


class EmulationError(Exception):
    """A kernel violated a rule that the emulator checks."""


def have_compiler() -> bool:
    """Whether the emulator can be built, which needs _Float16 on x86 (g++ 12, clang 15)."""
    if not shutil.which("g++"):
        return False
    test = subprocess.run(
        ["g++", "-x", "c++", "-mf16c", "-fsyntax-only", "-"],
        input="_Float16 x;",
        text=True,
        capture_output=True,
        check=False,
    )
    return test.returncode == 0


@functools.cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="eugen-emulator-")
    _folder_owner.append(folder)
    return Path(folder.name)


def _system_header() -> Path:
    """The path of system.h, precompiled, which saves g++ a sixth of the time."""
    with _system_header_lock:
        header = _folder() / "system.h"
        if not header.exists():
            shutil.copy(HERE / "system.h", header)
            subprocess.run(["g++", "-x", "c++-header", *FLAGS, str(header), "-o", f"{header}.gch"], check=True)
        return header


_system_header_lock = threading.Lock()


_folder_owner: list[tempfile.TemporaryDirectory[str]] = []


def library(source: str, constants: tuple[str, ...], architecture: int, sources: Path = SOURCE) -> ctypes.CDLL:
    """Compile a kernel source for the CPU, once.

    Other sources than the package's hold the result in their folder, where other processes find it.

    Raises:
        EmulationError: it does not compile.
    """
    return _library(source, constants, architecture, sources)


@functools.cache
def _library(source: str, constants: tuple[str, ...], architecture: int, sources: Path) -> ctypes.CDLL:
    key = hashlib.sha256(repr((source, constants, architecture)).encode()).hexdigest()[:16]
    target = (_folder() if sources == SOURCE else sources) / f"{Path(source).stem}-{key}.so"
    if not target.exists():
        _compile(source, constants, architecture, sources, target)
    loaded = ctypes.CDLL(str(target))
    loaded.emulate.restype = ctypes.c_char_p
    return loaded


def _compile(source: str, constants: tuple[str, ...], architecture: int, sources: Path, target: Path) -> None:
    command = ["g++", *FLAGS, "-shared", "-include", str(_system_header()), f"-I{HERE}", f"-I{sources}"]
    command += [f"-DEUGEN_EMULATED={architecture}"]
    command += [f'-DEUGEN_SOURCE="{source}"', "-DEUGEN_KERNELS=" + " ".join(f"X({name})" for name in KERNELS[source])]
    command += [f"-D{constant}" for constant in constants]
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unfinished = Path(folder) / target.name
        result = subprocess.run(
            [*command, str(HERE / "emulator.cpp"), "-o", str(unfinished)], capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise EmulationError(f"{source} does not compile: {result.stderr[:2000]}")
        unfinished.rename(target)


class SimulatedDevice:
    """What devices without a GPU have in common. With `launch`, they implement `eugen_nerf.ops.cuda_driver.Device`.

    Args:
        architecture: compute capability whose instructions and shared memory are used.
        blocks: the largest number of blocks of a kernel that strides through its work.
    """

    def __init__(self, architecture: int, blocks: int) -> None:
        self.architecture = architecture
        self.shared_memory = SHARED_MEMORY[architecture]
        self.multiprocessors = blocks

    def resident_blocks(
        self, source: str, constants: tuple[str, ...], kernel: str, threads: int, shared_bytes: int
    ) -> int:
        return self.multiprocessors


class EmulatedDevice(SimulatedDevice):
    """Runs kernels on CPU tensors.

    Args:
        architecture: compute capability whose instructions and shared memory are used.
        order: the order in which warps and lanes run, see `ORDERS`.
        blocks: the largest number of blocks of a kernel that strides through its work.
        sources: folder of the sources; differs from the package's for planted bugs.
    """

    def __init__(
        self, architecture: int = 80, order: str = "forwards", blocks: int = 2, sources: Path = SOURCE
    ) -> None:
        super().__init__(architecture, blocks)
        self._order = ORDERS[order]
        self._sources = sources

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
        """Run a kernel.

        Raises:
            EmulationError: the kernel violated a rule; the message says which.
        """
        assert shared_bytes <= self.shared_memory
        reached = [tensor for one in arguments if isinstance(one, Pointers) for tensor in one.tensors if tensor.numel()]
        values, sizes = [], []
        for argument in (*arguments, *reached):
            if isinstance(argument, Tensor):
                assert argument.is_contiguous()
                values.append(ctypes.c_void_p(argument.data_ptr()))
                sizes.append(argument.numel() * argument.element_size())
            else:
                values.append(ctypes.c_void_p(None) if argument is None else argument)
                sizes.append(-ctypes.sizeof(values[-1]))
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        message = library(source, constants, self.architecture, self._sources).emulate(
            kernel.encode(),
            ctypes.c_uint(grid[0]),
            ctypes.c_uint(grid[1]),
            ctypes.c_uint(threads),
            ctypes.c_uint(shared_bytes),
            pointers,
            (ctypes.c_int64 * len(sizes))(*sizes),
            ctypes.c_int(len(arguments)),
            ctypes.c_int(len(reached)),
            ctypes.c_int(self._order),
        )
        if message:
            raise EmulationError(f"{kernel}: {message.decode()}")


@contextlib.contextmanager
def emulated(device: SimulatedDevice) -> Iterator[None]:
    """Let the operators' CUDA kernels run on a device without a GPU, with CPU tensors."""
    with mock.patch.object(operators, "choose", lambda _, on_cpu, on_gpu: functools.partial(on_gpu, device)):
        yield
