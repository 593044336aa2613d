"""A device that runs the PTX which NVRTC makes of the kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

from eugen_nerf.ops import nvrtc
from tests.emulator.device import SimulatedDevice
from tests.emulator.mutations import Mutation
from tests.ptx.launch import launch
from tests.ptx.parser import Program, parse


@functools.lru_cache(maxsize=20)  # check_ops needs 12; a program has thousands of objects
def _program(source: str, constants: tuple[str, ...], architecture: int, bug: Mutation | None) -> Program:
    if bug is None:
        compiled = nvrtc.compile_cached(source, architecture, constants, portable=True)
    else:
        files = nvrtc.sources()
        changed = files | {bug.file: bug.plant(files[bug.file].decode()).encode()}
        with mock.patch.object(nvrtc, "sources", return_value=changed):
            compiled = nvrtc.find_nvrtc().compile(source, architecture, constants, portable=True)
    return parse(compiled.image.rstrip(b"\0").decode())


class PtxDevice(SimulatedDevice):
    """Runs kernels on CPU tensors.

    Args:
        architecture, blocks: see `SimulatedDevice`. NVRTC compiles for this architecture.
        bug: planted into the sources.
        watch: is told of each kernel's accesses to memory, after the kernel's name; see `Machine`.
    """

    def __init__(
        self,
        architecture: int = 90,
        blocks: int = 2,
        bug: Mutation | None = None,
        watch: Callable[..., None] | None = None,
    ) -> None:
        super().__init__(architecture, blocks)
        self._bug, self._watch = bug, watch

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
            PtxError: it violates a rule of PTX.
            UnknownPtx: it has an instruction that the interpreter does not know.
        """
        assert shared_bytes <= self.shared_memory
        program = _program(source, constants, self.architecture, self._bug)
        watch = functools.partial(self._watch, kernel) if self._watch is not None else None
        launch(program, kernel, grid, threads, shared_bytes, arguments, watch)
