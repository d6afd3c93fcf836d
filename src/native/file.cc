#include "file.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>

#include "pool.h"

namespace vitrine {

namespace {

constexpr int64_t kPiece = 1 << 20;

void readPiece(int fd, int64_t offset, int64_t bytes, char* to) {
  while (bytes > 0) {
    const ssize_t n = pread(fd, to, static_cast<size_t>(bytes), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw std::runtime_error(std::string("the file cannot be read: ") + std::strerror(errno));
    if (n == 0) throw std::runtime_error("the file ends at byte " + std::to_string(offset) + ", before the tensor does; was it cut off?");
    offset += n, bytes -= n, to += n;
  }
}

} // namespace

void readFile(int fd, int64_t offset, int64_t bytes, void* to) {
  parallel((bytes + kPiece - 1) / kPiece, 1, [=](int64_t begin, int64_t end) {
    readPiece(fd, offset + begin * kPiece, std::min(end * kPiece, bytes) - begin * kPiece, static_cast<char*>(to) + begin * kPiece);
  });
}

/** Where a mapping stands. A signal handler goes through them all: they are never freed, but used again. */
struct Range {
  std::atomic<uintptr_t> begin{0}, end{0};
  Range* next = nullptr;
};

namespace {

std::atomic<Range*> ranges{nullptr};
std::atomic<int64_t> cut{0};
std::mutex rangesMutex; // for those who change them
struct sigaction before;

/** A page beyond the end of its file: zeros from there to the mapping's end. Any other bus error goes where it went before. */
void onBusError(int signal, siginfo_t* info, void* context) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), at = reinterpret_cast<uintptr_t>(info->si_addr) / page * page;
  for (const Range* range = ranges.load(); range; range = range->next) {
    const uintptr_t begin = range->begin.load(), end = range->end.load();
    if (at < begin || at >= end) continue;
    const int saved = errno;
    void* zeros = mmap(reinterpret_cast<void*>(at), end - at, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    errno = saved;
    if (zeros == MAP_FAILED) break;
    cut++;
    return;
  }
  if (before.sa_flags & SA_SIGINFO) return before.sa_sigaction(signal, info, context);
  if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) return before.sa_handler(signal);
  sigaction(SIGBUS, &before, nullptr); // the access is tried again, and ends the process
}

Range* record(uintptr_t begin, uintptr_t end) {
  std::lock_guard<std::mutex> alone(rangesMutex);
  static const bool watching = [] {
    struct sigaction action = {};
    action.sa_sigaction = onBusError;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    return sigaction(SIGBUS, &action, &before) == 0;
  }();
  static_cast<void>(watching);
  Range* range = ranges.load();
  while (range && range->begin.load() != 0) range = range->next;
  if (!range) {
    range = new Range;
    range->next = ranges.load();
    ranges.store(range);
  }
  range->end.store(end);
  range->begin.store(begin);
  return range;
}

} // namespace

Mapping::Mapping(int fd, int64_t offset, int64_t bytes) : before_(offset % sysconf(_SC_PAGESIZE)) {
  const size_t length = static_cast<size_t>(before_ + bytes);
  void* start = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, static_cast<off_t>(offset - before_));
  if (start == MAP_FAILED) throw std::runtime_error(std::string("the file cannot be mapped: ") + std::strerror(errno));
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), begin = reinterpret_cast<uintptr_t>(start);
  range_ = record(begin, begin + (length + page - 1) / page * page);
}

Mapping::~Mapping() {
  const uintptr_t begin = range_->begin.load(), end = range_->end.load();
  range_->end.store(0); // first: memory that is given back is nobody's to fill
  range_->begin.store(0);
  munmap(reinterpret_cast<void*>(begin), end - begin);
}

void* Mapping::data() const { return reinterpret_cast<char*>(range_->begin.load()) + before_; }

int64_t cutMappings() { return cut.load(); }

} // namespace vitrine
