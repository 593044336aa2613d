// Basic definitions for every source file, on a CPU and under NVRTC (which has no system headers).
#pragma once

#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
#define EUGEN_FUNCTION __device__ __forceinline__
#else
#include <cmath>
#include <cstdint>
#define EUGEN_FUNCTION static inline __attribute__((always_inline))
using std::exp;
using std::floor;
using std::fma;
using std::log;
using std::sqrt;
#endif

namespace eugen {

#if defined(__CUDACC_RTC__) || defined(__CUDACC__)
typedef unsigned char uint8;
typedef unsigned int uint32;
typedef long long int64;
#else
typedef std::uint8_t uint8;
typedef std::uint32_t uint32;
typedef std::int64_t int64;
#endif

struct Vec3 {
  float x, y, z;
};

EUGEN_FUNCTION Vec3 load3(const float* p) { return Vec3{p[0], p[1], p[2]}; }
// Both return the second argument if one of the two is NaN.
EUGEN_FUNCTION float minimum(float a, float b) { return a < b ? a : b; }
EUGEN_FUNCTION float maximum(float a, float b) { return a > b ? a : b; }
// Maps NaN to low, because a NaN position must not become an index.
EUGEN_FUNCTION float clamp(float v, float low, float high) { return v > low ? (v < high ? v : high) : low; }
EUGEN_FUNCTION float absolute(float v) { return v < 0 ? -v : v; }

}  // namespace eugen
