/** Parts of an open file as memory. */
#pragma once
#include <cstdint>

namespace vitrine {

/**
 * Reads exactly `bytes` from `offset` of the file `fd`, on every thread. Throws std::runtime_error when the file ends before, or cannot be read.
 * Where the numbers are copied anyway this is better than a memory map: 17 against 9 GB/s from the file cache, no pages of the file in the
 * process, and a file that was cut off is an error and not the end of the process (SIGBUS).
 */
void readFile(int fd, int64_t offset, int64_t bytes, void* to);

/**
 * A part of a file as memory: read when it is touched, shared with other processes, the process's own where it writes. Unmapped at the end.
 * The file may be closed, renamed and removed meanwhile. Where somebody cuts it off, what is missing reads as zeros, and cutMappings() counts it:
 * without that the system would end the process at the first touch. What nothing notices: other bytes written into the file in place.
 */
class Mapping {
 public:
  /** Throws std::runtime_error when the system does not map it. */
  Mapping(int fd, int64_t offset, int64_t bytes);
  Mapping(const Mapping&) = delete;
  ~Mapping();
  void* data() const;

 private:
  struct Range* range_;
  int64_t before_; // a mapping begins at a page
};

/** How many mappings were touched beyond the end of a file that was cut off, since the process began. */
int64_t cutMappings();

} // namespace vitrine
