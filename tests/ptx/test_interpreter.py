"""The PTX interpreter itself: results of instructions, divergence, synchronization, and the rules it checks."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
import torch

from tests.ptx.launch import launch
from tests.ptx.memory import PtxError
from tests.ptx.parser import UnknownPtx, parse

REGISTERS = """
    .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<40>; .reg .f32 %f<40>; .reg .b64 %d<8>; .reg .f64 %e<4>;
    ld.param.u64 %d0, [to]; ld.param.u64 %d1, [from]; ld.param.u32 %r0, [number];
    mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mad.lo.s32 %r4, %r2, %r3, %r1;
    mul.wide.u32 %d2, %r4, 4; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2;
"""


def run(
    body: str,
    to: torch.Tensor,
    source: torch.Tensor,
    number: int = 0,
    threads: int = 32,
    shared: int = 0,
    blocks: int = 1,
) -> torch.Tensor:
    """Run instructions. %d3 and %d4 are addresses of each thread's number in ``to`` and ``source``, %r4 its index."""
    text = f"""
        .version 9.0
        .extern .shared .align 16 .b8 memory[];
        .visible .entry kernel(.param .u64 to, .param .u64 from, .param .u32 number)
        {{ {REGISTERS} {body} ret; }}
    """
    launch(parse(text), "kernel", (blocks, 1), threads, shared, (to, source, ctypes.c_uint32(number)))
    return to


def bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def compute(instructions: str, a: int, b: int = 0, c: int = 0) -> int:
    """The bits of %r9 after instructions that read %r5, %r6 and %r7."""
    source, to = torch.zeros(32, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    moves = "".join(f"mov.b32 %r{5 + i}, {value};" for i, value in enumerate((a, b, c)))
    run(f"{moves} {instructions} st.global.u32 [%d3], %r9;", to, source)
    assert (to == to[0]).all()
    return int(to[0]) & 0xFFFFFFFF


FLOATS = "mov.b32 %f5, %r5; mov.b32 %f6, %r6; mov.b32 %f7, %r7;"
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("instruction", "operands", "expected"),
    [
        ("add.s32 %r9, %r5, %r6;", (0xFFFFFFFF, 2), 1),
        ("mul.hi.s32 %r9, %r5, %r6;", (0xFFFFFFFE, 0x40000000), 0xFFFFFFFF),  # -2 * 2^30 = -2^31
        ("mul.hi.u32 %r9, %r5, %r6;", (0xFFFFFFFE, 0x40000000), 0x3FFFFFFF),
        ("mad.lo.s32 %r9, %r5, %r6, %r7;", (0x10000, 0x10001, 5), 0x10005),
        ("div.s32 %r9, %r5, %r6;", (0xFFFFFFF9, 2), 0xFFFFFFFD),  # -7 / 2 = -3
        ("rem.s32 %r9, %r5, %r6;", (0xFFFFFFF9, 2), 0xFFFFFFFF),
        ("rem.u32 %r9, %r5, %r6;", (0xFFFFFFF9, 10), 0xFFFFFFF9 % 10),
        ("shr.s32 %r9, %r5, %r6;", (0x80000000, 40), 0xFFFFFFFF),
        ("shr.u32 %r9, %r5, %r6;", (0x80000000, 31), 1),
        ("shl.b32 %r9, %r5, %r6;", (1, 32), 0),
        ("shf.l.wrap.b32 %r9, %r5, %r6, %r7;", (0x80000000, 1, 33), 3),
        ("bfi.b32 %r9, %r5, %r6, 4, 8;", (0xABC, 0xFFFFFFFF), 0xFFFFFBCF),
        ("bfind.shiftamt.u32 %r9, %r5;", (0x00010000,), 15),
        ("bfind.shiftamt.u32 %r9, %r5;", (0,), 0xFFFFFFFF),
        ("clz.b32 %r9, %r5;", (0,), 32),
        ("brev.b32 %r9, %r5;", (0x00000005,), 0xA0000000),
        ("popc.b32 %r9, %r5;", (0xF000000F,), 8),
        ("min.s32 %r9, %r5, %r6;", (0xFFFFFFFF, 1), 0xFFFFFFFF),
        ("min.u32 %r9, %r5, %r6;", (0xFFFFFFFF, 1), 1),
        ("setp.lt.u32 %p1, %r5, %r6; selp.b32 %r9, 7, 8, %p1;", (1, 0x80000000), 7),
        ("setp.lt.s32 %p1, %r5, %r6; selp.b32 %r9, 7, 8, %p1;", (1, 0x80000000), 8),
        ("set.gtu.u32.f16x2 %r9, %r5, %r6;", (0x7E003C00, 0), 0xFFFFFFFF),  # NaN and 1
        ("set.gtu.u32.f16x2 %r9, %r5, %r6;", (0x80000001, 0), 0x0000FFFF),  # -0 and the smallest positive half
        ("set.gtu.u32.bf16x2 %r9, %r5, %r6;", (0xBF800001, 0), 0x0000FFFF),
        ("cvt.s64.s32 %d5, %r5; shr.u64 %d6, %d5, 32; cvt.u32.u64 %r9, %d6;", (0x80000000,), 0xFFFFFFFF),
        ("{.reg .b16 a, b; mov.b32 {a, b}, %r5; mov.b32 %r9, {b, a};}", (0x12345678,), 0x56781234),
    ],
)
def test_integers(instruction: str, operands: tuple[int, ...], expected: int) -> None:
    assert compute(instruction, *operands) == expected


