#include "file.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
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

Mapping::Mapping(int fd, int64_t offset, int64_t bytes) : before_(offset % sysconf(_SC_PAGESIZE)), bytes_(bytes) {
  start_ = mmap(nullptr, static_cast<size_t>(before_ + bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, static_cast<off_t>(offset - before_));
  if (start_ == MAP_FAILED) throw std::runtime_error(std::string("the file cannot be mapped: ") + std::strerror(errno));
}

Mapping::~Mapping() { munmap(start_, static_cast<size_t>(before_ + bytes_)); }

void* Mapping::data() const { return static_cast<char*>(start_) + before_; }

} // namespace vitrine
