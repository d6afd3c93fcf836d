#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace vitrine {
namespace {

using Clock = std::chrono::steady_clock;

/** Waking a sleeping thread costs about as much as this; longer spinning would take the processor from TensorFlow's own threads. */
constexpr auto kSpin = std::chrono::microseconds(40);

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/** Spins for a short while until ready() holds; says whether it does. */
template <class Ready>
bool spinUntil(const Ready& ready) {
  const auto end = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; i++) {
      if (ready()) return true;
      pause();
    }
  } while (Clock::now() < end);
  return ready();
}

struct Job {
  int64_t count, grain;
  void (*body)(void*, int64_t, int64_t);
  void* context;
  std::atomic<int64_t> next{0};
  std::atomic<int> inside{0}; // pool threads at work on this job
  std::exception_ptr error;   // guarded by Pool::mutex
};

/** Takes chunks until there are none. */
void work(Job& job) {
  for (;;) {
    const int64_t begin = job.next.fetch_add(job.grain, std::memory_order_relaxed);
    if (begin >= job.count) return;
    job.body(job.context, begin, std::min(job.count, begin + job.grain));
  }
}

int wantedThreads() {
  const char* wish = std::getenv("VITRINE_THREADS");
  if (!wish || !*wish) return static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 256u));
  char* end = nullptr;
  const long count = std::strtol(wish, &end, 10);
  if (*end || count < 1 || count > 256)
    throw std::runtime_error(std::string("VITRINE_THREADS is \"") + wish + "\"; expected a whole number from 1 to 256");
  return static_cast<int>(count);
}

/**
 * The caller of a job is one of its workers. It never waits for a thread that has not begun: when no chunk is left it takes the job off the
 * list, under the lock under which threads enter, and then waits only for those inside. (Waiting for all threads made a job take as
 * long as the system's scheduler wanted whenever one of them was not running.)
 */
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; i++) std::thread([this] { serve(); }).detach();
  }

  void run(Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back(&job);
      news_.fetch_add(1, std::memory_order_release);
    }
    if (sleeping_.load()) wake_.notify_all();
    std::exception_ptr error = attempt(job);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));
    }
    const auto done = [&job] { return job.inside.load(std::memory_order_acquire) == 0; };
    if (!spinUntil(done)) {
      std::unique_lock<std::mutex> lock(mutex_);
      left_.wait(lock, done);
    }
    std::lock_guard<std::mutex> lock(mutex_); // the last thread to leave may still hold it, and the job lives on this stack
    if (!error) error = job.error;
    if (error) std::rethrow_exception(error);
  }

 private:
  /** Works on a job; after an error no further chunk is begun. */
  static std::exception_ptr attempt(Job& job) {
    try {
      work(job);
      return nullptr;
    } catch (...) {
      job.next.store(job.count);
      return std::current_exception();
    }
  }

  /** A job with chunks left, entered; nullptr when there is none. Under the lock. */
  Job* enter() {
    for (Job* job : jobs_) {
      if (job->next.load(std::memory_order_relaxed) >= job->count) continue;
      job->inside.fetch_add(1, std::memory_order_relaxed);
      return job;
    }
    return nullptr;
  }

  void leave(Job& job, std::exception_ptr error) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (error && !job.error) job.error = error;
    job.inside.fetch_sub(1, std::memory_order_release);
    left_.notify_all();
  }

  [[noreturn]] void serve() {
    for (;;) {
      uint64_t seen;
      Job* job;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        seen = news_.load(std::memory_order_relaxed);
        job = enter();
      }
      if (job) {
        leave(*job, attempt(*job));
        continue;
      }
      const auto news = [this, seen] { return news_.load(std::memory_order_acquire) != seen; };
      if (spinUntil(news)) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      sleeping_++;
      wake_.wait(lock, news);
      sleeping_--;
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, left_;
  std::vector<Job*> jobs_;
  std::atomic<uint64_t> news_{0};
  std::atomic<int> sleeping_{0};
};

/** Never destroyed: its threads run until the process ends. */
Pool& pool() {
  static Pool* one = new Pool(threads());
  return *one;
}

} // namespace

int threads() {
  static const int count = wantedThreads();
  return count;
}

void runChunks(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  if (count <= 0) return;
  if (grain < 1) grain = 1;
  if (count <= grain) return body(context, 0, count);
  Job job{count, grain, body, context, {}, {}, {}};
  if (threads() > 1) return pool().run(job);
  work(job);
}

} // namespace vitrine
