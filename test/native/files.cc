/** Parts of files as memory, and casts of them: read on several threads, mapped, cut off; built with sanitizers by sanitizer.test.ts. */
#include "../../src/native/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <stdexcept>

#include "../../src/native/pages.h"
#include "harness.h"

using namespace check;

namespace {

void expect(bool right, const char* what) {
  if (right) return;
  std::printf("%s\n", what);
  failures++;
}

unsigned char byteAt(int64_t i) { return static_cast<unsigned char>(i * 131 >> 3); }

/** A file without a name of `size` bytes. */
int fileOf(int64_t size) {
  char name[] = "/tmp/vitrine-check-XXXXXX";
  const int fd = mkstemp(name);
  unlink(name);
  std::vector<unsigned char> bytes(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; i++) bytes[static_cast<size_t>(i)] = byteAt(i);
  expect(write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(size), "the file was not written");
  return fd;
}

void reads(int fd, int64_t offset, int64_t bytes) {
  const std::unique_ptr<unsigned char[]> memory(new unsigned char[static_cast<size_t>(bytes)]);
  vitrine::adviseLargePages(memory.get(), bytes);
  vitrine::readFile(fd, offset, bytes, memory.get());
  bool same = true;
  for (int64_t i = 0; i < bytes; i++) same = same && memory[static_cast<size_t>(i)] == byteAt(offset + i);
  expect(same, "readFile() gave other bytes");
}

void maps(int fd, int64_t offset, int64_t bytes) {
  const vitrine::Mapping mapping(fd, offset, bytes);
  auto* memory = static_cast<unsigned char*>(mapping.data());
  bool same = true;
  for (int64_t i = 0; i < bytes; i++) same = same && memory[i] == byteAt(offset + i);
  expect(same, "a mapping holds other bytes");
  memory[0] = static_cast<unsigned char>(~memory[0]); // the process's own copy
  unsigned char stored;
  expect(pread(fd, &stored, 1, offset) == 1 && stored == byteAt(offset), "writing to a mapping changed the file");
}

void cutOff(int fd) {
  const vitrine::Mapping first(fd, 0, 40000), second(fd, 4096, 30000);
  const int64_t before = vitrine::cutMappings();
  expect(ftruncate(fd, 8192) == 0, "the file was not cut");
  const auto* memory = static_cast<volatile unsigned char*>(first.data());
  expect(memory[8191] == byteAt(8191) && memory[8192] == 0 && memory[39999] == 0, "beyond the end of a file that was cut off are no zeros");
  expect(vitrine::cutMappings() == before + 1, "a cut mapping is counted once");
  expect(static_cast<volatile unsigned char*>(second.data())[20000] == 0, "the second mapping holds no zeros");
  expect(vitrine::cutMappings() == before + 2, "the second cut mapping is not counted");
}

template <class Action>
void fails(const char* what, const Action& action) {
  try {
    action();
  } catch (const std::runtime_error&) {
    return;
  }
  expect(false, what);
}

} // namespace

int main() {
  const int fd = fileOf(5 << 20);
  for (int64_t offset : {0, 1, 4095, 4096}) {
    for (int64_t bytes : {0, 1, 4096, (1 << 20) + 1, 4 << 20}) reads(fd, offset, bytes);
    for (int64_t bytes : {1, 4097, 1 << 20}) maps(fd, offset, bytes);
  }
  char few[16];
  fails("reading beyond the end is no error", [&] { vitrine::readFile(fd, (5 << 20) - 8, 16, few); });
  fails("reading from no file is no error", [&] { vitrine::readFile(-1, 0, 16, few); });
  fails("mapping no file is no error", [&] { vitrine::Mapping(-1, 0, 16); });
  cutOff(fd);
  close(fd);
  vitrine::releaseLibraryPages("libc.so");
  for (int64_t size : {0, 1, 17, 40001})
    for (int dtype : {kFloat32, kBfloat16}) {
      const Tensor x = randomTensor(dtype, {size});
      expectClose("cast to float32", run("cast", {x}, {kFloat32})[0], [&](int64_t i) { return x.at(i); }, 0);
      expectClose("cast to bfloat16", run("cast", {x}, {kBfloat16})[0], [&](int64_t i) { return fromHalf(toHalf(static_cast<float>(x.at(i)))); }, 0);
    }
  if (failures) std::printf("%d failures\n", failures);
  else std::printf("all close\n");
  return failures ? 1 : 0;
}
