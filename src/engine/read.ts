/** Numbers of a tensor on the JavaScript side, in the way that every backend has: WebGPU gives them only after a wait. */
import type { tf } from "./tf";

/** Reads a tensor's numbers, in C order, and frees it. */
export async function take(x: tf.Tensor): Promise<Float32Array> {
  try {
    return (await x.data()) as Float32Array;
  } finally {
    x.dispose();
  }
}
