/** The thread pool under jobs from several threads at once, nested jobs and exceptions; built with the thread sanitizer by pool.test.ts. */
#include "../../src/native/pool.h"

#include <atomic>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using vitrine::parallel;

namespace {

std::atomic<int> failures{0};

void expect(bool holds, const char* what) {
  if (holds) return;
  failures++;
  std::printf("not so: %s\n", what);
}

/** Every index once, whatever the grain. */
void cover(int64_t count, int64_t grain) {
  std::vector<int> seen(static_cast<size_t>(count));
  parallel(count, grain, [&](int64_t begin, int64_t end) {
    expect(begin < end && end - begin <= grain && end <= count, "a chunk is within the range and at most the grain");
    for (int64_t i = begin; i < end; i++) seen[static_cast<size_t>(i)]++;
  });
  for (int times : seen) expect(times == 1, "every index is done once");
}

void nested() {
  std::atomic<int64_t> total{0};
  parallel(8, 1, [&](int64_t begin, int64_t) {
    parallel(100, 7, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++) total += begin * 100 + i;
    });
  });
  expect(total == 799 * 400, "nested jobs are done");
}

void thrown() {
  std::string message;
  try {
    parallel(64, 1, [](int64_t begin, int64_t) {
      if (begin % 5 == 3) throw std::runtime_error("from a body");
    });
  } catch (const std::exception& error) {
    message = error.what();
  }
  expect(message == "from a body", "an exception reaches the caller");
}

} // namespace

int main() {
  cover(0, 4);
  cover(5, 1);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; caller++) {
    callers.emplace_back([caller] {
      for (int round = 0; round < 100; round++) {
        cover(1 + (round * 37 + caller) % 300, 1 + round % 11);
        if (round % 10 == 0) nested();
        if (round % 10 == 5) thrown();
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  if (failures == 0) std::printf("all done by %d threads\n", vitrine::threads());
  return failures ? 1 : 0;
}
