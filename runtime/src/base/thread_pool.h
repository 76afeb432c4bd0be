// ThreadPool: splits loops over its threads. Idle threads spin for a moment after each loop and then sleep: the
// next operator's loop follows within microseconds, and waking a thread takes longer. A forked child gets its own threads.
#ifndef BINARYVIT_BASE_THREAD_POOL_H_
#define BINARYVIT_BASE_THREAD_POOL_H_

#include <pthread.h>
#include <sys/types.h>

#include <atomic>
#include <cstddef>

#include "base/buffer.h"

namespace binaryvit {

constexpr int kMaxThreads = 64;

// Each interpreter has its own pool, which runs one loop at a time.
class ThreadPool {
 public:
  ThreadPool() = default;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() { Stop(); }

  // Sets the number of threads, including the caller's. They start with the first loop that needs them.
  void SetThreads(int count);
  int threads() const { return count_; }

  // Calls body(index, thread) for every index below `count`, with 0 <= thread < threads(), and returns when all calls are done.
  // All threads round as the caller does, and treat subnormal numbers alike.
  // If a thread can't start, the others do its work.
  template <typename Body>
  void ParallelFor(size_t count, const Body& body) {
    Run(count, [](const void* context, size_t index, int thread) {
      (*static_cast<const Body*>(context))(index, thread);
    }, &body);
  }

 private:
  using Function = void (*)(const void* context, size_t index, int thread);
  struct Worker {
    ThreadPool* pool;
    int index;
    pthread_t thread;
  };

  // A thread's share of a loop. It is at the same place in every loop, so that what the thread wrote in one loop is in its
  // core's cache for the next. A thread that has finished its share helps the others.
  struct Range {
    std::atomic<size_t> next{0};
    size_t end = 0;
    size_t share = 1;  // indices taken at a time
    char rest_of_line[kAlignment - 3 * sizeof(size_t)];
  };

  static void* WorkerMain(void* argument);
  void Run(size_t count, Function function, const void* context);
  void Work(int thread);
  void Announce();
  void Start();
  void Stop();

  int count_ = 1;
  int started_ = 0;      // workers that run
  pid_t process_ = 0;    // where they run
  Worker workers_[kMaxThreads];
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t work_ = PTHREAD_COND_INITIALIZER;
  pthread_cond_t done_ = PTHREAD_COND_INITIALIZER;

  std::atomic<uint64_t> generation_{0};  // counts loops
  std::atomic<bool> stop_{false};
  std::atomic<bool> open_{false};  // whether workers may join the loop; nobody waits for a late one
  std::atomic<int> busy_{0};       // workers that have joined, or are about to check `open_`
  std::atomic<int> sleepers_{0};
  std::atomic<bool> waits_{false};  // the caller sleeps until no worker is busy

  // Of the current loop.
  Range ranges_[kMaxThreads];
  Function function_ = nullptr;
  const void* context_ = nullptr;
  uint64_t float_mode_ = 0;
};

}  // namespace binaryvit

#endif  // BINARYVIT_BASE_THREAD_POOL_H_