@pytest.mark.parametrize(
    ("instruction", "operands", "expected"),
    [
        ("fma.rn.f32 %f9, %f5, %f6, %f7;", (1 + 2**-23, 1 - 2**-23, -1.0), -(2.0**-46)),
        ("fma.rm.f32 %f9, %f5, %f6, %f7;", (1.0, 2**-30, 1.0), 1.0),
        ("fma.rm.f32 %f9, %f5, %f6, %f7;", (1.0, -(2**-30), 1.0), 1 - 2**-24),
        ("add.rz.f32 %f9, %f5, %f6;", (1.0, -(2**-30)), 1 - 2**-24),
        ("add.rz.f32 %f9, %f5, %f6;", (-1.0, 2**-30), -(1 - 2**-24)),
        ("add.rn.f32 %f9, %f5, %f6;", (1.0, -(2**-30)), 1.0),
        ("min.f32 %f9, %f5, %f6;", (NAN, 3.0), 3.0),
        ("copysign.f32 %f9, %f5, %f6;", (-2.0, 3.0), -3.0),
        ("ex2.approx.ftz.f32 %f9, %f5;", (-130.0,), 0.0),
        ("ex2.approx.f32 %f9, %f5;", (-130.0,), 2.0**-130),
        ("cvt.sat.f32.f32 %f9, %f5;", (NAN,), 0.0),
        ("cvt.rmi.f32.f32 %f9, %f5;", (-1.5,), -2.0),
        ("cvt.rni.f32.f32 %f9, %f5;", (2.5,), 2.0),
        ("cvt.rn.f32.s32 %f9, %r5;", (-0.0,), -(2.0**31)),
        ("setp.gtu.f32 %p1, %f5, %f6; selp.f32 %f9, 0f3F800000, 0f00000000, %p1;", (NAN, 0.0), 1.0),
        ("setp.gt.f32 %p1, %f5, %f6; selp.f32 %f9, 0f3F800000, 0f00000000, %p1;", (NAN, 0.0), 0.0),
        ("setp.ne.f32 %p1, %f5, %f6; selp.f32 %f9, 0f3F800000, 0f00000000, %p1;", (NAN, 0.0), 0.0),
        ("setp.neu.f32 %p1, %f5, %f6; selp.f32 %f9, 0f3F800000, 0f00000000, %p1;", (NAN, 0.0), 1.0),
        ("setp.num.f32 %p1, %f5, %f6; selp.f32 %f9, 0f3F800000, 0f00000000, %p1;", (0.0, NAN), 0.0),
        ("setp.num.f32 %p1, %f5, %f6; selp.f32 %f9, 0f3F800000, 0f00000000, %p1;", (0.0, 0.0), 1.0),
        ("setp.nan.f32 %p1, %f5, %f6; selp.f32 %f9, 0f3F800000, 0f00000000, %p1;", (0.0, NAN), 1.0),
        ("setp.nan.f32 %p1, %f5, %f6; selp.f32 %f9, 0f3F800000, 0f00000000, %p1;", (0.0, 0.0), 0.0),
    ],
)
def test_floats(instruction: str, operands: tuple[float, ...], expected: float) -> None:
    got = compute(f"{FLOATS} {instruction} mov.b32 %r9, %f9;", *map(bits, operands))
    assert got == bits(expected)


