"""The errors that the emulator guarantees to detect, on kernels written to contain them."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from eugen_nerf.ops.cuda import Pointers
from tests.emulator import device as emulator
from tests.emulator.device import ORDERS, EmulatedDevice, EmulationError

# Each kernel copies in[i] to out[i] for 64 threads, in its own wrong way.
PROGRAM = """
#include "simt.cuh"
using namespace eugen;
EUGEN_KERNEL(64) right(const float* in, float* out) {
  EUGEN_SHARED(memory);
  float* shared = reinterpret_cast<float*>(memory);
  shared[63 - threadIdx.x] = in[63 - threadIdx.x];
  sync_block();
  out[threadIdx.x] = shared[threadIdx.x];
}
EUGEN_KERNEL(64) right_within_warps(const float* in, float* out) {
  EUGEN_SHARED(memory);
  uint16* shared = reinterpret_cast<uint16*>(memory);
  for (int round = 0; round < 2; round++) {
    store_halves(shared + 2 * (threadIdx.x ^ 1), bits_of_float(in[threadIdx.x ^ 1]));
    sync_warp();
    out[threadIdx.x] = float_from_bits(load_halves(shared + 2 * threadIdx.x));
    sync_warp();
  }
  sync_block();
  store_halves(shared + 2 * (threadIdx.x ^ 32), 0);
}
EUGEN_KERNEL(64) no_barrier(const float* in, float* out) {
  EUGEN_SHARED(memory);
  float* shared = reinterpret_cast<float*>(memory);
  shared[63 - threadIdx.x] = in[63 - threadIdx.x];
  out[threadIdx.x] = shared[threadIdx.x];
}
EUGEN_KERNEL(64) barrier_for_some(const float* in, float* out) {
  if (threadIdx.x < 40) sync_block(); else votes(true);
  out[threadIdx.x] = in[threadIdx.x];
}
EUGEN_KERNEL(64) different_collectives(const float* in, float* out) {
  if (threadIdx.x & 1) votes(true); else sync_warp();
  out[threadIdx.x] = in[threadIdx.x];
}
EUGEN_KERNEL(64) reads_beyond(const float* in, float* out) { out[threadIdx.x] = in[threadIdx.x + 8]; }
EUGEN_KERNEL(64) reads_before(const float* in, float* out) { out[threadIdx.x] = in[int(threadIdx.x) - 1]; }
EUGEN_KERNEL(64) writes_beyond(const float* in, float* out) { out[threadIdx.x + 4] = in[threadIdx.x]; }
EUGEN_KERNEL(64) beyond_shared(const float* in, float* out) {
  EUGEN_SHARED(memory);
  reinterpret_cast<float*>(memory)[threadIdx.x + 64] = in[threadIdx.x];
  out[threadIdx.x] = in[threadIdx.x];
}
EUGEN_KERNEL(64) unwritten_shared(const float* in, float* out) {
  EUGEN_SHARED(memory);
  out[threadIdx.x] = reinterpret_cast<float*>(memory)[threadIdx.x] + in[threadIdx.x];
}
EUGEN_KERNEL(64) only_a_vote_between(const float* in, float* out) {
  EUGEN_SHARED(memory);
  uint16* shared = reinterpret_cast<uint16*>(memory);
  store_halves(shared + 2 * (threadIdx.x ^ 1), bits_of_float(in[threadIdx.x ^ 1]));
  votes(true);
  out[threadIdx.x] = float_from_bits(load_halves(shared + 2 * threadIdx.x));
}
EUGEN_KERNEL(64) overwrites_what_others_read(const float* in, float* out) {
  EUGEN_SHARED(memory);
  uint16* shared = reinterpret_cast<uint16*>(memory);
  store_halves(shared + 2 * (threadIdx.x ^ 1), bits_of_float(in[threadIdx.x ^ 1]));
  sync_warp();
  out[threadIdx.x] = float_from_bits(load_halves(shared + 2 * threadIdx.x));
  votes(true);
  store_halves(shared + 2 * (threadIdx.x ^ 1), 0);
}
EUGEN_KERNEL(64) only_a_warp_barrier_between(const float* in, float* out) {
  EUGEN_SHARED(memory);
  uint16* shared = reinterpret_cast<uint16*>(memory);
  store_halves(shared + 2 * (threadIdx.x ^ 32), bits_of_float(in[threadIdx.x ^ 32]));
  if (in[0] == 0.f) sync_warp(); else sync_block();
  out[threadIdx.x] = float_from_bits(load_halves(shared + 2 * threadIdx.x));
}
EUGEN_KERNEL(64) misaligned(const float* in, float* out) {
  float a, b;
  load_pair(in + 1, a, b);
  out[threadIdx.x] = in[threadIdx.x];
}
struct Table {
  int count;
  float* at[2];
};
EUGEN_KERNEL(64) through_pointers(const Table table) { table.at[1][threadIdx.x] = table.at[0][threadIdx.x]; }
EUGEN_KERNEL(64) beyond_pointers(const Table table) { table.at[1][threadIdx.x + 4] = table.at[0][threadIdx.x]; }
"""
KERNELS = [line.split("(64) ")[1].split("(")[0] for line in PROGRAM.splitlines() if "(64) " in line]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for name in ("simt.cuh", "common.h"):
        (folder / name).write_text((emulator.SOURCE / name).read_text())
    (folder / "misbehaving.cu").write_text(PROGRAM)
    return folder


def run(kernel: str, order: str, sources: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the kernel copied its input correctly.

    Raises:
        EmulationError: the kernel violated a rule.
    """
    monkeypatch.setitem(emulator.KERNELS, "misbehaving.cu", tuple(KERNELS))
    device = EmulatedDevice(80, order, sources=sources)
    numbers, out = torch.arange(64.0), torch.full((64,), -1.0)
    device.launch("misbehaving.cu", (), kernel, (1, 1), 64, 256, (numbers, out))
    return torch.equal(out, numbers)


