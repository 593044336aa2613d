// Threads for loops, from the OpenMP library that PyTorch has loaded.
//
// It is called by the entry points that compiled pragmas would call. So the compiler need not have an OpenMP library of
// its own, as zig and most installations of clang++ do not, and there is one set of threads in the process.
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

// Null until eugen_use_openmp: everything runs on the calling thread then.
inline OpenMP openmp = {nullptr, nullptr, nullptr};

// body(thread, threads) on every one of so many threads, or of fewer where the library has no more.
template <class Body>
void on_threads(int threads, const Body& body) {
  if (!openmp.parallel || threads <= 1) return body(0, 1);
  const auto work = [](void* argument) {
    (*static_cast<const Body*>(argument))(openmp.thread(), openmp.threads());
  };
  openmp.parallel(work, const_cast<Body*>(&body), unsigned(threads), 0);
}

// body(begin, end, thread) for ranges of equal length that follow each other, one a thread.
template <class Body>
void in_ranges(int threads, int64 n, const Body& body) {
  on_threads(threads, [&](int thread, int count) { body(n * thread / count, n * (thread + 1) / count, thread); });
}

// body(i) for all i below n: `grain` of them at a time to whichever thread is free.
template <class Body>
void as_they_come(int threads, int64 n, int64 grain, const Body& body) {
  std::atomic<int64> next(0);
  on_threads(threads, [&](int, int) {
    for (int64 begin = next.fetch_add(grain); begin < n; begin = next.fetch_add(grain))
      for (int64 i = begin; i < std::min(n, begin + grain); i++) body(i);
  });
}

}  // namespace eugen
