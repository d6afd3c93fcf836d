#include "interrupt.h"

#include <csignal>

#include <atomic>

namespace vitrine {
namespace {

std::atomic<int64_t> count{0};
struct sigaction listener {}; // node's

void onInterrupt(int signal, siginfo_t* info, void* context) {
  count.fetch_add(1, std::memory_order_relaxed);
  if (listener.sa_flags & SA_SIGINFO) return listener.sa_sigaction(signal, info, context);
  if (listener.sa_handler != SIG_DFL && listener.sa_handler != SIG_IGN) listener.sa_handler(signal);
}

} // namespace

int64_t watchInterrupts() {
  struct sigaction present {};
  if (sigaction(SIGINT, nullptr, &present) != 0) return interrupts();
  const bool ours = (present.sa_flags & SA_SIGINFO) && present.sa_sigaction == onInterrupt;
  const bool heard = (present.sa_flags & SA_SIGINFO) || (present.sa_handler != SIG_DFL && present.sa_handler != SIG_IGN);
  if (!ours && heard) {
    listener = present;
    struct sigaction next = present;
    next.sa_sigaction = onInterrupt;
    next.sa_flags |= SA_SIGINFO;
    sigaction(SIGINT, &next, nullptr);
  }
  return interrupts();
}

int64_t interrupts() { return count.load(std::memory_order_relaxed); }

} // namespace vitrine
