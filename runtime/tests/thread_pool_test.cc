// Two pools in two threads run loops of all sizes; built with the thread sanitizer by test_thread_pool.py.
#include "base/thread_pool.h"

#include <atomic>
#include <cfenv>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

using binaryvit::ThreadPool;

static void Check(ThreadPool& pool, size_t count) {
  static constexpr size_t kMax = 64;
  int done[kMax] = {};
  int by_thread[binaryvit::kMaxThreads] = {};  // not atomic: one thread, one entry
  pool.ParallelFor(count, [&](size_t index, int thread) {
    done[index] += 1;
    by_thread[thread] += 1;
  });
  size_t total = 0;
  for (int thread = 0; thread < pool.threads(); ++thread) total += static_cast<size_t>(by_thread[thread]);
  for (size_t index = 0; index < count; ++index) {
    if (done[index] != 1 || total != count) {
      std::printf("index %zu of %zu ran %d times, %zu in all\n", index, count, done[index], total);
      std::exit(1);
    }
  }
}

// Whether both threads of a pool round as the caller does now. Each index waits for the other, so that both threads work.
static void CheckRounding(ThreadPool& pool, int mode) {
  std::fesetround(mode);
  std::atomic<int> arrived{0};
  float sums[2];
  pool.ParallelFor(2, [&](size_t index, int) {
    ++arrived;
    while (arrived < 2) {
    }
    volatile float one = 1.0f, little = 1e-10f;
    sums[index] = one + little;
  });
  std::fesetround(FE_TONEAREST);
  const bool up = mode == FE_UPWARD;
  for (const float sum : sums) {
    if ((sum > 1.0f) != up) {
      std::printf("a thread rounds differently from the caller, whose mode is %d\n", mode);
      std::exit(1);
    }
  }
}

static void* Main(void*) {
  ThreadPool pool;
  for (const int threads : {4, 1, 3, 2, 200, -1}) {
    pool.SetThreads(threads);
    for (int round = 0; round < 20; ++round) {
      for (const size_t count : {0, 1, 2, 3, 5, 64}) Check(pool, count);
    }
  }
  pool.SetThreads(2);
  for (const int mode : {FE_TONEAREST, FE_UPWARD, FE_TONEAREST}) CheckRounding(pool, mode);
  return nullptr;
}

int main() {
  pthread_t other;
  if (pthread_create(&other, nullptr, Main, nullptr) != 0) return 1;
  Main(nullptr);
  return pthread_join(other, nullptr);
}
