// The features of NVIDIA GPUs that kernels use beyond plain C++: shuffles, atomics, half precision, tensor cores.
//
// They are written in inline PTX, because NVRTC in PyTorch's wheels comes without CUDA's headers. tests/emulator
// defines the same functions for a CPU. Constants set with -D: EUGEN_BF16 (0: halves are IEEE fp16, 1: bfloat16),
// EUGEN_OLD_PTX (avoids features that CUDA before 12.1 lacks: saturating conversions of pairs, vectors of atomic
// additions).
#pragma once
#include "common.h"

#ifndef EUGEN_BF16
#define EUGEN_BF16 0
#endif
#ifndef EUGEN_OLD_PTX
#define EUGEN_OLD_PTX (__CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ < 1201)
#endif

namespace eugen {

typedef unsigned short uint16;  // a half of the chosen kind

enum { WARP = 32, ALL_LANES = 0xffffffff };

}  // namespace eugen

#ifdef EUGEN_EMULATED
#include "emulator.h"
#else

#define EUGEN_MEMBER __device__ __forceinline__
#define EUGEN_KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
// For kernels in which some versions of ptxas spill rather than use one more register: ptxas may use as many registers
// as the given number of blocks on a multiprocessor allows.
#define EUGEN_ROOMY_KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define EUGEN_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

#if __CUDA_ARCH__ < 750
#error "tensor cores with ldmatrix need compute capability 7.5"
#elif __CUDA_ARCH__ < 800 && EUGEN_BF16
#error "bfloat16 needs compute capability 8.0"
#endif

namespace eugen {

EUGEN_FUNCTION int lane_index() { return int(threadIdx.x) & 31; }
EUGEN_FUNCTION int warp_index() { return int(threadIdx.x) >> 5; }
EUGEN_FUNCTION uint32 hidden_zero() { return blockIdx.z; }  // zero, which the compiler does not know
EUGEN_FUNCTION void sync_block() { __syncthreads(); }
EUGEN_FUNCTION void sync_warp() { __syncwarp(); }
EUGEN_FUNCTION uint32 votes(bool vote) { return __ballot_sync(ALL_LANES, vote); }
template <class T> EUGEN_FUNCTION T shuffle(T value, int lane) { return __shfl_sync(ALL_LANES, value, lane); }
template <class T> EUGEN_FUNCTION T shuffle_up(T value, int by) { return __shfl_up_sync(ALL_LANES, value, by); }
template <class T> EUGEN_FUNCTION T shuffle_down(T value, int by) { return __shfl_down_sync(ALL_LANES, value, by); }
template <class T> EUGEN_FUNCTION T shuffle_xor(T value, int mask) { return __shfl_xor_sync(ALL_LANES, value, mask); }
EUGEN_FUNCTION int count_bits(uint32 v) { return __popc(v); }
EUGEN_FUNCTION int lowest_bit(uint32 v) { return __ffs(int(v)) - 1; }
EUGEN_FUNCTION int highest_bit(uint32 v) { return 31 - __clz(int(v)); }
EUGEN_FUNCTION float float_from_bits(uint32 v) { return __uint_as_float(v); }
EUGEN_FUNCTION uint32 bits_of_float(float v) { return __float_as_uint(v); }

EUGEN_FUNCTION void add_to(float* p, float v) { atomicAdd(p, v); }
EUGEN_FUNCTION uint32 fetch_add(uint32* p, uint32 v) { return atomicAdd(p, v); }
EUGEN_FUNCTION void raise_to(uint32* p, uint32 v) { atomicMax(p, v); }

// Whether add_to_pair is a single memory operation.
enum { PAIRS_AT_ONCE = __CUDA_ARCH__ >= 900 && !EUGEN_OLD_PTX };
// Adds to two neighboring numbers; p is a multiple of 8 bytes.
EUGEN_FUNCTION void add_to_pair(float* p, float a, float b) {
#if __CUDA_ARCH__ >= 900 && !EUGEN_OLD_PTX
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "f"(a), "f"(b) : "memory");
#else
  atomicAdd(p, a);
  atomicAdd(p + 1, b);
#endif
}

EUGEN_FUNCTION void load_pair(const float* p, float& a, float& b) {
  const float2 v = *reinterpret_cast<const float2*>(p);
  a = v.x;
  b = v.y;
}
EUGEN_FUNCTION void load_four(const float* p, float (&v)[4]) {
  const float4 r = *reinterpret_cast<const float4*>(p);
  v[0] = r.x, v[1] = r.y, v[2] = r.z, v[3] = r.w;
}
// Stores a half or a number in shared memory that other lanes read.
template <class T> EUGEN_FUNCTION void store_one(T* p, T v) { *p = v; }
// Two halves; p is a multiple of 4 bytes.
EUGEN_FUNCTION uint32 load_halves(const uint16* p) { return *reinterpret_cast<const uint32*>(p); }
EUGEN_FUNCTION void store_halves(uint16* p, uint32 v) { *reinterpret_cast<uint32*>(p) = v; }
// Four halves; p is a multiple of 8 bytes.
EUGEN_FUNCTION void load_four_halves(const uint16* p, uint32 (&v)[2]) {
  const uint2 r = *reinterpret_cast<const uint2*>(p);
  v[0] = r.x, v[1] = r.y;
}

