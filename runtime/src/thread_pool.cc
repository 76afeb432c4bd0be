#include "thread_pool.h"

#include <unistd.h>

// The names by which every glibc since 2.17 has these functions; current ones would ask for glibc 2.34.
#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver pthread_create, pthread_create@GLIBC_2.2.5");
__asm__(".symver pthread_join, pthread_join@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver pthread_create, pthread_create@GLIBC_2.17");
__asm__(".symver pthread_join, pthread_join@GLIBC_2.17");
#endif

namespace binaryvit {
namespace {

// Waits until `ready()`, for some ten microseconds at most, and without giving the processor away.
#if defined(__x86_64__)
constexpr int kSpins = 8000;
void Pause() { __builtin_ia32_pause(); }
#elif defined(__aarch64__)
constexpr int kSpins = 20000;
void Pause() { __asm__ volatile("yield"); }
#else
constexpr int kSpins = 20000;
void Pause() {}
#endif

template <typename Ready>
void Spin(const Ready& ready) {
  for (int spin = 0; spin < kSpins && !ready(); ++spin) Pause();
}

}  // namespace

void ThreadPool::SetThreads(int count) {
  if (count < 1) count = 1;
  if (count > kMaxThreads) count = kMaxThreads;
  if (count == count_) return;
  Stop();
  count_ = count;
}

void ThreadPool::Start() {
  process_ = getpid();
  stop_ = false;
  while (started_ < count_ - 1) {
    Worker& worker = workers_[started_];
    worker.pool = this;
    worker.index = started_ + 1;
    if (pthread_create(&worker.thread, nullptr, WorkerMain, &worker) != 0) break;
    ++started_;
  }
}

void ThreadPool::Stop() {
  if (started_ > 0 && process_ == getpid()) {
    pthread_mutex_lock(&mutex_);
    stop_ = true;
    open_ = false;
    pthread_cond_broadcast(&work_);
    pthread_mutex_unlock(&mutex_);
    for (int i = 0; i < started_; ++i) pthread_join(workers_[i].thread, nullptr);
  }
  started_ = 0;
}

void* ThreadPool::WorkerMain(void* argument) {
  const Worker& worker = *static_cast<Worker*>(argument);
  ThreadPool& pool = *worker.pool;
  uint64_t seen = 0;
  while (true) {
    Spin([&] { return pool.generation_.load(std::memory_order_relaxed) != seen; });
    pthread_mutex_lock(&pool.mutex_);
    while (pool.generation_ == seen && !pool.stop_) pthread_cond_wait(&pool.work_, &pool.mutex_);
    const bool stop = pool.stop_, joins = pool.open_;
    seen = pool.generation_;
    if (joins) pool.busy_.fetch_add(1, std::memory_order_relaxed);
    pthread_mutex_unlock(&pool.mutex_);
    if (stop) return nullptr;
    if (!joins) continue;
    pool.Work(worker.index);
    if (pool.busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      pthread_mutex_lock(&pool.mutex_);
      pthread_cond_signal(&pool.done_);
      pthread_mutex_unlock(&pool.mutex_);
    }
  }
}

void ThreadPool::Work(int thread) {
  // Copies, because they lie beside the counter that all threads write. Several indices at a time, so that they rarely do.
  const Function function = function_;
  const void* const context = context_;
  const size_t size = size_, share = size / (32 * static_cast<size_t>(count_)) + 1;
  while (true) {
    const size_t first = next_.fetch_add(share, std::memory_order_relaxed);
    if (first >= size) return;
    const size_t last = size - first < share ? size : first + share;
    for (size_t index = first; index < last; ++index) function(context, index, thread);
  }
}

void ThreadPool::Run(size_t count, Function function, const void* context) {
  if (count_ == 1 || count <= 1) {
    for (size_t index = 0; index < count; ++index) function(context, index, 0);
    return;
  }
  if (started_ > 0 && process_ != getpid()) {
    // In the child of a fork: the threads stayed with the parent, and the locks as they were at that moment.
    mutex_ = PTHREAD_MUTEX_INITIALIZER;
    work_ = PTHREAD_COND_INITIALIZER;
    done_ = PTHREAD_COND_INITIALIZER;
    started_ = 0;
    busy_ = 0;
  }
  if (started_ == 0) {
    generation_ = 0;
    Start();
  }
  function_ = function;
  context_ = context;
  size_ = count;
  next_.store(0, std::memory_order_relaxed);
  pthread_mutex_lock(&mutex_);
  open_ = true;
  ++generation_;
  pthread_cond_broadcast(&work_);
  pthread_mutex_unlock(&mutex_);
  Work(0);
  pthread_mutex_lock(&mutex_);
  open_ = false;
  pthread_mutex_unlock(&mutex_);
  Spin([&] { return busy_.load(std::memory_order_acquire) == 0; });
  if (busy_.load(std::memory_order_acquire) == 0) return;
  pthread_mutex_lock(&mutex_);
  while (busy_.load(std::memory_order_acquire) > 0) pthread_cond_wait(&done_, &mutex_);
  pthread_mutex_unlock(&mutex_);
}

}  // namespace binaryvit
