#include "base/thread_pool.h"

#include <unistd.h>

#include <ctime>

// The versions of these functions in every glibc since 2.17. The current versions need glibc 2.34.
#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver pthread_create, pthread_create@GLIBC_2.2.5");
__asm__(".symver pthread_join, pthread_join@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver pthread_create, pthread_create@GLIBC_2.17");
__asm__(".symver pthread_join, pthread_join@GLIBC_2.17");
#endif

namespace binaryvit {
namespace {

constexpr int64_t kMaxSpinNanoseconds = 50000;
constexpr int kPausesPerClockRead = 16;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// How the processor rounds floats, and whether it flushes subnormal floats to 0. Each thread has its own setting.
#if defined(__x86_64__)
uint64_t FloatMode() { return __builtin_ia32_stmxcsr() & ~0x3fu; }  // without the exception flags
void SetFloatMode(uint64_t mode) { __builtin_ia32_ldmxcsr(static_cast<unsigned>(mode)); }
#elif defined(__aarch64__)
uint64_t FloatMode() {
  uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void SetFloatMode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
uint64_t FloatMode() { return 0; }
void SetFloatMode(uint64_t) {}
#endif

int64_t Nanoseconds() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<int64_t>(time.tv_sec) * 1000000000 + time.tv_nsec;
}

// Waits until `ready()`, for kMaxSpinNanoseconds at most, without yielding the processor.
template <typename Ready>
bool Spin(const Ready& ready) {
  if (ready()) return true;
  const int64_t end = Nanoseconds() + kMaxSpinNanoseconds;
  do {
    for (int i = 0; i < kPausesPerClockRead; ++i) {
      if (ready()) return true;
      Pause();
    }
  } while (Nanoseconds() < end);
  return false;
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
  generation_ = 0;
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
    stop_ = true;
    Announce();
    for (int i = 0; i < started_; ++i) pthread_join(workers_[i].thread, nullptr);
  }
  started_ = 0;
}

// The atomics are sequentially consistent: if two threads each write one and then read the other's, at least one of them
// sees the new value.
void ThreadPool::Announce() {
  ++generation_;
  if (sleepers_ == 0) return;  // a thread that is about to sleep checks the generation again
  pthread_mutex_lock(&mutex_);
  pthread_cond_broadcast(&work_);
  pthread_mutex_unlock(&mutex_);
}

void* ThreadPool::WorkerMain(void* argument) {
  const Worker& worker = *static_cast<Worker*>(argument);
  ThreadPool& pool = *worker.pool;
  uint64_t seen = 0;
  while (true) {
    if (!Spin([&] { return pool.generation_ != seen; })) {
      pthread_mutex_lock(&pool.mutex_);
      ++pool.sleepers_;
      while (pool.generation_ == seen) pthread_cond_wait(&pool.work_, &pool.mutex_);
      --pool.sleepers_;
      pthread_mutex_unlock(&pool.mutex_);
    }
    seen = pool.generation_;
    if (pool.stop_) return nullptr;
    ++pool.busy_;
    if (pool.open_) {
      SetFloatMode(pool.float_mode_);
      pool.Work(worker.index);
    }
    if (--pool.busy_ == 0 && pool.waits_) {
      pthread_mutex_lock(&pool.mutex_);
      pthread_cond_signal(&pool.done_);
      pthread_mutex_unlock(&pool.mutex_);
    }
  }
}

void ThreadPool::Work(int thread) {
  // Copies, because other threads write to the same cache lines. Takes several indices at a time, so that counters are
  // rarely written.
  const Function function = function_;
  const void* const context = context_;
  const int count = count_;
  for (int i = 0; i < count; ++i) {
    Range& range = ranges_[(thread + i) % count];
    const size_t end = range.end, share = range.share;
    while (true) {
      const size_t first = range.next.fetch_add(share, std::memory_order_relaxed);
      if (first >= end) break;
      const size_t last = end - first < share ? end : first + share;
      for (size_t index = first; index < last; ++index) function(context, index, thread);
    }
  }
}

void ThreadPool::Run(size_t count, Function function, const void* context) {
  if (count_ == 1 || count <= 1) {
    for (size_t index = 0; index < count; ++index) function(context, index, 0);
    return;
  }
  if (started_ > 0 && process_ != getpid()) {
    // In a forked child: the threads stayed with the parent, and the locks are in the state of that moment.
    mutex_ = PTHREAD_MUTEX_INITIALIZER;
    work_ = PTHREAD_COND_INITIALIZER;
    done_ = PTHREAD_COND_INITIALIZER;
    started_ = 0;
    sleepers_ = 0;
    busy_ = 0;
  }
  if (started_ == 0) Start();
  function_ = function;
  context_ = context;
  float_mode_ = FloatMode();
  const auto threads = static_cast<size_t>(count_);
  for (size_t thread = 0; thread < threads; ++thread) {
    Range& range = ranges_[thread];
    range.next.store(count * thread / threads, std::memory_order_relaxed);
    range.end = count * (thread + 1) / threads;
    range.share = count / (32 * threads) + 1;
  }
  open_ = true;
  Announce();
  Work(0);
  open_ = false;
  if (Spin([&] { return busy_ == 0; })) return;
  pthread_mutex_lock(&mutex_);
  waits_ = true;
  while (busy_ > 0) pthread_cond_wait(&done_, &mutex_);
  waits_ = false;
  pthread_mutex_unlock(&mutex_);
}

}  // namespace binaryvit
