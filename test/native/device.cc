// Which devices' memory kernels may read, by the names that TensorFlow gives them.
#include "../../src/native/device.h"

#include <cstdio>

int main() {
  const struct {
    const char* device;
    bool host;
  } cases[] = {
      {"/job:localhost/replica:0/task:0/device:CPU:0", true},  {"/device:CPU:1", true},
      {"/job:localhost/replica:0/task:0/device:GPU:0", false}, {"/job:localhost/replica:0/task:0/device:XLA_CPU:0", false},
      {"/job:localhost/replica:0/task:0/device:TPU:0", false}, {"/job:CPU:0/task:0/device:GPU:0", false},
      {"/job:localhost/replica:0/task:0/device:", false},      {"", false},
      {nullptr, false},
  };
  int wrong = 0;
  for (const auto& [device, host] : cases)
    if (vitrine::inHostMemory(device) != host) std::printf("wrong: %s\n", device ? device : "(none)"), wrong++;
  std::printf("%s", wrong ? "" : "all right");
  return wrong;
}
