// Kernels of one network. Constants set with -D:
//   EUGEN_SPEC           the chain's description, packing.PackedChain.spec
//   EUGEN_WARPS, EUGEN_TILES, EUGEN_STREAMED                    tiles of the forward kernel, see tiles.py
//   EUGEN_BACK_WARPS, EUGEN_BACK_TILES, EUGEN_BACK_STREAMED, EUGEN_KEEP_SUMS   tiles of the backward kernel
//   EUGEN_HALF_ROWS      inputs and outputs are halves instead of floats
//   EUGEN_IN_ROW         numbers from the start of an input row to that of the next: those of a row, or these rounded up
//                        to a multiple of four
#include "network_backward.cuh"

namespace eugen {

// Networks so wide that their backward pass streams weights need all available registers.
#if EUGEN_BACK_STREAMED
#define EUGEN_NETWORK_KERNEL(threads) EUGEN_ROOMY_KERNEL(threads, 1)
#else
#define EUGEN_NETWORK_KERNEL EUGEN_KERNEL
#endif

struct Spec {
  static constexpr int in_row = EUGEN_IN_ROW;
  static constexpr int numbers[] = {EUGEN_SPEC};
};
typedef Chain<Spec> Network;

#if EUGEN_HALF_ROWS
typedef uint16 Io;
#else
typedef float Io;
#endif

typedef Weights<Network, EUGEN_STREAMED, EUGEN_WARPS * WARP> ForwardWeights;
typedef Backward<Network, EUGEN_BACK_WARPS, EUGEN_BACK_TILES, EUGEN_BACK_STREAMED, EUGEN_KEEP_SUMS> NetworkBackward;

// tiles.py plans with the same numbers. A mismatch is a compile error here, instead of a memory error later.
static_assert(ForwardWeights::bytes == EUGEN_SHARED_BYTES, "shared memory of the forward kernel");
static_assert(Network::in <= EUGEN_IN_ROW && EUGEN_IN_ROW < Network::in + 4, "the length of input rows");
static_assert(NetworkBackward::bytes == EUGEN_BACK_SHARED_BYTES, "shared memory of the backward kernel");

struct Outputs {
  Io* y;
  int64 first, n;

  static constexpr bool OUTPUTS = true;
  template <int I, class A, class N> EUGEN_MEMBER void inputs(const A&, const N&) {}
  EUGEN_MEMBER void output(const float (&c)[EUGEN_TILES][2][4], int tile) {
    store_sums<Network::out_fours, EUGEN_TILES, Network::out, Network::out>(c, tile, y, first, n, 1.f);
  }
};

}  // namespace eugen

using namespace eugen;

// Rounds the parameters' matrices to halves, for networks whose weights are streamed:
// rounded [weights_before(matrices)].
EUGEN_KERNEL(256) round_weights(const float* __restrict__ parameters, uint16* __restrict__ rounded) {
  round_matrices<Network>(rounded, parameters, int(blockIdx.x * 256 + threadIdx.x), int(gridDim.x) * 256);
}

// x [n, in], in rows of in_row numbers -> y [n, out]. rounded is the output of round_weights; it may be null if weights
// are not streamed.
EUGEN_NETWORK_KERNEL(EUGEN_WARPS * WARP)
network_forward(const Io* __restrict__ x, const float* __restrict__ parameters, const uint16* __restrict__ rounded,
                const Epsilons eps, int64 n, Io* __restrict__ y) {
  EUGEN_SHARED(memory);
  ForwardWeights weights(parameters, rounded, memory);
  constexpr int ROWS = EUGEN_WARPS * EUGEN_TILES * 16;
  for (int64 base = int64(blockIdx.x) * ROWS; base < n; base += int64(gridDim.x) * ROWS) {
    const int64 first = base + warp_index() * 16 * EUGEN_TILES;
    uint32 a[EUGEN_TILES][Network::k(0) / 16][4];
    load_rows<Network::in_fours, EUGEN_TILES, Network::in, Network::in_row, Network::k(0)>(a, x, first, n);
    Outputs outputs{y, first, n};
    evaluate<Network, 0, EUGEN_TILES>(a, weights, eps, outputs);
  }
}

// Adds to grad_parameters, which must be zero before; writes grad_x, in rows of in_row numbers, unless it is null.
// `largest` is the output of largest_magnitude.
EUGEN_NETWORK_KERNEL(EUGEN_BACK_WARPS * WARP)
network_backward(const Io* __restrict__ x, const float* __restrict__ parameters, const uint16* __restrict__ rounded,
                 const Epsilons eps, int64 n, const Io* __restrict__ grad_out, const uint32* __restrict__ largest,
                 Io* __restrict__ grad_x, float* __restrict__ grad_parameters) {
  EUGEN_SHARED(memory);
  uint16* activations = reinterpret_cast<uint16*>(memory + NetworkBackward::ChainWeights::bytes);
  const float scale = gradient_scale(*largest);
  NetworkBackward backward{NetworkBackward::ChainWeights(parameters, rounded, memory), activations,
                           activations + NetworkBackward::activations_before(Network::matrices), 1.f, grad_parameters};
  backward.run(x, eps, n, grad_out, scale, grad_x);
}

// The bits of the largest magnitude among n numbers. As unsigned integers they compare like the magnitudes.
EUGEN_KERNEL(256)
largest_magnitude(const Io* __restrict__ numbers, int64 n, uint32* __restrict__ largest) {
  uint32 mine = 0;
  for (int64 i = int64(blockIdx.x) * 256 + threadIdx.x; i < n; i += int64(gridDim.x) * 256) {
#if EUGEN_HALF_ROWS
    const uint32 bits = bits_of_float(to_float(numbers[i])) & 0x7fffffffu;
#else
    const uint32 bits = bits_of_float(numbers[i]) & 0x7fffffffu;
#endif
    mine = mine > bits ? mine : bits;
  }
  for (int step = 16; step > 0; step /= 2) {
    const uint32 other = shuffle_xor(mine, step);
    mine = mine > other ? mine : other;
  }
  // Thousands of warps that update one word would wait for each other, so each block updates it only once.
  EUGEN_SHARED(memory);
  uint32* of_warps = reinterpret_cast<uint32*>(memory);
  if (lane_index() == 0) store_one(of_warps + warp_index(), mine);
  sync_block();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < 256 / WARP; warp++) mine = mine > of_warps[warp] ? mine : of_warps[warp];
  raise_to(largest, mine);
}
