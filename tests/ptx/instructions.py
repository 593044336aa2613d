"""What PTX instructions do (PTX ISA, chapter 9): each becomes a function that changes a `Machine`.

An instruction that is missing here is an error, so a program that runs was understood completely.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx.machine import TYPES, WARP, Machine, Step
from tests.ptx.memory import PtxError
from tests.ptx.parser import Instruction, Operand, UnknownPtx, Vector

U16, U32, U64 = TYPES["u16"], TYPES["u32"], TYPES["u64"]
F16, F32, F64, PRED = TYPES["f16"], TYPES["f32"], TYPES["f64"], TYPES["pred"]
LARGEST_HALF = np.float32(65504)
CANONICAL_NAN = np.uint16(0x7FFF)  # of fp16 and of bfloat16


def compile_instruction(machine: Machine, one: Instruction) -> Step:
    """Bind an instruction to the registers of a machine."""
    if one.opcode in (("bra",), ("bra", "uni"), ("ret",), ("exit",)) or one.text == "bar.sync 0":
        return _nothing  # the scheduler does these
    if one.guard is not None:
        raise UnknownPtx(one.text)
    try:
        return _INSTRUCTIONS[one.opcode[0]](machine, one.opcode[1:], one.operands)
    except (KeyError, IndexError):
        raise UnknownPtx(one.text) from None


def _nothing() -> None:
    pass


def _elementwise(machine: Machine, target: np.ndarray, compute: Callable[[], Any]) -> Step:
    def step() -> None:
        np.copyto(target, compute(), where=machine.where, casting="unsafe")

    return step


def _ufunc(machine: Machine, ufunc: np.ufunc, target: np.ndarray, *values: Any) -> Step:
    def step() -> None:
        ufunc(*values, out=target, where=machine.where)

    return step


# Arithmetic


def _plain(ufunc: np.ufunc) -> Callable[..., Step]:
    """An instruction that numpy has, for all types; .ftz would flush denormals and is not known."""

    def compile_(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
        *modifiers, kind = parts
        if set(modifiers) - {"rn", "lo"}:
            raise UnknownPtx(".".join(parts))
        dtype = TYPES[kind]
        values = [machine.value(operand, dtype) for operand in operands[1:]]
        return _ufunc(machine, ufunc, machine.register(operands[0], dtype), *values)

    return compile_


def _logical(bits: np.ufunc, predicates: np.ufunc) -> Callable[..., Step]:
    def compile_(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
        return _plain(predicates if parts == ("pred",) else bits)(machine, parts, operands)

    return compile_


def _narrow_and_wide(kind: str) -> tuple[np.dtype, np.dtype]:
    """A type and the one of twice its size, which holds all its products."""
    narrow = TYPES[kind]
    if narrow.itemsize > 4:
        raise UnknownPtx(f"products of {kind} in full")
    return narrow, np.dtype(f"{narrow.kind}{2 * narrow.itemsize}")


def _multiply(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    if parts[0] not in ("wide", "hi"):
        return _plain(np.multiply)(machine, parts, operands)
    narrow, wide = _narrow_and_wide(parts[1])
    a, b = (machine.value(operand, narrow) for operand in operands[1:])
    if parts[0] == "wide":
        return _elementwise(machine, machine.register(operands[0], wide), lambda: a.astype(wide) * b.astype(wide))
    return _elementwise(
        machine,
        machine.register(operands[0], narrow),
        lambda: a.astype(wide) * b.astype(wide) >> wide.type(8 * narrow.itemsize),
    )


def _multiply_add(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    if parts[0] == "wide":
        narrow, wide = _narrow_and_wide(parts[1])
        left, right = (machine.value(operand, narrow) for operand in operands[1:3])
        addend = machine.value(operands[3], wide)
        return _elementwise(
            machine,
            machine.register(operands[0], wide),
            lambda: left.astype(wide) * right.astype(wide) + addend,
        )
    if parts[0] != "lo":
        raise UnknownPtx(".".join(("mad", *parts)))
    dtype = np.dtype(f"u{TYPES[parts[1]].itemsize}")  # the low bits depend on no sign
    a, b, c = (machine.value(operand, dtype) for operand in operands[1:])
    return _elementwise(machine, machine.register(operands[0], dtype), lambda: a * b + c)


def _rounded(total: np.ndarray, lost: np.ndarray, rounding: str) -> np.ndarray:
    """total + lost as float32, where lost is far below the last digit of total."""
    nearest = total.astype(F32)
    if rounding == "rn":
        return nearest
    wide = nearest.astype(F64)
    above = (wide > total) | ((wide == total) & (lost < 0))
    if rounding == "rm":
        return np.where(above, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    below = (wide < total) | ((wide == total) & (lost > 0))
    away = np.where(total > 0, above, below)
    return np.where(away, np.nextafter(nearest, np.float32(0)), nearest)


def _lost(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> np.ndarray:
    """What total = a + b lacks to the exact sum (Knuth's two-sum)."""
    of_b = total - a
    return (a - (total - of_b)) + (b - of_b)


def _add(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    if parts != ("rz", "f32"):
        return _plain(np.add)(machine, parts, operands)
    a, b = (machine.value(operand, F32) for operand in operands[1:])

    def compute() -> np.ndarray:
        left, right = a.astype(F64), b.astype(F64)
        total = left + right
        return _rounded(total, _lost(left, right, total), "rz")

    return _elementwise(machine, machine.register(operands[0], F32), compute)


def _copy_sign(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    """copysign d, a, b: the sign of a with the magnitude of b."""
    sign, magnitude = (machine.value(operand, TYPES[parts[0]]) for operand in operands[1:])
    return _ufunc(machine, np.copysign, machine.register(operands[0], TYPES[parts[0]]), magnitude, sign)


def _fused(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    """fma: the product is exact in float64, so only halfway cases of the sum may be rounded differently."""
    rounding, kind = parts
    if kind != "f32":
        raise UnknownPtx(".".join(("fma", *parts)))
    a, b, c = (machine.value(operand, F32) for operand in operands[1:])

    def compute() -> np.ndarray:
        product, addend = a.astype(F64) * b, c.astype(F64)
        total = product + addend
        return _rounded(total, _lost(product, addend, total), rounding)

    if rounding not in ("rn", "rm"):
        raise UnknownPtx(rounding)
    return _elementwise(machine, machine.register(operands[0], F32), compute)


def _divide(remainder: bool) -> Callable[..., Step]:
    def compile_(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
        dtype = TYPES[parts[-1]]
        if dtype.kind == "f":
            if remainder or parts[0] != "rn":
                raise UnknownPtx(".".join(parts))
            return _plain(np.divide)(machine, parts, operands)
        a, b = (machine.value(operand, dtype) for operand in operands[1:])

        def compute() -> np.ndarray:
            over = np.where(b == 0, dtype.type(1), b)  # undefined, but threads that do not run may have it
            left = np.fmod(a, over)
            return left if remainder else (a - left) // over

        return _elementwise(machine, machine.register(operands[0], dtype), compute)

    return compile_


def _reciprocal(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    if parts != ("rn", "f32"):
        raise UnknownPtx(".".join(("rcp", *parts)))
    a = machine.value(operands[1], F32)
    return _ufunc(machine, np.divide, machine.register(operands[0], F32), np.float32(1), a)


def _power_of_two(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    flush = "ftz" in parts
    if set(parts) - {"approx", "ftz", "f32"}:
        raise UnknownPtx(".".join(("ex2", *parts)))
    a = machine.value(operands[1], F32)

    def compute() -> np.ndarray:
        result = np.exp2(a.astype(F64)).astype(F32)
        return np.where(np.abs(result) < np.finfo(F32).tiny, np.float32(0), result) if flush else result

    return _elementwise(machine, machine.register(operands[0], F32), compute)


# Comparison and selection

_COMPARISONS: dict[str, np.ufunc] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def _compare(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A comparison; with a u after its name it is true if an operand is NaN, otherwise false.

    `num` and `nan` tell whether no operand is NaN, or one is.
    """
    if name in ("num", "nan"):
        return (np.isnan(a) | np.isnan(b)) == (name == "nan")
    result = _COMPARISONS[name.removesuffix("u")](a, b)
    if a.dtype.kind != "f":
        return result
    nan = np.isnan(a) | np.isnan(b)
    return result | nan if name.endswith("u") else result & ~nan


def _set_predicate(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    name, kind = parts
    target, a, b = operands
    left, right = machine.value(a, TYPES[kind]), machine.value(b, TYPES[kind])
    return _elementwise(machine, machine.register(target, PRED), lambda: _compare(name, left, right))


def _set(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    """set.CmpOp.u32.f16x2: a mask of 16 bits for each of two comparisons."""
    name, result, kind = parts
    if result != "u32" or kind not in ("f16x2", "bf16x2"):
        raise UnknownPtx(".".join(("set", *parts)))
    a, b = (machine.value(operand, U32) for operand in operands[1:])

    def compute() -> np.ndarray:
        halves = [
            _compare(name, *(_halves_to_floats((v >> np.uint32(s)).astype(U16), kind) for v in (a, b))) for s in (0, 16)
        ]
        return np.where(halves[0], np.uint32(0xFFFF), np.uint32(0)) | np.where(
            halves[1], np.uint32(0xFFFF0000), np.uint32(0)
        )

    return _elementwise(machine, machine.register(operands[0], U32), compute)


def _select(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    dtype = TYPES[parts[0]]
    a, b, predicate = *(machine.value(one, dtype) for one in operands[1:3]), machine.value(operands[3], PRED)
    return _elementwise(machine, machine.register(operands[0], dtype), lambda: np.where(predicate, a, b))


# Bits


def _shift(left: bool) -> Callable[..., Step]:
    def compile_(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
        dtype = TYPES[parts[0]]
        bits = 8 * dtype.itemsize
        a, by = machine.value(operands[1], dtype), machine.value(operands[2], U32)

        def compute() -> np.ndarray:
            amount = np.minimum(by, np.uint32(bits - 1)).astype(dtype)
            shifted = a << amount if left else a >> amount
            # Too large shifts leave nothing but copies of the sign.
            return shifted if not left and dtype.kind == "i" else np.where(by >= bits, dtype.type(0), shifted)

        return _elementwise(machine, machine.register(operands[0], dtype), compute)

    return compile_


def _funnel_shift(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    """shf.l.wrap: the high word of (b, a) after a shift to the left by up to 31."""
    if parts != ("l", "wrap", "b32"):
        raise UnknownPtx(".".join(("shf", *parts)))
    a, b, by = (machine.value(operand, U32) for operand in operands[1:])

    def compute() -> np.ndarray:
        both = b.astype(U64) << np.uint64(32) | a.astype(U64)
        return both << (by & np.uint32(31)).astype(U64) >> np.uint64(32)

    return _elementwise(machine, machine.register(operands[0], U32), compute)


def _bits_of(machine: Machine, kind: str, operand: Any) -> Callable[[], np.ndarray]:
    """[lanes, bits], lowest bit first."""
    dtype = TYPES[kind]
    value = machine.spread(operand, dtype)
    places = np.arange(8 * dtype.itemsize, dtype=dtype)
    return lambda: (value[:, None] >> places & dtype.type(1)).astype(np.bool_)


def _from_bits(function: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Step]:
    def compile_(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
        bits = _bits_of(machine, parts[-1], operands[1])
        return _elementwise(machine, machine.register(operands[0], U32), lambda: function(bits()))

    return compile_


def _leading_zeros(bits: np.ndarray) -> np.ndarray:
    return np.where(bits.any(axis=1), bits[:, ::-1].argmax(axis=1), bits.shape[1])


def _shift_of_first(bits: np.ndarray) -> np.ndarray:
    """bfind.shiftamt: how far the highest bit has to be shifted to the left."""
    return np.where(bits.any(axis=1), _leading_zeros(bits), 0xFFFFFFFF)


def _reversed(bits: np.ndarray) -> np.ndarray:
    return (bits[:, ::-1].astype(np.uint64) << np.arange(bits.shape[1], dtype=np.uint64)).sum(axis=1)


def _find(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    if parts != ("shiftamt", "u32"):
        raise UnknownPtx(".".join(("bfind", *parts)))
    return _from_bits(_shift_of_first)(machine, parts, operands)


def _insert(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    """bfi: the lowest bits of a in place of those of b from a position on."""
    dtype = TYPES[parts[0]]
    bits = 8 * dtype.itemsize
    a, b = (machine.value(operand, dtype) for operand in operands[1:3])
    position, length = (int(machine.value(operand, U32)) for operand in operands[3:])  # literals
    mask = dtype.type(((1 << length) - 1) << position & (1 << bits) - 1)
    return _elementwise(
        machine, machine.register(operands[0], dtype), lambda: a << dtype.type(position) & mask | b & ~mask
    )


# Moves and conversions


def _move(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    target, source = operands
    if parts[0] in ("v2", "v4"):
        pairs = zip(target.parts, source.parts, strict=True)
        return _sequence([_move(machine, parts[1:], pair) for pair in pairs])
    dtype = TYPES[parts[0]]
    if isinstance(source, Vector):
        part = np.dtype(f"u{dtype.itemsize // len(source.parts)}")
        values = [machine.value(one, part) for one in source.parts]
        shifts = [dtype.type(8 * part.itemsize * i) for i in range(len(values))]

        def joined() -> np.ndarray:
            total = values[0].astype(dtype)
            for value, shift in zip(values[1:], shifts[1:], strict=True):
                total = total | value.astype(dtype) << shift
            return total

        return _elementwise(machine, machine.register(target, dtype), joined)
    if isinstance(target, Vector):
        part = np.dtype(f"u{dtype.itemsize // len(target.parts)}")
        whole = machine.value(source, dtype)
        shifts = [dtype.type(8 * part.itemsize * i) for i in range(len(target.parts))]
        return _sequence(
            [
                _elementwise(machine, machine.register(one, part), functools.partial(np.right_shift, whole, shift))
                for one, shift in zip(target.parts, shifts, strict=True)
            ]
        )
    value = machine.value(source, dtype)
    return _elementwise(machine, machine.register(target, dtype), lambda: value)


def _sequence(steps: list[Step]) -> Step:
    def step() -> None:
        for one in steps:
            one()

    return step


def _halves_to_floats(halves: np.ndarray, kind: str) -> np.ndarray:
    if kind.startswith("bf16"):
        return (halves.astype(U32) << np.uint32(16)).view(F32)
    return halves.view(F16).astype(F32)


def _floats_to_halves(floats: np.ndarray, kind: str, relu: bool, bounded: bool) -> np.ndarray:
    """Bits of floats rounded to the nearest half. NaN becomes the canonical NaN."""
    nan = np.isnan(floats)
    if relu:
        floats = np.where(floats > 0, floats, np.float32(0))
    if kind.startswith("bf16"):
        if bounded:
            raise UnknownPtx("satfinite for bf16")
        bits = np.ascontiguousarray(floats, F32).view(U32)
        rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
        return np.where(nan, CANONICAL_NAN, rounded.astype(U16))
    if bounded:
        floats = np.clip(floats, -LARGEST_HALF, LARGEST_HALF)
    return np.where(nan, CANONICAL_NAN, np.asarray(floats).astype(F16).view(U16))


def _convert(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    *modifiers, to, source = parts
    flags = set(modifiers)
    if to in ("f16x2", "bf16x2", "f16"):
        known = {"rn", "relu", "satfinite"}
        if flags - known or "rn" not in flags or source != "f32":
            raise UnknownPtx(".".join(("cvt", *parts)))
        floats = [machine.value(one, F32) for one in operands[1:]]  # the first goes to the high bits
        options = to, "relu" in flags, "satfinite" in flags

        def rounded() -> np.ndarray:
            halves = [_floats_to_halves(one, *options) for one in floats]
            return halves[0] if len(halves) == 1 else halves[0].astype(U32) << np.uint32(16) | halves[1]

        return _elementwise(machine, machine.register(operands[0], U16 if len(floats) == 1 else U32), rounded)
    if source == "f16":
        if flags or to != "f32":
            raise UnknownPtx(".".join(("cvt", *parts)))
        half = machine.value(operands[1], U16)
        return _elementwise(machine, machine.register(operands[0], F32), lambda: _halves_to_floats(half, "f16"))
    return _convert_numbers(machine, flags, TYPES[to], TYPES[source], operands)


_ROUNDINGS: dict[str, Callable[..., np.ndarray]] = {"rmi": np.floor, "rni": np.rint, "rzi": np.trunc, "rpi": np.ceil}


def _convert_numbers(
    machine: Machine, flags: set[str], to: np.dtype, source: np.dtype, operands: tuple[Any, ...]
) -> Step:
    # Registers may be wider than the types.
    value = machine.value(operands[1], np.dtype(f"{source.kind}{machine.width(operands[1])}"))
    target = machine.register(operands[0], np.dtype(f"{to.kind}{machine.width(operands[0])}"))
    rounding = next((_ROUNDINGS[flag] for flag in flags if flag in _ROUNDINGS), None)
    if flags - {*_ROUNDINGS, "rn", "sat"} or (
        source.kind == "f" and to.kind != "f" and (rounding is None or to.itemsize == 8)
    ):
        raise UnknownPtx(f"cvt with {flags}")

    def compute() -> np.ndarray:
        result = value.astype(source)
        result = rounding(result) if rounding else result
        if "sat" in flags:
            if (source, to) != (F32, F32):
                raise UnknownPtx("cvt.sat between these types")
            result = np.where(np.isnan(result), np.float32(0), np.clip(result, np.float32(0), np.float32(1)))
        if source.kind == "f" and to.kind != "f":
            limits = np.iinfo(to)
            return np.clip(np.nan_to_num(result.astype(F64), posinf=np.inf, neginf=-np.inf), limits.min, limits.max)
        return result.astype(to)

    return _elementwise(machine, target, compute)


# Memory


def _access(parts: tuple[str, ...]) -> tuple[str, int, np.dtype, bool]:
    """State space, count of numbers, type, and whether the memory has to be constant."""
    *modifiers, kind = parts
    spaces = [one for one in modifiers if one in ("global", "shared", "local", "param")]
    counts = [int(one[1:]) for one in modifiers if one in ("v2", "v4")]
    if set(modifiers) - {"global", "shared", "local", "param", "v2", "v4", "nc"} or len(spaces) != 1:
        raise UnknownPtx(".".join(parts))
    return spaces[0], counts[0] if counts else 1, TYPES[kind], "nc" in modifiers


def _parts_of(operand: Any) -> tuple[Operand, ...]:
    return operand.parts if isinstance(operand, Vector) else (operand,)


def _load(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    space, count, dtype, constant = _access(parts)
    targets = [machine.register(one, np.dtype(f"{dtype.kind}{machine.width(one)}")) for one in _parts_of(operands[0])]
    assert len(targets) == count
    addresses = machine.addresses(operands[1], U64)

    def step() -> None:
        for here, array, first in _places(machine, space, addresses(), dtype, count, False, constant):
            for i, target in enumerate(targets):
                target[machine.running[here]] = array[first + i]

    return step


def _store(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    space, count, dtype, constant = _access(parts)
    if constant or space == "param":
        raise UnknownPtx(".".join(("st", *parts)))
    sources = []
    for one in _parts_of(operands[1]):
        wide = np.dtype(f"{dtype.kind}{machine.width(one)}") if one.text.startswith("%") else dtype
        sources.append(machine.value(one, wide))
    addresses = machine.addresses(operands[0], U64)

    def step() -> None:
        for here, array, first in _places(machine, space, addresses(), dtype, count, True):
            for i, source in enumerate(sources):
                value = source[machine.running[here]] if source.ndim else source
                array[first + i] = value.astype(dtype)

    return step


def _places(
    machine: Machine,
    space: str,
    addresses: np.ndarray,
    dtype: np.dtype,
    count: int,
    write: bool,
    constant: bool = False,
) -> list[tuple[Any, np.ndarray, np.ndarray]]:
    """See `GlobalMemory.place`."""
    if machine.watch is not None:
        machine.watch(space, write, addresses, machine.running, dtype.itemsize * count)
    if space == "global":
        return machine.memory.place(addresses, dtype, count, write, constant)
    memory, owners = {
        "shared": (machine.shared, machine.block_of[machine.running]),
        "local": (machine.local, machine.running),
        "param": (machine.parameters, np.zeros_like(machine.running)),
    }[space]
    array, first = memory.place(addresses, owners, dtype, count)
    return [(slice(None), array, first)]


_ATOMICS: dict[str, np.ufunc] = {"add": np.add, "max": np.maximum, "min": np.minimum}


def _atomic(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...], fetch: bool = True) -> Step:
    space, name, *rest = parts
    ufunc, dtype = _ATOMICS[name], TYPES[rest[-1]]
    if space != "global" or rest[:-1] not in ([], ["v2"], ["v4"]):
        raise UnknownPtx(".".join(parts))
    target = machine.register(operands[0], dtype) if fetch else None
    address, source = operands[-2:]
    sources = [machine.spread(one, dtype) for one in _parts_of(source)]
    addresses = machine.addresses(address, U64)

    def step() -> None:
        if machine.watch is not None:
            machine.watch("atomic", True, addresses(), machine.running, dtype.itemsize * len(sources))
        for here, array, first in machine.memory.place(addresses(), dtype, len(sources), write=True):
            lanes = machine.running[here]
            for i, one in enumerate(sources):
                places = first + i
                values = one[lanes]
                if target is None:
                    ufunc.at(array, places, values)  # one after the other
                    continue
                if len(np.unique(places)) == len(places):
                    before = array[places]
                    array[places] = ufunc(before, values)
                else:
                    before = np.empty(len(places), dtype)
                    for k, (place, value) in enumerate(zip(places.tolist(), values, strict=True)):
                        before[k] = array[place]
                        array[place] = ufunc(array[place], value)
                target[lanes] = before

    return step


def _reduce(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    return _atomic(machine, parts, operands, fetch=False)


def _to_address_space(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    """cvta.to: addresses are the same in this interpreter, and an access checks that they lie in its space."""
    if parts not in (("to", "global", "u64"), ("to", "shared", "u64")):
        raise UnknownPtx(".".join(("cvta", *parts)))
    return _move(machine, ("u64",), operands)


def _copy_async(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    """cp.async: 16 bytes arrive in shared memory when the thread waits for them."""
    if parts == ("async", "wait_all"):
        return lambda: _deliver(machine)
    if parts != ("async", "cg", "shared", "global") or operands[2].text != "16":
        raise UnknownPtx(".".join(("cp", *parts)))
    to, source = machine.addresses(operands[0], U64), machine.addresses(operands[1], U64)
    return lambda: machine.copies.append((machine.running, to(), source()))


def _deliver(machine: Machine) -> None:
    waiting = np.zeros(machine.lanes, np.bool_)
    waiting[machine.running] = True
    kept = []
    for lanes, to, source in machine.copies:
        now = waiting[lanes]
        shared, start = machine.shared.place(to[now], machine.block_of[lanes[now]], U32, 4)
        for here, array, first in machine.memory.place(source[now], U32, 4, write=False):
            for i in range(4):
                shared[start[here] + i] = array[first + i]
        if not now.all():
            kept.append((lanes[~now], to[~now], source[~now]))
    machine.copies[:] = kept


# Whole warps


def _warp_lanes(machine: Machine) -> np.ndarray:
    """[warps, 32] lanes of the running warps.

    Raises:
        PtxError: some threads of a warp have ended.
    """
    lanes = machine.running.reshape(-1, WARP) if len(machine.running) % WARP == 0 else np.zeros((1, 0), np.int64)
    if lanes.shape[1] != WARP or (lanes[:, -1] - lanes[:, 0] != WARP - 1).any():
        raise PtxError("not all threads of a warp are there")
    return lanes


def _all_lanes(machine: Machine, operand: Operand) -> Step:
    """A check that an instruction names all lanes of a warp."""
    members = machine.value(operand, U32)

    def step() -> None:
        if (members[machine.running] if members.ndim else members).min() != 0xFFFFFFFF:
            raise UnknownPtx("synchronization of some lanes of a warp")

    return step


def _shuffle(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    sync, mode, kind = parts
    if sync != "sync" or kind != "b32":
        raise UnknownPtx(".".join(("shfl", *parts)))
    outs, (a, b, c, members) = operands[:-4], operands[-4:]
    target = machine.register(outs[0], U32)
    valid_target = machine.register(outs[1], PRED) if len(outs) > 1 else None
    value, by, limits = (machine.spread(one, U32) for one in (a, b, c))
    check = _all_lanes(machine, members)
    lane = np.arange(machine.lanes) % WARP

    def step() -> None:
        check()
        lanes = _warp_lanes(machine)
        mine = lane[lanes]
        shift, limit = by[lanes].astype(np.int64), limits[lanes].astype(np.int64)
        clamp, segment = limit & 31, limit >> 8 & 31
        last = (mine & segment) | (clamp & ~segment)
        if mode == "up":
            source = mine - shift
            valid = source >= last
        else:
            source = {"down": mine + shift, "bfly": mine ^ shift, "idx": (mine & segment) | (shift & 31 & ~segment)}[
                mode
            ]
            valid = source <= last
        source = np.where(valid, source, mine)
        target[lanes] = value[lanes[:, :1] + source]
        if valid_target is not None:
            valid_target[lanes] = valid

    return step


def _vote(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    if parts != ("sync", "ballot", "b32"):
        raise UnknownPtx(".".join(("vote", *parts)))
    target, predicate = machine.register(operands[0], U32), machine.spread(operands[1], PRED)
    check = _all_lanes(machine, operands[2])

    def step() -> None:
        check()
        lanes = _warp_lanes(machine)
        votes = predicate[lanes].astype(U32) << np.arange(WARP, dtype=U32)
        target[lanes] = votes.sum(axis=1, dtype=U32)[:, None]

    return step


def _barrier(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    """bar.warp.sync: the scheduler has already waited for the warp."""
    if parts != ("warp", "sync"):
        raise UnknownPtx(".".join(("bar", *parts)))
    return _all_lanes(machine, operands[0])


def _load_matrices(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    """ldmatrix (9.7.15): 8 x 8 matrices of halves, one row of 16 bytes at the address of each lane.

    Lane i receives, of each matrix, the two neighboring halves 2 (i mod 4) and its successor of row i / 4.
    """
    transposed = "trans" in parts
    count = int(parts[3][1:])
    expected = ("sync", "aligned", "m8n8", f"x{count}", *(("trans",) if transposed else ()), "shared", "b16")
    if parts != expected:
        raise UnknownPtx(".".join(("ldmatrix", *parts)))
    targets = [machine.register(one, U32) for one in operands[0].parts]
    assert len(targets) == count
    addresses = machine.addresses(operands[1], U64)
    halves = np.arange(64).reshape(8, 8)
    places = (halves.T if transposed else halves).reshape(WARP, 2) + 64 * np.arange(count)[:, None, None]

    def step() -> None:
        lanes = _warp_lanes(machine)
        rows = addresses().reshape(lanes.shape)[:, : 8 * count]
        if machine.watch is not None:
            machine.watch("shared", False, rows.reshape(-1), lanes[:, : 8 * count].reshape(-1), 16)
        blocks = np.repeat(machine.block_of[lanes[:, 0]], 8 * count)
        array, first = machine.shared.place(rows.reshape(-1), blocks, U16, 8)
        matrices = array[first[:, None] + np.arange(8)].reshape(len(lanes), -1)
        words = np.ascontiguousarray(matrices[:, places]).view(U32)
        for i, target in enumerate(targets):
            target[lanes] = words[:, i, :, 0]

    return step


@functools.cache
def _fragments(depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the elements of mma's matrices lie, see `_multiply_matrices`.

    Returns:
        Of the elements of a and of b, the places of their halves, counted through registers, lanes and low and high; of
        registers and lanes of d, the places of their numbers in the matrix.
    """
    lane = np.arange(WARP)
    g, t = lane // 4, lane % 4
    a, b = np.empty((16, depth), np.int64), np.empty((8, depth), np.int64)
    for high in (0, 1):
        for i in range(depth // 4):
            a[g + 8 * (i % 2), 2 * t + 8 * (i // 2) + high] = (i * WARP + lane) * 2 + high
        for i in range(depth // 8):
            b[g, 2 * t + 8 * i + high] = (i * WARP + lane) * 2 + high
    return a, b, np.stack([(g + 8 * (i // 2)) * 8 + 2 * t + i % 2 for i in range(4)])


def _multiply_matrices(machine: Machine, parts: tuple[str, ...], operands: tuple[Any, ...]) -> Step:
    """mma.m16n8k16 and m16n8k8 (9.7.15): d = a b + c with a 16 x k in rows, b k x 8 in columns, c and d 16 x 8.

    With g = lane / 4 and t = lane mod 4, registers of a hold row g and columns 2 t and 2 t + 1, then row g + 8, then
    both for columns 8 further; those of b hold rows 2 t and 2 t + 1 of column g, then rows 8 further; those of c and d
    hold row g, columns 2 t and 2 t + 1, then row g + 8.
    """
    shape, kind = parts[2], parts[6]
    depths = {"m16n8k8": 8, "m16n8k16": 16}
    expected = ("sync", "aligned", shape, "row", "col", "f32", kind, kind, "f32")
    if parts != expected or shape not in depths or kind not in ("f16", "bf16"):
        raise UnknownPtx(".".join(("mma", *parts)))
    depth = depths[shape]
    out = [machine.register(one, F32) for one in operands[0].parts]
    a = [machine.spread(one, U32) for one in operands[1].parts]
    b = [machine.spread(one, U32) for one in operands[2].parts]
    c = [machine.spread(one, F32) for one in operands[3].parts]
    if (len(a), len(b)) != (depth // 4, depth // 8):
        raise UnknownPtx("fragments of mma of another size")
    halves_of_a, halves_of_b, numbers_of_d = _fragments(depth)

    def matrix(words: list[np.ndarray], lanes: np.ndarray, places: np.ndarray) -> np.ndarray:
        halves = np.stack([word[lanes] for word in words], axis=1).view(U16).reshape(len(lanes), -1)
        return _halves_to_floats(halves, kind)[:, places]

    def step() -> None:
        lanes = _warp_lanes(machine)
        product = matrix(a, lanes, halves_of_a) @ matrix(b, lanes, halves_of_b).swapaxes(1, 2)
        numbers = product.reshape(len(lanes), -1)[:, numbers_of_d]
        for i, (target, start) in enumerate(zip(out, c, strict=True)):
            target[lanes] = numbers[:, i] + start[lanes]

    return step


_INSTRUCTIONS: dict[str, Callable[..., Step]] = {
    "abs": _plain(np.abs),
    "add": _add,
    "and": _logical(np.bitwise_and, np.logical_and),
    "atom": _atomic,
    "bar": _barrier,
    "bfi": _insert,
    "bfind": _find,
    "brev": _from_bits(_reversed),
    "clz": _from_bits(_leading_zeros),
    "copysign": _copy_sign,
    "cp": _copy_async,
    "cvt": _convert,
    "cvta": _to_address_space,
    "div": _divide(remainder=False),
    "ex2": _power_of_two,
    "fma": _fused,
    "ld": _load,
    "ldmatrix": _load_matrices,
    "mad": _multiply_add,
    "max": _plain(np.fmax),
    "min": _plain(np.fmin),
    "mma": _multiply_matrices,
    "mov": _move,
    "mul": _multiply,
    "neg": _plain(np.negative),
    "not": _logical(np.bitwise_not, np.logical_not),
    "or": _logical(np.bitwise_or, np.logical_or),
    "popc": _from_bits(lambda bits: bits.sum(axis=1)),
    "rcp": _reciprocal,
    "red": _reduce,
    "rem": _divide(remainder=True),
    "selp": _select,
    "set": _set,
    "setp": _set_predicate,
    "shf": _funnel_shift,
    "shfl": _shuffle,
    "shl": _shift(left=True),
    "shr": _shift(left=False),
    "sqrt": _plain(np.sqrt),
    "st": _store,
    "sub": _plain(np.subtract),
    "vote": _vote,
    "xor": _logical(np.bitwise_xor, np.logical_xor),
}
