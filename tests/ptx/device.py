"""A device that runs the PTX which NVRTC makes of the kernels."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from torch import Tensor

from eugen_nerf.ops import cuda, nvrtc, operators
from eugen_nerf.ops.tiles import SHARED_MEMORY
from tests.ptx.launch import launch
from tests.ptx.parser import Program, parse


@dataclass(frozen=True)
class Change:
    """A bug to plant: one text of a source file replaced by another."""

    file: str
    right: str
    wrong: str

    def apply(self, files: dict[str, bytes]) -> dict[str, bytes]:
        before = files[self.file].decode()
        assert before.count(self.right) == 1, f"{self.file} does not have {self.right!r} once"
        return files | {self.file: before.replace(self.right, self.wrong).encode()}


@functools.cache
def _program(source: str, constants: tuple[str, ...], architecture: int, change: Change | None) -> Program:
    if change is None:
        compiled = nvrtc.compile_cached(source, architecture, constants, portable=True)
    else:
        changed = change.apply(nvrtc.sources())
        with mock.patch.object(nvrtc, "sources", return_value=changed):
            compiled = nvrtc.find_nvrtc().compile(source, architecture, constants, portable=True)
    return parse(compiled.image.rstrip(b"\0").decode())


class PtxDevice:
    """Runs kernels on CPU tensors. It implements `eugen_nerf.ops.cuda_driver.Device`.

    Args:
        architecture: compute capability that NVRTC compiles for.
        blocks: the largest number of blocks of a kernel that strides through its work.
        change: a bug in the sources.
        watch: is told of each kernel's accesses to memory, after the kernel's name; see `Machine`.
    """

    def __init__(
        self,
        architecture: int = 90,
        blocks: int = 2,
        change: Change | None = None,
        watch: Callable[..., None] | None = None,
    ) -> None:
        self.architecture = architecture
        self.shared_memory = SHARED_MEMORY[architecture]
        self.multiprocessors = blocks
        self._change, self._watch = change, watch
        self.reachable: list[Tensor] = []  # through pointers in structures, by the next launch

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
        program = _program(source, constants, self.architecture, self._change)
        reachable, self.reachable = self.reachable, []
        watch = functools.partial(self._watch, kernel) if self._watch is not None else None
        launch(program, kernel, grid, threads, shared_bytes, arguments, reachable, watch)

    def resident_blocks(
        self, source: str, constants: tuple[str, ...], kernel: str, threads: int, shared_bytes: int
    ) -> int:
        return self.multiprocessors


@contextlib.contextmanager
def interpreted(device: PtxDevice) -> Iterator[None]:
    """Let the operators' CUDA kernels run on the interpreter, with CPU tensors."""

    def reaching(make: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(factors: Sequence[Tensor], *arguments: Any) -> Any:
            made = make(factors, *arguments)
            device.reachable += made if isinstance(made, list) else factors
            return made

        return wrapper

    with (
        mock.patch.object(operators, "choose", lambda _, on_cpu, on_gpu: functools.partial(on_gpu, device)),
        mock.patch.object(cuda, "_factors", reaching(cuda._factors)),
        mock.patch.object(cuda, "empty_gradients", reaching(cuda.empty_gradients)),
    ):
        yield
