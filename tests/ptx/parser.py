"""Read PTX, NVIDIA's virtual assembly language: kernels, their parameters, registers and instructions.

The grammar is that of the PTX ISA (chapters 4 and 5), as far as the output of NVRTC uses it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Compiled here: programs have thousands of statements, and looking a pattern up takes longer than matching it.
LABEL = re.compile(r"([$\w]+):")
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.S)
NUMBERED_REGISTERS = re.compile(r"\s*([%\w]+)<(\d+)>")
LOCAL_ARRAY = re.compile(r"\.local\s+\.align\s+(\d+)\s+\.b8\s+(\w+)\[(\d+)\]")
INSTRUCTION = re.compile(r"(?:@(!?)([%\w]+)\s+)?([\w.:]+)\s*(.*)", re.S)
OPERANDS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s|]+")


class UnknownPtx(Exception):
    """The program uses something that this interpreter does not know."""


@dataclass(frozen=True)
class Operand:
    """A register, special register, symbol, label or literal."""

    text: str


@dataclass(frozen=True)
class Address:
    """``[base + offset]``; the base is a register or a symbol."""

    base: Operand
    offset: int


@dataclass(frozen=True)
class Vector:
    """``{a, b, ...}``."""

    parts: tuple[Operand, ...]


@dataclass(frozen=True)
class Instruction:
    """One instruction with an optional guard, which is a predicate register."""

    opcode: tuple[str, ...]  # split at dots
    operands: tuple[Operand | Address | Vector, ...]
    guard: str | None
    negated: bool  # the guard has to be false
    text: str


@dataclass
class Kernel:
    """An entry function."""

    name: str
    parameters: dict[str, tuple[int, int]]  # offset and size in bytes
    registers: dict[str, str] = field(default_factory=dict)  # type of each register
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # index of the instruction that follows
    local: dict[str, int] = field(default_factory=dict)  # offsets of arrays that each thread has
    local_bytes: int = 0
    max_threads: int | None = None  # of a block, from __launch_bounds__

    def symbols(self) -> set[str]:
        """Names of operands."""
        operands = (operand for one in self.instructions for operand in one.operands)
        return {one.text for one in operands if isinstance(one, Operand)}


def size_of(type_name: str) -> int:
    """Bytes of a scalar type such as u32."""
    return int(type_name.lstrip("bfsu")) // 8


@dataclass(frozen=True)
class Program:
    """A PTX file."""

    kernels: dict[str, Kernel]
    shared: frozenset[str]  # names of the arrays in dynamic shared memory
    constants: dict[str, bytes]  # contents of the arrays and numbers defined outside of kernels


def parse(text: str) -> Program:
    """Read a program.

    Raises:
        UnknownPtx: it declares something that this interpreter does not know.
    """
    text = re.sub(r"//[^\n]*", "", text)
    kernels = {}
    for match in re.finditer(r"\.entry\s+(\w+)\s*\((.*?)\)([^{]*)\{", text, re.S):
        bound = re.search(r"\.maxntid\s+(\d+)", match[3])
        kernel = Kernel(match[1], _parameters(match[2]), max_threads=int(bound[1]) if bound else None)
        _read_body(kernel, text[match.end() : _end_of_body(text, match.end())])
        kernels[kernel.name] = kernel
    shared = re.findall(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+(\w+)\[\];", text)
    return Program(kernels, frozenset(shared), _constants(text))


def _constants(text: str) -> dict[str, bytes]:
    found = {}
    pattern = r"\.(?:global|const)\s+\.align\s+\d+\s+\.(\w+)\s+(\w+)(?:\[(\d+)\])?(?:\s*=\s*([^;]*))?;"
    for kind, name, count, content in re.findall(pattern, text):
        size = size_of(kind)
        numbers = [int(number, 0) for number in re.findall(r"-?\w+", content)]
        data = b"".join((number % (1 << 8 * size)).to_bytes(size, "little") for number in numbers)
        found[name] = data.ljust(size * int(count or 1), b"\0")
    return found


def _parameters(text: str) -> dict[str, tuple[int, int]]:
    found, offset = {}, 0
    pattern = r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+)?(?:\.align\s+\d+\s+)?(\w+)(?:\[(\d+)\])?"
    for align, kind, name, count in re.findall(pattern, text):
        size = size_of(kind) * int(count or 1)
        alignment = int(align or size_of(kind))
        offset = -(-offset // alignment) * alignment
        found[name] = (offset, size)
        offset += size
    return found


def _end_of_body(text: str, start: int) -> int:
    depth = 1
    for match in re.finditer(r"[{}]", text[start:]):
        depth += 1 if match[0] == "{" else -1
        if not depth:
            return start + match.start()
    raise UnknownPtx("a body without an end")


def _read_body(kernel: Kernel, body: str) -> None:
    scopes: list[dict[str, str]] = []  # inner names of registers, to names that are unique in the kernel
    at = 0
    while at < len(body):
        if body[at].isspace():
            at += 1
        elif body[at] == "{":
            scopes.append({})
            at += 1
        elif body[at] == "}":
            scopes.pop()
            at += 1
        elif label := LABEL.match(body, at):
            kernel.labels[label[1]] = len(kernel.instructions)
            at = label.end()
        else:
            end = body.index(";", at)
            _read_statement(kernel, body[at:end].strip(), scopes)
            at = end + 1


def _read_statement(kernel: Kernel, text: str, scopes: list[dict[str, str]]) -> None:
    if text.startswith(".pragma"):
        return
    if declared := REGISTERS.match(text):
        for name in declared[2].split(","):
            many = NUMBERED_REGISTERS.match(name)
            names = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name.strip()]
            for one in names:
                unique = f"{one}#{len(kernel.registers)}" if scopes else one
                if scopes:
                    scopes[-1][one] = unique
                kernel.registers[unique] = declared[1]
        return
    if local := LOCAL_ARRAY.match(text):
        start = -(-kernel.local_bytes // int(local[1])) * int(local[1])
        kernel.local[local[2]], kernel.local_bytes = start, start + int(local[3])
        return
    if text.startswith("."):
        raise UnknownPtx(text)
    match = INSTRUCTION.match(text)
    assert match, text

    def operand(name: str) -> Operand:
        for scope in reversed(scopes):
            name = scope.get(name, name)
        return Operand(name)

    operands: list[Operand | Address | Vector] = []
    for part in OPERANDS.findall(match[4]):
        if part.startswith("{"):
            operands.append(Vector(tuple(operand(one.strip()) for one in part[1:-1].split(","))))
        elif part.startswith("["):
            base, _, offset = part[1:-1].partition("+")
            operands.append(Address(operand(base.strip()), int(offset or 0)))
        else:
            operands.append(operand(part))
    kernel.instructions.append(
        Instruction(tuple(match[3].split(".")), tuple(operands), match[2], bool(match[1]), " ".join(text.split()))
    )
