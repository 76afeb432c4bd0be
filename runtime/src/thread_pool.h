// ThreadPool: splits loops over its threads. Idle threads sleep, but for a moment after each loop: the next operator's
// follows within microseconds, and waking a thread takes longer. After a fork the child gets threads of its own.
#ifndef BINARYVIT_THREAD_POOL_H_
#define BINARYVIT_THREAD_POOL_H_

#include <pthread.h>
#include <sys/types.h>

#include <atomic>
#include <cstddef>

#include "buffer.h"

namespace binaryvit {

constexpr int kMaxThreads = 64;

// One interpreter, one pool: a pool runs one loop at a time, and pools know nothing of each other.
class ThreadPool {
 public:
  ThreadPool() = default;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() { Stop(); }

  // Sets how many threads a loop gets, the caller's among them; they start with the first loop that needs them.
  void SetThreads(int count);
  int threads() const { return count_; }

  // Calls body(index, thread) for every index below `count`, with 0 <= thread < threads(), and returns when all is done.
  // Where a thread can't be started, those that could do the work.
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

  static void* WorkerMain(void* argument);
  void Run(size_t count, Function function, const void* context);
  void Work(int thread);
  void Start();
  void Stop();

  int count_ = 1;
  int started_ = 0;      // workers that run
  pid_t process_ = 0;    // where they run
  Worker workers_[kMaxThreads];
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t work_ = PTHREAD_COND_INITIALIZER;
  pthread_cond_t done_ = PTHREAD_COND_INITIALIZER;

  // Changed under the mutex, but for the end of a worker's share.
  std::atomic<uint64_t> generation_{0};  // counts loops
  std::atomic<int> busy_{0};             // workers in the loop
  bool open_ = false;                    // whether more of them may join it: one that wakes up late isn't waited for
  bool stop_ = false;

  // Of the current loop.
  std::atomic<size_t> next_{0};
  size_t size_ = 0;
  Function function_ = nullptr;
  const void* context_ = nullptr;
};

}  // namespace binaryvit

#endif  // BINARYVIT_THREAD_POOL_H_
