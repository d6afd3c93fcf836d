#include "pages.h"

#include <unistd.h>

#include <cstring>

#if defined(__linux__)
#include <link.h>
#include <sys/mman.h>
#endif

namespace vitrine {

#if defined(__linux__)

namespace {

constexpr int64_t kLargePage = 2 << 20;

struct Release {
  const char* name;
  int64_t bytes;
};

bool isWritten(const dl_phdr_info& library) {
  for (int i = 0; i < library.dlpi_phnum; i++) {
    if (library.dlpi_phdr[i].p_type != PT_DYNAMIC) continue;
    for (auto entry = reinterpret_cast<const ElfW(Dyn)*>(library.dlpi_addr + library.dlpi_phdr[i].p_vaddr); entry->d_tag != DT_NULL; entry++) {
      if (entry->d_tag == DT_TEXTREL || (entry->d_tag == DT_FLAGS && (entry->d_un.d_val & DF_TEXTREL))) return true;
    }
  }
  return false;
}

/** One library; what the loader writes to (relocated constants too) stands in writable segments, which stay. */
int releaseOne(dl_phdr_info* library, size_t, void* context) {
  Release& release = *static_cast<Release*>(context);
  if (!std::strstr(library->dlpi_name, release.name) || isWritten(*library)) return 0;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  for (int i = 0; i < library->dlpi_phnum; i++) {
    const auto& segment = library->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W)) continue;
    const uintptr_t begin = (library->dlpi_addr + segment.p_vaddr + page - 1) / page * page;
    const uintptr_t end = (library->dlpi_addr + segment.p_vaddr + segment.p_memsz) / page * page;
    if (begin < end && madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED) == 0)
      release.bytes += static_cast<int64_t>(end - begin);
  }
  return 0;
}

} // namespace

void adviseLargePages(void* data, int64_t bytes) {
  if (bytes < 2 * kLargePage) return;
  const uintptr_t start = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (start + kLargePage - 1) / kLargePage * kLargePage, end = (start + static_cast<uintptr_t>(bytes)) / kLargePage * kLargePage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE); // a wish: where it is refused, pages stay small
}

int64_t releaseLibraryPages(const char* name) {
  Release release{name, 0};
  dl_iterate_phdr(releaseOne, &release);
  return release.bytes;
}

#else

void adviseLargePages(void*, int64_t) {}
int64_t releaseLibraryPages(const char*) { return 0; }

#endif

} // namespace vitrine
