"""Every op, run from the PTX that NVRTC makes of its kernels, against float64 or eager PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from eugen_nerf.ops import HashGridLayout, cuda
from eugen_nerf.ops.self_check import check_ops
from tests.emulator.device import emulated
from tests.emulator.mutations import Mutation
from tests.emulator.test_mutations import CASES
from tests.ops.comparisons import (
    CHAINS,
    TOLERANCE,
    adam_beyond_its_gradient,
    check_numbers_beyond_halves,
    network_case,
    network_errors,
)
from tests.ops.random_networks import check_random_network
from tests.ptx.accesses import Count, of_hash_grid, of_network
from tests.ptx.device import PtxDevice
from tests.ptx.memory import PtxError

CPU = torch.device("cpu")
PARTS = ("color", "norm", "order-2", "inner-norm", "gelu", "width-128")
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def agrees(device: PtxDevice, name: str, half: torch.dtype = torch.float16, n: int = 100) -> bool:
    """Whether a network's result and gradients are those of float64."""
    return all(error <= TOLERANCE[half] for error in network_errors(device, network_case(name, n, half)))


@pytest.mark.parametrize("name", CHAINS)
def test_networks(name: str) -> None:
    assert agrees(PtxDevice(90), name)


@pytest.mark.parametrize("seed", range(4))
def test_random_networks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check_random_network(seed, PtxDevice(90), "cpu", monkeypatch)


@pytest.mark.parametrize("architecture", [75, 80, 86, 100, 120])  # 89 has the limits of 86, and its instructions
@pytest.mark.parametrize("name", PARTS)
def test_networks_on_other_architectures(name: str, architecture: int) -> None:
    assert agrees(PtxDevice(architecture), name)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("name", PARTS)
def test_networks_in_bfloat16(name: str, architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUGEN_PRECISION", "bf16")
    assert agrees(PtxDevice(architecture), name, torch.bfloat16)


@pytest.mark.parametrize("name", ["density", "color"])  # even and odd rows
def test_half_rows(name: str) -> None:
    for error in network_errors(PtxDevice(90), network_case(name, 100, torch.float16), torch.float16):
        assert error <= TOLERANCE[torch.float16]


@pytest.mark.parametrize("rows", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["color", "rank-3"])
def test_padded_rows(name: str, rows: torch.dtype) -> None:
    for error in network_errors(PtxDevice(90), network_case(name, 100, torch.float16), rows, padded=True):
        assert error <= TOLERANCE[torch.float16]


@pytest.mark.parametrize("architecture", [75, 90])
def test_numbers_beyond_halves(architecture: int) -> None:
    device = PtxDevice(architecture)
    check_numbers_beyond_halves(lambda case, x: cuda.network_forward(device, x, case.parameters, case.spec, case.eps))


@pytest.mark.parametrize(("architecture", "precision"), [(90, "fp16"), (120, "bf16")])
def test_all_ops_pass_the_check_before_their_first_use(
    architecture: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EUGEN_PRECISION", precision)
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)
    monkeypatch.setattr("eugen_nerf.ops.dispatch._native_cpu_problem", lambda: None)
    with emulated(PtxDevice(architecture, blocks=8)):
        assert check_ops(CPU, "cpu") == []


@pytest.mark.parametrize("case", ["grid", "products", "rays", "render"])
def test_other_ops_on_turing(case: str) -> None:
    assert CASES[case](PtxDevice(75))


def test_accesses_beyond_an_array_are_found() -> None:
    with pytest.raises(PtxError, match=r"masked_adam: .* out of bounds"):
        adam_beyond_its_gradient(PtxDevice(), "cpu")


def test_larger_blocks_than_a_kernel_allows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "THREADS", 256)
    with pytest.raises(PtxError, match="masked_adam: 256 threads in blocks of at most 128"):
        adam_beyond_its_gradient(PtxDevice(), "cpu")


# Planted bugs, in what the emulator replaces by C++ of its own: the inline PTX and the choice of intrinsics.


def network(device: PtxDevice, half: torch.dtype) -> bool:
    return agrees(device, "color", half)


def norm(device: PtxDevice, half: torch.dtype) -> bool:
    return agrees(device, "norm", half)


def streamed(device: PtxDevice, half: torch.dtype) -> bool:
    return agrees(device, "width-256", half, 20)


def large(device: PtxDevice, half: torch.dtype) -> bool:
    try:
        check_numbers_beyond_halves(
            lambda case, x: cuda.network_forward(device, x, case.parameters, case.spec, case.eps)
        )
    except AssertionError:
        return False
    return True


def grid(device: PtxDevice, half: torch.dtype) -> bool:
    return CASES["grid"](device)


def rays(device: PtxDevice, half: torch.dtype) -> bool:
    return CASES["rays"](device)


