/** Ctrl-C while a long computation keeps JavaScript busy: node hears of it only when the computation is over, this counts it at once. */
#pragma once
#include <cstdint>

namespace vitrine {

/**
 * Begins to count SIGINT, if somebody listens for it: then the listener is still told. Without one the signal ends the process, as it should.
 * Gives the count so far. May be called again and again: another listener may have come since.
 */
int64_t watchInterrupts();

/** How many SIGINT came since the first watchInterrupts(). */
int64_t interrupts();

} // namespace vitrine