@pytest.mark.parametrize(
    ("instruction", "operands", "expected"),
    [
        ("cvt.rn.f16x2.f32 %r9, %f5, %f6;", (1.0, -2.0), 0x3C00C000),  # the first in the high bits
        ("cvt.rn.f16x2.f32 %r9, %f5, %f6;", (1e6, 1 + 2**-11), 0x7C003C00),  # halfway goes to even
        ("cvt.rn.satfinite.f16x2.f32 %r9, %f5, %f6;", (1e6, -INF), 0x7BFFFBFF),
        ("cvt.rn.satfinite.f16x2.f32 %r9, %f5, %f6;", (NAN, 0.0), 0x7FFF0000),
        ("cvt.rn.relu.satfinite.f16x2.f32 %r9, %f5, %f6;", (-1.0, 1e6), 0x00007BFF),
        ("cvt.rn.bf16x2.f32 %r9, %f5, %f6;", (1.0, 1 + 2**-8), 0x3F803F80),
        ("cvt.rn.relu.bf16x2.f32 %r9, %f5, %f6;", (-1.0, NAN), 0x00007FFF),
        ("cvt.rzi.s32.f32 %r9, %f5;", (-1.9,), 0xFFFFFFFF),
        ("cvt.rzi.s32.f32 %r9, %f5;", (1e20,), 0x7FFFFFFF),
        ("cvt.rzi.s32.f32 %r9, %f5;", (NAN,), 0),
    ],
)
def test_conversions(instruction: str, operands: tuple[float, ...], expected: int) -> None:
    assert compute(f"{FLOATS} {instruction}", *map(bits, operands)) == expected


