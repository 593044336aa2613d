// A CUDA device emulated on a CPU, for tests. Kernels are compiled by a C++ compiler and run one block after the other,
// with every thread as a fiber. Operations of several threads (mma, ldmatrix, shuffles, votes, barriers) wait until all
// of them have arrived.
//
// Apart from wrong results, the emulator detects:
// - lanes of a warp that reach different collectives;
// - barriers that not all threads reach;
// - missing barriers, since warps and lanes run as far as they can, in one of several orders;
// - lanes that exchange data through shared memory without a barrier between them, in any order, if both sides use the
//   functions below;
// - reads of uninitialized shared memory and stack, since both are filled with NaN;
// - accesses beyond an array or beyond shared memory, since both end at an inaccessible page;
// - misaligned vectors;
// - use of asynchronous copies before they have been waited for, since they arrive no earlier and invalidate the former
//   content immediately.
#pragma once
#include <csetjmp>
#include <cstdint>
#include <cstring>

#define __global__
#define __restrict__ __restrict
#define EUGEN_MEMBER inline
#define EUGEN_KERNEL(threads) extern "C" void
#define EUGEN_ROOMY_KERNEL(threads, blocks) extern "C" void
#define EUGEN_SHARED(name) unsigned char* name = emulator::shared

namespace emulator {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
extern Index thread_index, block_index, block_size, grid_size;
extern unsigned char* shared;

// Stops the launch with an error message.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// A collective of one warp. `kind` identifies the collective and `argument` belongs to this lane. The last lane to
// arrive runs `all` on the arguments of all 32 lanes.
void collective(int kind, void* argument, void (*all)(void** arguments));
void sync_block();

// Record accesses to shared memory. A barrier has to separate them from other threads' accesses, unless both only read.
// Votes, shuffles, mma and ldmatrix synchronize lanes but do not order memory; sync_warp and sync_block do.
void note_read(const void* p, int bytes);
void note_write(const void* p, int bytes);

// Copies 16 bytes, which arrive when the thread waits for all of its copies.
void copy_later(void* to, const void* from);
void finish_copies();

enum Kind { BALLOT, SHUFFLE, SYNC_WARP, MULTIPLY_ADD, LOAD_MATRICES, LOAD_TRANSPOSED, LOAD_TWO_TRANSPOSED };

inline void check_alignment(const void* p, std::uintptr_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(p) % bytes) fail("an access of %d bytes is not aligned", int(bytes));
}

template <class T>
struct ShuffleArgument {
  T value, result;
  int from;
};

template <class T>
inline T exchange(T value, int from) {
  ShuffleArgument<T> argument{value, value, from};
  collective(SHUFFLE, &argument, [](void** arguments) {
    for (int i = 0; i < 32; i++) {
      auto* mine = static_cast<ShuffleArgument<T>*>(arguments[i]);
      // A lane outside of the warp returns the lane's own value, as in hardware.
      if (mine->from >= 0 && mine->from < 32) mine->result = static_cast<ShuffleArgument<T>*>(arguments[mine->from])->value;
    }
  });
  return argument.result;
}

}  // namespace emulator

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid_size

