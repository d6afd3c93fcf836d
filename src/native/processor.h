/** Which of the compiled levels this processor can run. */
#pragma once

namespace vitrine {

/** The highest VITRINE_LEVEL that the processor and the system support; the environment's VITRINE_LEVEL=base|avx2|avx512bf16 may lower it. */
int level();

/** "base", "avx2" or "avx512bf16". */
const char* levelName(int level);

} // namespace vitrine