MUTATIONS = [
    (network, 90, "fp16", '"cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)',
     '"cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(low), "f"(high)'),
    (network, 80, "bf16", '"cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)',
     '"cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(low), "f"(high)'),
    (network, 75, "fp16", "mov.b32 %0, {a, b};", "mov.b32 %0, {b, a};"),
    (network, 90, "fp16", "cvt.rn.satfinite.f16x2.f32 %0, %1, %2;", "cvt.rn.satfinite.f16x2.f32 %0, %2, %1;"),
    (large, 90, "fp16", "cvt.rn.relu.satfinite.f16x2.f32", "cvt.rn.relu.f16x2.f32"),
    (network, 90, "fp16", "cvt.rn.relu.satfinite.f16x2.f32", "cvt.rn.satfinite.f16x2.f32"),
    (network, 80, "bf16", "cvt.rn.relu.bf16x2.f32", "cvt.rn.bf16x2.f32"),
    (large, 75, "fp16", "low = low > most ? most : low < -most ? -most : low;", ""),
    (network, 90, "fp16", "set.gtu.u32.f16x2", "set.geu.u32.f16x2"),
    (network, 90, "bf16", "set.gtu.u32.bf16x2", "set.geu.u32.bf16x2"),
    (network, 80, "bf16", "high_half(by) <= 0.f ? 0u", "low_half(by) <= 0.f ? 0u"),
    (network, 80, "bf16", '#define EUGEN_HALVES "bf16.bf16"', '#define EUGEN_HALVES "f16.f16"'),
    (network, 90, "fp16", '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])', '"r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3])'),
    (network, 90, "fp16", '"r"(a[3]), "r"(b0), "r"(b1)', '"r"(a[3]), "r"(b1), "r"(b0)'),
    (network, 90, "fp16", "{%8, %9}, {%0, %1, %2, %3};", "{%8, %9}, {%0, %1, %3, %2};"),
    (network, 75, "fp16", "EUGEN_HALF_DEEP(a[2], a[3], b1);", "EUGEN_HALF_DEEP(a[2], a[3], b0);"),
    (network, 75, "fp16", "EUGEN_HALF_DEEP(a[0], a[1], b0);", "EUGEN_HALF_DEEP(a[0], a[2], b0);"),
    (network, 90, "fp16", "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", "ldmatrix.sync.aligned.m8n8.x4.shared.b16"),
    (network, 90, "fp16", "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}",
     "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %2, %1, %3}"),
    (network, 90, "fp16", "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16", "ldmatrix.sync.aligned.m8n8.x2.shared.b16"),
    (streamed, 80, "fp16", '"cp.async.wait_all;"', '""'),
    (streamed, 75, "fp16", "*reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);",
     "*reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(from);"),
    (norm, 90, "fp16", "__shfl_xor_sync(ALL_LANES, value, mask)", "__shfl_down_sync(ALL_LANES, value, mask)"),
    (rays, 90, "fp16", "__shfl_up_sync(ALL_LANES, value, by)", "__shfl_down_sync(ALL_LANES, value, by)"),
    (rays, 90, "fp16", "31 - __clz(int(v))", "__clz(int(v))"),
    (rays, 90, "fp16", "return __popc(v);", "return __popc(v) & 15;"),
    (rays, 90, "fp16", "__ballot_sync(ALL_LANES, vote)", "__ballot_sync(ALL_LANES, !vote)"),
    (grid, 90, "fp16", "__ffs(int(v)) - 1", "__ffs(int(v))"),
    (grid, 90, "fp16", "red.global.add.v2.f32 [%0], {%1, %2};", "red.global.add.v2.f32 [%0], {%2, %1};"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "architecture", "precision", "right", "wrong"), MUTATIONS)
def test_planted_bugs_are_found(
    check, architecture: int, precision: str, right: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("EUGEN_PRECISION", precision)
    try:
        correct = check(PtxDevice(architecture, bug=Mutation("simt.cuh", right, wrong)), PRECISIONS[precision])
    except PtxError:
        return
    assert not correct


@pytest.mark.parametrize("architecture", [80, 90])
def test_gradients_of_a_hash_grid_touch_few_sectors(architecture: int) -> None:
    """Corners that are neighbors along x are added together, as are samples in the same cell."""
    layout = HashGridLayout.build(1, 2, 14, 256, 256)
    assert not layout.is_dense(0)
    positions = torch.rand(512, 3, generator=torch.Generator().manual_seed(0))
    # A pair of corners lies in two sectors if x is the last of a sector's four vertices: 4 pairs, 1.25 sectors each.
    assert of_hash_grid(positions, layout, architecture).transfers <= 5.1 * 512
    runs = positions[:64].repeat_interleave(8, dim=0)
    assert of_hash_grid(runs, layout, architecture).transfers <= 5.3 * 64


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("width", [32, 64])
def test_networks_transfer_whole_sectors_and_wait_for_no_bank(width: int, dtype: torch.dtype) -> None:
    """Rows whose length is a multiple of four."""
    counts = of_network(width, dtype)
    words = 32 * torch.finfo(dtype).bits // 8  # sectors of 32 rows of 32 numbers
    assert counts["network_forward", "global", False].transfers == words
    assert counts["network_forward", "global", True].transfers == words // 2
    assert counts["network_backward", "global", False].transfers == words + words // 2
    assert counts["network_backward", "global", True].transfers == words
    check_waits_for_no_bank(counts)


def check_waits_for_no_bank(counts: Mapping[tuple[str, str, bool], Count]) -> None:
    for (kernel, space, _), count in counts.items():
        if kernel.startswith("network") and space == "shared":
            assert count.transfers == count.needed


def test_padded_rows_are_transferred_in_whole_sectors() -> None:
    counts = of_network(64, torch.float32, inputs=31, outputs=16, padded=True)
    assert counts["network_forward", "global", False].transfers == 4 * 32
    assert counts["network_backward", "global", True].transfers == 4 * 32
    check_waits_for_no_bank(counts)