namespace eugen {

EUGEN_FUNCTION int lane_index() { return int(threadIdx.x) & 31; }
EUGEN_FUNCTION int warp_index() { return int(threadIdx.x) >> 5; }
EUGEN_FUNCTION void sync_block() { emulator::sync_block(); }
EUGEN_FUNCTION void sync_warp() {
  emulator::collective(emulator::SYNC_WARP, nullptr, [](void**) {});
}

struct BallotArgument {
  bool vote;
  uint32 result;
};
static inline uint32 votes(bool vote) {
  BallotArgument argument{vote, 0};
  emulator::collective(emulator::BALLOT, &argument, [](void** arguments) {
    uint32 all = 0;
    for (int i = 0; i < 32; i++) all |= uint32(static_cast<BallotArgument*>(arguments[i])->vote) << i;
    for (int i = 0; i < 32; i++) static_cast<BallotArgument*>(arguments[i])->result = all;
  });
  return argument.result;
}
template <class T> EUGEN_FUNCTION T shuffle(T value, int lane) { return emulator::exchange(value, lane & 31); }
template <class T> EUGEN_FUNCTION T shuffle_up(T value, int by) { return emulator::exchange(value, lane_index() - by); }
template <class T> EUGEN_FUNCTION T shuffle_down(T value, int by) { return emulator::exchange(value, lane_index() + by); }
template <class T> EUGEN_FUNCTION T shuffle_xor(T value, int mask) { return emulator::exchange(value, lane_index() ^ mask); }
EUGEN_FUNCTION int count_bits(uint32 v) { return __builtin_popcount(v); }
EUGEN_FUNCTION int lowest_bit(uint32 v) { return __builtin_ffs(int(v)) - 1; }
EUGEN_FUNCTION int highest_bit(uint32 v) { return 31 - __builtin_clz(v); }
EUGEN_FUNCTION float float_from_bits(uint32 v) {
  float f;
  std::memcpy(&f, &v, 4);
  return f;
}
EUGEN_FUNCTION uint32 bits_of_float(float v) {
  uint32 bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

// Fibers switch only at collectives, so plain operations are atomic.
EUGEN_FUNCTION void add_to(float* p, float v) {
  emulator::check_alignment(p, 4);
  *p += v;
}
EUGEN_FUNCTION uint32 fetch_add(uint32* p, uint32 v) {
  const uint32 before = *p;
  *p += v;
  return before;
}
EUGEN_FUNCTION void raise_to(uint32* p, uint32 v) { *p = *p > v ? *p : v; }

EUGEN_FUNCTION void load_pair(const float* p, float& a, float& b) {
  emulator::check_alignment(p, 8);
  a = p[0], b = p[1];
}
EUGEN_FUNCTION void store_pair(float* p, float a, float b) {
  emulator::check_alignment(p, 8);
  p[0] = a, p[1] = b;
}
enum { PAIRS_AT_ONCE = EUGEN_EMULATED >= 90 };
EUGEN_FUNCTION void add_to_pair(float* p, float a, float b) {
  emulator::check_alignment(p, 8);
  p[0] += a, p[1] += b;
}
EUGEN_FUNCTION void load_four(const float* p, float (&v)[4]) {
  emulator::check_alignment(p, 16);
  emulator::note_read(p, 16);
  std::memcpy(v, p, 16);
}
EUGEN_FUNCTION uint32 load_halves(const uint16* p) {
  emulator::check_alignment(p, 4);
  emulator::note_read(p, 4);
  uint32 v;
  std::memcpy(&v, p, 4);
  return v;
}
EUGEN_FUNCTION void store_halves(uint16* p, uint32 v) {
  emulator::check_alignment(p, 4);
  emulator::note_write(p, 4);
  std::memcpy(p, &v, 4);
}
EUGEN_FUNCTION void store_four(float* p, const float (&v)[4]) {
  emulator::check_alignment(p, 16);
  std::memcpy(p, v, 16);
}
EUGEN_FUNCTION uint32 hidden_zero() { return 0; }
EUGEN_FUNCTION void load_four_halves(const uint16* p, uint32 (&v)[2]) {
  emulator::check_alignment(p, 8);
  std::memcpy(v, p, 8);
}
EUGEN_FUNCTION void store_four_halves(uint16* p, const uint32 (&v)[2]) {
  emulator::check_alignment(p, 8);
  std::memcpy(p, v, 8);
}
template <class T> EUGEN_FUNCTION void store_one(T* p, T v) {
  emulator::note_write(p, sizeof(T));
  *p = v;
}

EUGEN_FUNCTION float to_float(uint16 h) {
#if EUGEN_BF16
  return float_from_bits(uint32(h) << 16);
#else
  _Float16 v;
  std::memcpy(&v, &h, 2);
  return float(v);
#endif
}
EUGEN_FUNCTION uint16 to_half(float v) {
#if EUGEN_BF16
  const uint32 bits = bits_of_float(v);
  return v != v ? 0x7fff : uint16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#else
  const _Float16 h = _Float16(v);
  uint16 bits;
  std::memcpy(&bits, &h, 2);
  return bits;
#endif
}
EUGEN_FUNCTION uint32 pack(float low, float high) { return uint32(to_half(low)) | uint32(to_half(high)) << 16; }
EUGEN_FUNCTION uint32 pack_bounded(float low, float high) {
#if !EUGEN_BF16
  const float most = 65504.f;
  low = low > most ? most : low < -most ? -most : low;
  high = high > most ? most : high < -most ? -most : high;
#endif
  return pack(low, high);
}
EUGEN_FUNCTION uint32 pack_relu(float low, float high) { return pack_bounded(low < 0.f ? 0.f : low, high < 0.f ? 0.f : high); }
EUGEN_FUNCTION float low_half(uint32 v) { return to_float(uint16(v & 0xffff)); }
EUGEN_FUNCTION float high_half(uint32 v) { return to_float(uint16(v >> 16)); }

EUGEN_FUNCTION uint32 where_positive(uint32 word, uint32 by) {
  return (low_half(by) <= 0.f ? 0u : word & 0xffffu) | (high_half(by) <= 0.f ? 0u : word & 0xffff0000u);
}

struct MultiplyArgument {
  float* d;
  const uint32* a;
  uint32 b[2];
};

// m16n8kDEPTH: lane 4 g + t holds columns 2 t and 2 t + 1 of each eight of rows g and g + 8 of a, and column g of b.
template <int DEPTH>
static void multiply_all(void** arguments) {
  static_assert(DEPTH == 8 || DEPTH == 16, "");
  float a[16][DEPTH], b[DEPTH][8];
  for (int i = 0; i < 32; i++) {
    const auto* m = static_cast<MultiplyArgument*>(arguments[i]);
    const int g = i >> 2, t = i & 3;
    for (int word = 0; word < DEPTH / 4; word++) {
      a[g + (word & 1) * 8][(word >> 1) * 8 + 2 * t] = low_half(m->a[word]);
      a[g + (word & 1) * 8][(word >> 1) * 8 + 2 * t + 1] = high_half(m->a[word]);
    }
    for (int word = 0; word < DEPTH / 8; word++) {
      b[word * 8 + 2 * t][g] = low_half(m->b[word]);
      b[word * 8 + 2 * t + 1][g] = high_half(m->b[word]);
    }
  }
  float d[16][8] = {};
  for (int r = 0; r < 16; r++)
    for (int k = 0; k < DEPTH; k++)
      for (int c = 0; c < 8; c++) d[r][c] += a[r][k] * b[k][c];
  for (int i = 0; i < 32; i++)
    for (int q = 0; q < 4; q++)
      static_cast<MultiplyArgument*>(arguments[i])->d[q] += d[(i >> 2) + (q >> 1) * 8][2 * (i & 3) + (q & 1)];
}

enum { MULTIPLY_DEPTH = EUGEN_EMULATED >= 80 ? 16 : 8 };  // Turing's instruction has half of the depth

static inline void multiply_add(float (&d)[4], const uint32 (&a)[4], uint32 b0, uint32 b1) {
  if constexpr (MULTIPLY_DEPTH == 16) {
    MultiplyArgument argument{d, a, {b0, b1}};
    emulator::collective(emulator::MULTIPLY_ADD, &argument, multiply_all<16>);
  } else {
    MultiplyArgument first{d, a, {b0, 0}}, second{d, a + 2, {b1, 0}};
    emulator::collective(emulator::MULTIPLY_ADD, &first, multiply_all<8>);
    emulator::collective(emulator::MULTIPLY_ADD, &second, multiply_all<8>);
  }
}

static inline void copy_async(uint16* to, const uint16* from) {
  emulator::check_alignment(to, 16);
  emulator::check_alignment(from, 16);
  emulator::note_write(to, 16);
  emulator::copy_later(to, from);
}
static inline void wait_for_copies() { emulator::finish_copies(); }

// A row of each matrix, read when the lane arrives. sync_warp has to ensure that other lanes have written it by then.
struct LoadArgument {
  uint32* r;
  uint16 row[8];

  LoadArgument(uint32* r, const uint16* from) : r(r) {
    emulator::check_alignment(from, 16);
    emulator::note_read(from, 16);
    std::memcpy(row, from, 16);
  }
};

// Row i of matrix j comes from lane 8 j + i. Lane 4 g + t receives elements 2 t and 2 t + 1 of row g of each matrix, or
// of column g if TRANSPOSED.
template <int MATRICES, bool TRANSPOSED>
static void load_all_matrices(void** arguments) {
  for (int j = 0; j < MATRICES; j++) {
    const uint16* m[8];
    for (int r = 0; r < 8; r++) m[r] = static_cast<LoadArgument*>(arguments[j * 8 + r])->row;
    for (int i = 0; i < 32; i++) {
      const int g = i >> 2, t = i & 3;
      const uint32 low = TRANSPOSED ? m[2 * t][g] : m[g][2 * t], high = TRANSPOSED ? m[2 * t + 1][g] : m[g][2 * t + 1];
      static_cast<LoadArgument*>(arguments[i])->r[j] = low | high << 16;
    }
  }
}
static inline void load_matrices(uint32 (&r)[4], const uint16* row) {
  LoadArgument argument(r, row);
  emulator::collective(emulator::LOAD_MATRICES, &argument, load_all_matrices<4, false>);
}
static inline void load_matrices_transposed(uint32 (&r)[4], const uint16* row) {
  LoadArgument argument(r, row);
  emulator::collective(emulator::LOAD_TRANSPOSED, &argument, load_all_matrices<4, true>);
}
static inline void load_two_matrices_transposed(uint32 (&r)[2], const uint16* row) {
  LoadArgument argument(r, row);
  emulator::collective(emulator::LOAD_TWO_TRANSPOSED, &argument, load_all_matrices<2, true>);
}

}  // namespace eugen
