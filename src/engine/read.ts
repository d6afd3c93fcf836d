/** Numbers of a tensor on the JavaScript side, in the way that every backend has: WebGPU gives them only after a wait. */
import { tf } from "./tf";

/** Reads a tensor's numbers, in C order, and frees it. */
export async function take(x: tf.Tensor): Promise<Float32Array> {
  try {
    return (await x.data()) as Float32Array;
  } finally {
    x.dispose();
  }
}

/** Whether `x.dataSync()` works now: it does everywhere but on WebGPU, and there as long as the GPU has not been given the numbers. */
export function readable(x: tf.Tensor): boolean {
  if (tf.getBackend() !== "webgpu") return true;
  const { tensorMap } = tf.backend() as unknown as { tensorMap: { get(id: object): { values?: object | null } } };
  return Boolean(tensorMap.get(x.dataId).values);
}
