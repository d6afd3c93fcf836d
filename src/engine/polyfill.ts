/** What must be true of the process before tfjs loads; `tf.ts` imports this file first. */
import util from "node:util";

// tfjs-node 4.22 calls two functions of util that Node 22 warns of and Node 23 removed (tensorflow/tfjs#8609).
const legacy = util as unknown as { isNullOrUndefined?: (x: unknown) => boolean; isArray?: (x: unknown) => boolean };
legacy.isNullOrUndefined = (x) => x === null || x === undefined;
legacy.isArray = Array.isArray;

// TensorFlow's C++ side prints its start-up notes straight to stderr; errors still come as exceptions.
process.env.TF_CPP_MIN_LOG_LEVEL ??= "2";

// On a GPU TensorFlow would take all of its memory at the start; so it takes what it needs, and a second notebook can run.
process.env.TF_FORCE_GPU_ALLOW_GROWTH ??= "true";

// float32 means float32, as in PyTorch: NVIDIA's libraries do not multiply with 10 bits of it. Who wants speed takes bfloat16.
process.env.NVIDIA_TF32_OVERRIDE ??= "0";