@pytest.mark.parametrize(
    ("mode", "by", "limits", "expected"),
    [
        ("down", 4, 31, [*range(4, 32), 28, 29, 30, 31]),
        ("up", 1, 0, [0, *range(31)]),
        ("bfly", 3, 31, [i ^ 3 for i in range(32)]),
        ("idx", 5, 31, [5] * 32),
        ("idx", 1, 0x1C1F, [i // 4 * 4 + 1 for i in range(32)]),  # in segments of 4 lanes
        ("down", 1, 0x1C1F, [i if i % 4 == 3 else i + 1 for i in range(32)]),
    ],
)
def test_shuffles(mode: str, by: int, limits: int, expected: list[int]) -> None:
    got = run(
        f"shfl.sync.{mode}.b32 %r9|%p1, %r4, {by}, {limits}, -1; st.global.u32 [%d3], %r9;",
        torch.zeros(32, dtype=torch.int32),
        torch.zeros(1),
    )
    assert got.tolist() == expected


def test_threads_that_took_different_branches_meet_again() -> None:
    """Loops of different lengths, then a vote of the whole warp."""
    got = run(
        """
        mov.u32 %r9, 0;
        LOOP:
        setp.ge.u32 %p1, %r9, %r4;
        @%p1 bra DONE;
        add.s32 %r9, %r9, 1;
        bra LOOP;
        DONE:
        setp.eq.u32 %p2, %r9, %r4;
        vote.sync.ballot.b32 %r10, %p2, -1;
        popc.b32 %r11, %r10;
        mad.lo.s32 %r12, %r11, 1000, %r9;
        st.global.u32 [%d3], %r12;
        """,
        torch.zeros(32, dtype=torch.int32),
        torch.zeros(1),
    )
    assert got.tolist() == [32000 + i for i in range(32)]


EXCHANGE = """
    mov.u32 %r9, memory; shl.b32 %r10, %r1, 2; add.s32 %r11, %r9, %r10; sub.s32 %r12, %r3, 1; sub.s32 %r12, %r12, %r1;
    shl.b32 %r12, %r12, 2; add.s32 %r12, %r9, %r12; st.shared.u32 [%r11], %r4; BARRIER ld.shared.u32 %r13, [%r12];
    st.global.u32 [%d3], %r13;
"""


def test_shared_memory_and_barriers() -> None:
    """Each of two blocks reverses its numbers, although some threads arrive on a longer way."""
    longer = "setp.lt.u32 %p1, %r1, 32; @%p1 bra HERE; add.s32 %r20, %r1, 1; HERE: bar.sync 0;"
    got = run(EXCHANGE.replace("BARRIER", longer), torch.zeros(128, dtype=torch.int32), torch.zeros(1), 0, 64, 256, 2)
    assert got.tolist() == [*range(63, -1, -1), *range(127, 63, -1)]


def test_copies_arrive_when_they_are_waited_for() -> None:
    body = """
        mov.u32 %r9, memory; shl.b32 %r10, %r1, 4; add.s32 %r11, %r9, %r10; mul.wide.u32 %d5, %r1, 16;
        add.s64 %d6, %d1, %d5; cp.async.cg.shared.global [%r11], [%d6], 16; WAIT ld.shared.u32 %r12, [%r11+4];
        st.global.u32 [%d3], %r12;
    """
    source = torch.arange(128, dtype=torch.int32)
    for wait, expected in (("cp.async.wait_all;", source[1::4].tolist()), ("", [-1] * 32)):
        got = run(body.replace("WAIT", wait), torch.zeros(32, dtype=torch.int32), source, shared=512)
        assert got.tolist() == expected


def test_atomics_return_what_was_there() -> None:
    source, to = torch.zeros(2, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    run("atom.global.add.u32 %r9, [%d1+4], 3; st.global.u32 [%d3], %r9;", to, source)
    assert source.tolist() == [0, 96]
    assert sorted(to.tolist()) == list(range(0, 96, 3))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("depth", [16, 8])
def test_matrices_loaded_from_shared_memory_are_multiplied(depth: int, kind: str) -> None:
    """A [16, depth] and B [depth, 8] by rows: ldmatrix loads A, and transposed B, into the registers mma expects."""
    half = {"f16": torch.float16, "bf16": torch.bfloat16}[kind]
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(*size, generator=generator) for size in ((16, depth), (depth, 8), (16, 8)))
    matrices = torch.cat([a.to(half).flatten(), b.to(half).flatten()]).view(torch.int32)
    words = len(matrices)
    four, two = ("{%r20, %r21, %r22, %r23}", "{%r24, %r25}") if depth == 16 else ("{%r20, %r21}", "{%r24}")
    copies = "".join(
        f"ld.global.u32 %r9, [%d4+{4 * i}]; st.shared.u32 [%r11+{4 * i}], %r9;" for i in range(0, words, 32)
    )
    right_half = "shr.u32 %r14, %r1, 4; shl.b32 %r14, %r14, 4; add.s32 %r15, %r15, %r14;" if depth == 16 else ""
    got = run(
        f"""
        mov.u32 %r10, memory; shl.b32 %r11, %r1, 2; add.s32 %r11, %r10, %r11; {copies} bar.warp.sync -1;
        // lane i: row i mod 16 of A, and columns from 8 (i / 16) on
        and.b32 %r12, %r1, 15; mul.lo.s32 %r13, %r12, {2 * depth}; add.s32 %r15, %r10, %r13; {right_half}
        ldmatrix.sync.aligned.m8n8.x{depth // 4}.shared.b16 {four}, [%r15];
        // lane i: row i of B
        and.b32 %r16, %r1, {depth - 1}; shl.b32 %r16, %r16, 4; add.s32 %r16, %r16, %r10;
        ldmatrix.sync.aligned.m8n8.x{depth // 8}.trans.shared.b16 {two}, [%r16+{32 * depth}];
        // registers of C and D: rows g and g + 8, columns 2 t and 2 t + 1
        shr.u32 %r17, %r1, 2; and.b32 %r18, %r1, 3; shl.b32 %r17, %r17, 5; shl.b32 %r18, %r18, 3;
        add.s32 %r17, %r17, %r18; cvt.u64.u32 %d5, %r17; add.s64 %d6, %d0, %d5;
        ld.global.v2.f32 {{%f10, %f11}}, [%d6]; ld.global.v2.f32 {{%f12, %f13}}, [%d6+256];
        mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32 {{%f14, %f15, %f16, %f17}}, {four}, {two},
            {{%f10, %f11, %f12, %f13}};
        st.global.v2.f32 [%d6], {{%f14, %f15}}; st.global.v2.f32 [%d6+256], {{%f16, %f17}};
        """,
        c.clone(),
        matrices,
        shared=4 * words,
    )
    expected = c.double() + a.to(half).double() @ b.to(half).double()
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("ld.global.u32 %r9, [%d4+4];", "kernel: an access of 4 bytes is out of bounds: ld.global.u32"),
        ("st.global.u32 [%d3+-4], %r4;", "out of bounds"),
        ("ld.global.u32 %r9, [%d4+2];", "not aligned"),
        ("ld.global.v2.u32 {%r9, %r10}, [%d4];", "not aligned"),
        ("ld.global.u32 %r9, [%d5];", "not aligned|out of bounds"),  # a register that was never written
        ("ld.shared.u32 %r9, [memory+64];", "out of bounds"),
        ("ld.global.nc.u32 %r9, [%d3]; st.global.u32 [%d3], %r9;", "constant"),
        ("setp.lt.u32 %p1, %r1, 16; @%p1 bra END; bar.sync 0; END: bar.warp.sync -1;", "never come"),
        ("setp.lt.u32 %p1, %r1, 16; @%p1 bra HERE; bar.warp.sync -1; bra END; HERE: bar.sync 0; END:", "never come"),
        ("setp.lt.u32 %p1, %r1, 16; @%p1 bra END; vote.sync.ballot.b32 %r9, %p1, -1; END:", "not all threads"),
    ],
)  # fmt: skip
def test_rules_are_checked(body: str, reason: str) -> None:
    with pytest.raises(PtxError, match=reason):
        run(body, torch.zeros(32, dtype=torch.int32), torch.zeros(32, dtype=torch.int32), shared=64)


@pytest.mark.parametrize(
    "body",
    [
        "sin.approx.f32 %f9, %f5;",
        "add.ftz.f32 %f9, %f5, %f6;",
        "cvt.rz.f16x2.f32 %r9, %f5, %f6;",
        "ld.volatile.global.u32 %r9, [%d4];",
        "bar.sync %r9, %r10;",
        "@%p1 add.s32 %r9, %r9, 1;",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r9}, {%r9}, {%r9}, {%r9};",
    ],
)
def test_unknown_instructions_are_refused(body: str) -> None:
    with pytest.raises(UnknownPtx):
        run(body, torch.zeros(32, dtype=torch.int32), torch.zeros(32))
