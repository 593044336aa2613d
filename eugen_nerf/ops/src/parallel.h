// Parallel loops on the threads of the OpenMP library that PyTorch has loaded.
//
// The library is called through the entry points that compiled pragmas would use. So the compiler needs no OpenMP
// library of its own (zig and most installations of clang++ have none), and the process has only one set of threads.
#pragma once
#include <algorithm>
#include <atomic>

#include "common.h"

namespace eugen {

struct OpenMP {
  void (*parallel)(void (*work)(void*), void* argument, unsigned threads, unsigned flags);  // GOMP_parallel
  int (*thread)();                                                                          // omp_get_thread_num
  int (*threads)();                                                                         // omp_get_num_threads
};

// Null until eugen_use_openmp is called; until then everything runs on the calling thread.
inline OpenMP openmp = {nullptr, nullptr, nullptr};

// Calls body(thread, threads) on each of the given number of threads, or on fewer if the library has fewer.
template <class Body>
void on_threads(int threads, const Body& body) {
  if (!openmp.parallel || threads <= 1) return body(0, 1);
  const auto work = [](void* argument) {
    (*static_cast<const Body*>(argument))(openmp.thread(), openmp.threads());
  };
  openmp.parallel(work, const_cast<Body*>(&body), unsigned(threads), 0);
}

// Calls body(begin, end, thread) for consecutive ranges of equal length, one per thread.
template <class Body>
void in_ranges(int threads, int64 n, const Body& body) {
  on_threads(threads, [&](int thread, int count) { body(n * thread / count, n * (thread + 1) / count, thread); });
}

// Calls body(i) for all i below n. Idle threads take `grain` of them at a time.
template <class Body>
void as_they_come(int threads, int64 n, int64 grain, const Body& body) {
  std::atomic<int64> next(0);
  on_threads(threads, [&](int, int) {
    for (int64 begin = next.fetch_add(grain); begin < n; begin = next.fetch_add(grain))
      for (int64 i = begin; i < std::min(n, begin + grain); i++) body(i);
  });
}

}  // namespace eugen
