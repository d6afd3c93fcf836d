#include "processor.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace vitrine {
namespace {

constexpr const char* kNames[] = {"base", "avx2", "avx512bf16"};

/** What the processor has, and the system saves on a context switch (__builtin_cpu_supports asks for both). */
int supported() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16");
  return wide ? 2 : 1;
#else
  return 0;
#endif
}

int choose() {
  const int best = supported();
  const char* wish = std::getenv("VITRINE_LEVEL");
  if (!wish || !*wish) return best;
  for (int i = 0; i <= best; i++)
    if (std::strcmp(wish, kNames[i]) == 0) return i;
  throw std::runtime_error(std::string("VITRINE_LEVEL is \"") + wish + "\"; this processor has base to " + kNames[best] +
                           " (of base, avx2, avx512bf16)");
}

} // namespace

int level() {
  static const int chosen = choose();
  return chosen;
}

const char* levelName(int level) { return kNames[level]; }

} // namespace vitrine
