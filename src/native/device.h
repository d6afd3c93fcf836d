/** Where TensorFlow keeps a tensor, by the name of the device: "/job:localhost/replica:0/task:0/device:CPU:0". */
#pragma once
#include <cstring>

namespace vitrine {

/** Whether kernels can read the memory of that device: the computer's own, and not a GPU's. A device without a name is none. */
inline bool inHostMemory(const char* device) {
  const char* kind = device ? std::strstr(device, "device:") : nullptr;
  return kind && std::strncmp(kind, "device:CPU:", 11) == 0;
}

} // namespace vitrine
