/** One thread pool for the process: VITRINE_THREADS threads (all processors when unset), usable from several JavaScript workers at once. */
#pragma once
#include <cstdint>

namespace vitrine {

/** How many threads work on a job, the caller among them. Throws std::runtime_error when VITRINE_THREADS is not a whole number from 1 to 256. */
int threads();

/** Calls body(context, begin, end) for chunks of [0, count) of at most `grain`, on the caller and on every free thread; returns when all are done. */
void runChunks(int64_t count, int64_t grain, void (*body)(void* context, int64_t begin, int64_t end), void* context);

/**
 * body(begin, end) over disjoint chunks that cover [0, count), each at most `grain` long, in no order. Chunks are handed out as threads get free, so
 * the work of a thread that the system has put to sleep is done by the others. Give a chunk at least some 20 us of work. Count <= grain runs
 * on the caller alone. Nested calls and calls from several threads are fine. An exception of a body reaches the caller once all have stopped.
 */
template <class Body>
inline void parallel(int64_t count, int64_t grain, const Body& body) {
  runChunks(count, grain, [](void* context, int64_t begin, int64_t end) { (*static_cast<const Body*>(context))(begin, end); },
            const_cast<void*>(static_cast<const void*>(&body)));
}

} // namespace vitrine
