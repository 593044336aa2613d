"""Run a PTX kernel on a CPU: all threads of a launch at once.

Threads at the lowest address run first and all others wait, so threads that took different branches meet again where
these join. Threads that reach an instruction for whole warps wait for the others of their warp.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eugen_nerf.ops.cuda import Pointers
from tests.ptx.instructions import compile_instruction
from tests.ptx.machine import TYPES, WARP, Machine, Step, Watch
from tests.ptx.memory import OWN_START, GlobalMemory, PtxError
from tests.ptx.parser import Instruction, Operand, Program

WHOLE_WARP = ("bar", "mma", "ldmatrix", "shfl", "vote")


def launch(
    program: Program,
    kernel: str,
    grid: tuple[int, int],
    threads: int,
    shared_bytes: int,
    arguments: Sequence[Any],
    watch: Watch | None = None,
) -> None:
    """Run a kernel of a program.

    Args:
        arguments: tensors, None for a null pointer, and ctypes values.
        watch: see `Machine`.

    Raises:
        PtxError: it violates a rule of PTX.
        UnknownPtx: it has an instruction that the interpreter does not know.
    """
    entry, memory = program.kernels[kernel], GlobalMemory()
    size = max(offset + length for offset, length in entry.parameters.values())
    parameters = bytearray(size)
    for (offset, length), argument in zip(entry.parameters.values(), arguments, strict=True):
        if argument is None or isinstance(argument, Tensor):
            argument = ctypes.c_uint64(0 if argument is None else memory.add(argument))
        for tensor in argument.tensors if isinstance(argument, Pointers) else ():
            memory.add(tensor)
        if ctypes.sizeof(argument) != length:
            raise PtxError(f"{kernel} takes {length} bytes, and {ctypes.sizeof(argument)} were given")
        parameters[offset : offset + length] = bytes(argument)
    symbols = dict.fromkeys(program.shared, OWN_START)
    for name in program.constants.keys() & entry.symbols():
        symbols[name] = memory.add(torch.tensor(list(program.constants[name]), dtype=torch.uint8))
    machine = Machine(entry, symbols, grid, threads, shared_bytes, bytes(parameters), memory)
    machine.watch = watch
    with np.errstate(all="ignore"):  # threads that do not run compute too
        Scheduler(machine, [compile_instruction(machine, one) for one in entry.instructions]).run()
    memory.copy_back()


class Scheduler:
    """Decides which threads run."""

    def __init__(self, machine: Machine, steps: list[Step]) -> None:
        self._machine, self._steps = machine, steps
        self._alive = np.ones(machine.lanes, np.bool_)
        self._groups: dict[int, np.ndarray] = {0: self._alive.copy()}  # threads by their next instruction
        self._at_barrier = np.zeros(machine.lanes, np.bool_)
        self._after_barrier: dict[int, np.ndarray] = {}
        self._incomplete: dict[int, np.ndarray] = {}  # threads that wait for others of their warp
        instructions = machine.kernel.instructions
        leaders = {0, len(instructions), *machine.kernel.labels.values()}
        for at, one in enumerate(instructions):
            if is_control(one):
                leaders |= {at, at + 1}
        ends = sorted(leaders)
        self._end: list[int] = []  # of the instructions that always follow one another
        for start, end in itertools.pairwise(ends):
            self._end += [end] * (end - start)

    def run(self) -> None:
        machine, instructions = self._machine, self._machine.kernel.instructions
        while self._groups:
            at = min(self._groups)
            mask = self._groups.pop(at)
            self._choose(mask)
            while True:
                if at == len(instructions):
                    self._end_threads(mask)
                    break
                one = instructions[at]
                if not is_control(one):
                    end = self._end[at]
                    self._execute(at, end)
                    at = end
                elif one.opcode[0] in ("bra", "ret", "exit"):
                    taken = mask & self._guard(one)
                    rest = mask & ~taken
                    if taken.any():
                        if one.opcode[0] == "bra":
                            target = machine.kernel.labels[one.operands[0].text]  # type: ignore[union-attr]
                            self._join(target, taken)
                        else:
                            self._end_threads(taken)
                    if rest.any():
                        self._join(at + 1, rest)
                    break
                else:  # a whole warp executes it, or synchronizes
                    if machine.where is not True:  # some threads are elsewhere
                        mask |= self._incomplete.pop(at, False)
                        waiting = mask & ~self._whole_warps(mask)
                        if waiting.any():
                            self._incomplete[at] = waiting
                            mask &= ~waiting
                        if not mask.any():
                            break
                        self._choose(mask)
                    if one.opcode[:2] == ("bar", "sync"):
                        self._arrive(at, mask)
                        break
                    self._execute(at, at + 1)
                    at += 1
                if self._groups and min(self._groups) <= at:
                    self._join(at, mask)
                    break
        if self._at_barrier.any() or self._incomplete:
            raise PtxError(f"{machine.kernel.name}: threads wait for others that never come")

    def _choose(self, mask: np.ndarray) -> None:
        machine = self._machine
        machine.where = True if (mask == self._alive).all() else mask
        machine.running = np.flatnonzero(mask)

    def _execute(self, start: int, end: int) -> None:
        for at in range(start, end):
            try:
                self._steps[at]()
            except PtxError as error:
                kernel = self._machine.kernel
                raise PtxError(f"{kernel.name}: {error}: {kernel.instructions[at].text}") from None

    def _guard(self, one: Instruction) -> np.ndarray | bool:
        if one.guard is None:
            return True
        predicate = self._machine.value(Operand(one.guard), TYPES["pred"])
        return ~predicate if one.negated else predicate

    def _join(self, at: int, mask: np.ndarray) -> None:
        known = self._groups.get(at)
        self._groups[at] = mask if known is None else known | mask

    def _whole_warps(self, mask: np.ndarray) -> np.ndarray:
        """Threads whose warp has no other living thread elsewhere."""
        missing = (self._alive & ~mask).reshape(-1, WARP).any(axis=1)
        return mask & ~np.repeat(missing, WARP)

    def _end_threads(self, mask: np.ndarray) -> None:
        self._alive &= ~mask
        self._release()
        for at in list(self._incomplete):  # the threads they waited for may have ended
            self._join(at, self._incomplete.pop(at))

    def _arrive(self, at: int, mask: np.ndarray) -> None:
        self._at_barrier |= mask
        known = self._after_barrier.get(at + 1)
        self._after_barrier[at + 1] = mask if known is None else known | mask
        self._release()

    def _release(self) -> None:
        """Let the threads of a block go on if all of them are at the barrier."""
        blocks = int(self._machine.block_of[-1]) + 1
        late = (self._alive & ~self._at_barrier).reshape(blocks, -1).any(axis=1)
        free = self._at_barrier & ~np.repeat(late, self._machine.lanes // blocks)
        if free.any():
            for at, mask in list(self._after_barrier.items()):
                if (mask & free).any():
                    self._join(at, mask & free)
                self._after_barrier[at] = mask & ~free
            self._at_barrier &= ~free


def is_control(one: Instruction) -> bool:
    """Whether an instruction changes which threads run, or needs whole warps."""
    return one.opcode[0] in ("bra", "ret", "exit", *WHOLE_WARP)