// Stores to neighboring numbers in global memory, at once. Of a structure, NVRTC stores some parts one by one.
EUGEN_FUNCTION void store_pair(float* p, float a, float b) {
  asm volatile("st.global.v2.f32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "f"(a), "f"(b) : "memory");
}
EUGEN_FUNCTION void store_four(float* p, const float (&v)[4]) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};"
               ::"l"(__cvta_generic_to_global(p)), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
               : "memory");
}
EUGEN_FUNCTION void store_four_halves(uint16* p, const uint32 (&v)[2]) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "r"(v[0]), "r"(v[1]) : "memory");
}

// Converts two floats to two halves, rounded to nearest, with the first in the low bits.
EUGEN_FUNCTION uint32 pack(float low, float high) {
  uint32 r;
#if EUGEN_BF16
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
#elif __CUDA_ARCH__ >= 800
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
#else
  asm("{.reg .b16 a, b; cvt.rn.f16.f32 a, %1; cvt.rn.f16.f32 b, %2; mov.b32 %0, {a, b};}"
      : "=r"(r)
      : "f"(low), "f"(high));
#endif
  return r;
}

// pack() for numbers that may be too large. The maximum of fp16 is 65504, and an infinity would spoil every later sum.
// NaN stays NaN.
EUGEN_FUNCTION uint32 pack_bounded(float low, float high) {
#if EUGEN_BF16
  return pack(low, high);
#elif __CUDA_ARCH__ >= 800 && !EUGEN_OLD_PTX
  uint32 r;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  const float most = 65504.f;
  low = low > most ? most : low < -most ? -most : low;
  high = high > most ? most : high < -most ? -most : high;
  return pack(low, high);
#endif
}

// pack_bounded() of max(v, 0); NaN stays NaN.
EUGEN_FUNCTION uint32 pack_relu(float low, float high) {
#if EUGEN_BF16
  uint32 r;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#elif __CUDA_ARCH__ >= 800 && !EUGEN_OLD_PTX
  uint32 r;
  asm("cvt.rn.relu.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  return pack_bounded(low < 0.f ? 0.f : low, high < 0.f ? 0.f : high);
#endif
}

EUGEN_FUNCTION float to_float(uint16 h) {
#if EUGEN_BF16
  return __uint_as_float(uint32(h) << 16);
#else
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h));
  return r;
#endif
}
EUGEN_FUNCTION float low_half(uint32 v) { return to_float(uint16(v & 0xffff)); }
EUGEN_FUNCTION float high_half(uint32 v) { return to_float(uint16(v >> 16)); }
// The halves of a word where those of `by` are positive or NaN, otherwise zero.
EUGEN_FUNCTION uint32 where_positive(uint32 word, uint32 by) {
#if !EUGEN_BF16 || __CUDA_ARCH__ >= 900
  uint32 mask;
#if EUGEN_BF16
  asm("set.gtu.u32.bf16x2 %0, %1, %2;" : "=r"(mask) : "r"(by), "r"(0));
#else
  asm("set.gtu.u32.f16x2 %0, %1, %2;" : "=r"(mask) : "r"(by), "r"(0));
#endif
  return word & mask;
#else
  return (low_half(by) <= 0.f ? 0u : word & 0xffffu) | (high_half(by) <= 0.f ? 0u : word & 0xffff0000u);
#endif
}
EUGEN_FUNCTION uint16 to_half(float v) { return uint16(pack(v, 0.f) & 0xffff); }

// d += a b for one 16 x 16 tile a and one 16 x 8 tile b, in the fragment layout of mma.m16n8k16 (PTX ISA, 9.7.15).
EUGEN_FUNCTION void multiply_add(float (&d)[4], const uint32 (&a)[4], uint32 b0, uint32 b1) {
#if __CUDA_ARCH__ >= 800
#if EUGEN_BF16
#define EUGEN_HALVES "bf16.bf16"
#else
#define EUGEN_HALVES "f16.f16"
#endif
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." EUGEN_HALVES
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else  // Turing's instruction has half of the depth
#define EUGEN_HALF_DEEP(first, second, b)                                                                   \
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                             \
               : "r"(first), "r"(second), "r"(b))
  EUGEN_HALF_DEEP(a[0], a[1], b0);
  EUGEN_HALF_DEEP(a[2], a[3], b1);
#undef EUGEN_HALF_DEEP
#endif
}

EUGEN_FUNCTION uint32 shared_address(const void* p) { return uint32(__cvta_generic_to_shared(p)); }

// Copies 16 bytes from global to shared memory, both aligned to 16 bytes. Complete once the same thread has waited.
EUGEN_FUNCTION void copy_async(uint16* to, const uint16* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               ::"r"(shared_address(to)), "l"(__cvta_generic_to_global(from))
               : "memory");
#else
  *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
#endif
}
EUGEN_FUNCTION void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Loads four 8 x 8 matrices of halves from shared memory. Lane i supplies the address of row i % 8 of matrix i / 8.
EUGEN_FUNCTION void load_matrices(uint32 (&r)[4], const uint16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
EUGEN_FUNCTION void load_matrices_transposed(uint32 (&r)[4], const uint16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// Loads two matrices; lanes 0 to 15 supply the addresses.
EUGEN_FUNCTION void load_two_matrices_transposed(uint32 (&r)[2], const uint16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

}  // namespace eugen
#endif
