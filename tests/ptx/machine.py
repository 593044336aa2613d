"""The state of a kernel that runs: registers, each an array with one element per thread of the launch, and memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.ptx.memory import OWN_START, GlobalMemory, OwnMemory, PtxError
from tests.ptx.parser import Address, Kernel, Operand, UnknownPtx

WARP = 32
TYPES = {
    "pred": np.dtype(np.bool_),
    **{f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
}
Step = Callable[[], None]
# Receives state space, whether it is a store, addresses, threads, and bytes of each access.
Watch = Callable[[str, bool, np.ndarray, np.ndarray, int], None]


class Machine:
    """The state of a launch.

    Attributes:
        lanes: number of threads. Thread i is thread i % threads of its block.
        where: which threads run; True if all that have not ended do, even if others have.
        running: the indices of these threads.
        block_of: the block of each thread.
        watch: is told of accesses to memory if it is not None.
    """

    def __init__(
        self,
        kernel: Kernel,
        symbols: dict[str, int],
        grid: tuple[int, int],
        threads: int,
        shared_bytes: int,
        parameters: bytes,
        memory: GlobalMemory,
    ) -> None:
        if threads % WARP:
            raise PtxError(f"blocks of {threads} threads have an incomplete warp")
        if kernel.max_threads is not None and threads > kernel.max_threads:
            raise PtxError(f"{kernel.name}: {threads} threads in blocks of at most {kernel.max_threads}")
        self.kernel, self.memory, self.parameters = kernel, memory, OwnMemory(1, len(parameters), parameters)
        blocks = grid[0] * grid[1]
        self.lanes = blocks * threads
        self.block_of = np.arange(self.lanes) // threads
        self.shared, self.local = OwnMemory(blocks, shared_bytes), OwnMemory(self.lanes, kernel.local_bytes)
        self.where: np.ndarray | bool = True
        self.running = np.arange(self.lanes)
        self.watch: Watch | None = None
        self.copies: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # see cp.async
        own = kernel.local | {name: offset for name, (offset, _) in kernel.parameters.items()}
        self._symbols = symbols | {name: OWN_START + offset for name, offset in own.items()}
        self._registers = self._fresh(kernel.registers)
        thread = np.arange(self.lanes, dtype=np.uint32)
        block = (thread // threads).astype(np.uint32)
        self._special = {
            "%tid.x": thread % np.uint32(threads),
            "%ntid.x": np.uint32(threads),
            "%ctaid.x": block % np.uint32(grid[0]),
            "%ctaid.y": block // np.uint32(grid[0]),
            "%ctaid.z": np.uint32(0),
            "%nctaid.x": np.uint32(grid[0]),
            "%nctaid.y": np.uint32(grid[1]),
        }

    def _fresh(self, kinds: dict[str, str]) -> dict[str, np.ndarray]:
        """Registers that nothing was written to: NaN, or numbers that make addresses invalid; predicates are false."""
        found: dict[str, np.ndarray] = {}
        for kind in set(kinds.values()):
            names, size = [name for name, mine in kinds.items() if mine == kind], TYPES[kind].itemsize
            if kind == "pred":
                content = np.zeros((len(names), self.lanes), np.bool_)
            else:
                content = np.full((len(names), self.lanes * size), 0xFF, np.uint8).view(f"u{size}")
            found |= zip(names, content, strict=True)
        return found

    def width(self, operand: Operand) -> int:
        """Bytes of a register."""
        return self._registers[operand.text].itemsize

    def register(self, operand: object, dtype: np.dtype) -> np.ndarray:
        """A register that an instruction writes to, seen as numbers of a type of its size."""
        assert isinstance(operand, Operand)
        return self._registers[operand.text].view(dtype)

    def value(self, operand: object, dtype: np.dtype) -> np.ndarray:
        """An operand that an instruction reads: an array that stays the register, or a number."""
        assert isinstance(operand, Operand)
        text = operand.text
        if text in self._registers:
            register = self._registers[text]
            if register.itemsize != dtype.itemsize:
                raise UnknownPtx(f"{text} read as {dtype}")
            return register.view(dtype)
        if text in self._special:
            return np.asarray(self._special[text])
        if text in self._symbols:
            return np.asarray(self._symbols[text], dtype)
        return literal(text, dtype)

    def spread(self, operand: object, dtype: np.dtype) -> np.ndarray:
        """Like `value`, with an element for each thread."""
        return np.broadcast_to(self.value(operand, dtype), self.lanes)

    def addresses(self, address: object, dtype: np.dtype) -> Callable[[], np.ndarray]:
        """The address operand of each running thread."""
        assert isinstance(address, Address)
        base = address.base.text
        if base in self._registers:
            register, offset = self._registers[base], np.int64(address.offset)
            return lambda: (register[self.running].astype(np.int64) + offset).astype(dtype)
        start = self.value(address.base, np.dtype(np.int64)) + address.offset
        return lambda: np.full(len(self.running), start, dtype)


def literal(text: str, dtype: np.dtype) -> np.ndarray:
    """A number in a program; 0f and 0d stand for the bits of a float or double."""
    if text[:2] == "0f":
        return np.asarray(int(text[2:], 16), np.uint32).view(np.float32)
    if text[:2] == "0d":
        return np.asarray(int(text[2:], 16), np.uint64).view(np.float64)
    try:
        number = int(text, 0)
    except ValueError:
        raise UnknownPtx(text) from None
    if dtype == np.bool_:
        return np.asarray(number != 0)
    return np.asarray(number & ((1 << (8 * dtype.itemsize)) - 1), f"u{dtype.itemsize}").view(dtype)