class Table(Pointers):
    _fields_ = (("count", ctypes.c_int), ("at", ctypes.c_void_p * 2))


def test_arrays_that_a_structure_points_to(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(emulator.KERNELS, "misbehaving.cu", tuple(KERNELS))
    numbers, out = torch.arange(64.0), torch.full((64,), -1.0)
    table = Table(2, (ctypes.c_void_p * 2)(numbers.data_ptr(), out.data_ptr()))
    table.tensors = (numbers, out)
    device = EmulatedDevice(80, sources=sources)
    with pytest.raises(EmulationError, match="access at byte 256 of array 2, which has 256 bytes"):
        device.launch("misbehaving.cu", (), "beyond_pointers", (1, 1), 64, 0, (table,))
    assert (out == -1).all()
    device.launch("misbehaving.cu", (), "through_pointers", (1, 1), 64, 0, (table,))
    assert torch.equal(out, numbers)


@pytest.mark.parametrize("order", ORDERS)
def test_right(order: str, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in ("right", "right_within_warps"):
        assert run(kernel, order, sources, monkeypatch)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("barrier_for_some", "never reach"),
        ("different_collectives", "different collectives"),
        ("reads_beyond", "access at byte 256 of array 0, which has 256 bytes"),
        ("writes_beyond", "of array 1"),
        ("beyond_shared", "of array 2"),
        ("misaligned", "not aligned"),
        ("only_a_vote_between", "reads shared memory that another thread has written"),
        ("overwrites_what_others_read", "writes shared memory that another thread has read"),
        ("only_a_warp_barrier_between", "without a barrier between"),
    ],
)
def test_stopped(kernel: str, message: str, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EmulationError, match=message):
        run(kernel, "forwards", sources, monkeypatch)


# One product of 16 x 16 and 16 x 8 numbers. Which elements a lane holds is written as CUTLASS has it in
# mma_traits_sm80.hpp (SM80_16x8x16): strides of lane and value, in matrices that begin with the rows of A, B and D.
FRAGMENTS = """
#include "simt.cuh"
using namespace eugen;
EUGEN_KERNEL(32) product(const float* a, const float* b, float* d, float* depth) {
  const int t = lane_index() % 4, g = lane_index() / 4;
  uint32 left[4], right[2];
  float sums[4] = {};
  for (int v2 = 0; v2 < 2; v2++)
    for (int v1 = 0; v1 < 2; v1++) {
      const int at = 32 * t + g + 8 * v1 + 128 * v2;  // of (row, k) in 16 x 16
      left[2 * v2 + v1] = pack(a[at], a[at + 16]);
    }
  for (int v1 = 0; v1 < 2; v1++) {
    const int at = 16 * t + g + 64 * v1;  // of (column, k) in 8 x 16
    right[v1] = pack(b[at], b[at + 8]);
  }
  multiply_add(sums, left, right[0], right[1]);
  for (int v = 0; v < 4; v++) d[32 * t + g + 16 * (v & 1) + 8 * (v >> 1)] = sums[v];  // of (row, column) in 16 x 8
  *depth = MULTIPLY_DEPTH;
}
"""


@pytest.mark.parametrize(("architecture", "depth"), [(75, 8), (80, 16), (120, 16)])
def test_products_take_fragments_as_cutlass_describes_them(
    architecture: int, depth: int, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sources / "fragments.cu").write_text(FRAGMENTS)
    monkeypatch.setitem(emulator.KERNELS, "fragments.cu", ("product",))
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-8, 8, (16, n), generator=generator).float() for n in (16, 8))  # exact as halves
    d, found = torch.empty(8, 16), torch.empty(1)
    device = EmulatedDevice(architecture, sources=sources)
    device.launch("fragments.cu", (), "product", (1, 1), 32, 0, (a.T.contiguous(), b, d, found))
    assert torch.equal(d.T, a @ b)
    assert found == depth


def test_seen_in_one_of_the_orders(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in ("no_barrier", "unwritten_shared"):
        assert not all(run(kernel, order, sources, monkeypatch) for order in ORDERS)
    with pytest.raises(EmulationError, match="access at byte -4 of array 0"):
        run("reads_before", "backwards", sources, monkeypatch)
