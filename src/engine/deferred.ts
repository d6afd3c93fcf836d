/**
 * Tensors whose memory is made when an op first uses it. Outside this file such a tensor is like any other: it has its shape and dtype, tfjs
 * counts its bytes, clones and disposes it.
 */
import type { Handle } from "./native";
import { tf } from "./tf";

/** The part of tfjs-node's backend that this file uses (tfjs-node-gpu/src/nodejs_kernel_backend.ts). */
type NodeBackend = {
  binding: { cutMappings?(): number };
  tensorMap: { get(id: object): { id: number }; set(id: object, info: object): void };
  getDTypeInteger(dtype: string): number;
  getInputTensorIds(tensors: { dataId?: object }[]): number[];
  readSync(dataId: object): unknown;
  disposeData(dataId: object, force?: boolean): boolean;
};

export type Deferred = {
  /** Makes the memory, once. When it throws, the op fails that asked, and the next one asks again. */
  make(): Handle;
  /** Told once when the memory is made, or the tensor disposed before. */
  done?(): void;
};

const waiting = new WeakMap<object, Deferred>();
const taught = new WeakSet<object>();

/**
 * A tensor that `make` fills when it is first used. It belongs to the tidy around this call, as a tensor that an op gives.
 *
 * @param dtype "float32", or "bfloat16" as engine/bfloat16 knows it
 */
export function deferTensor(shape: number[], dtype: string, deferred: Deferred): tf.Tensor {
  const node = tf.backend() as unknown as NodeBackend;
  teach(node);
  const dataId = {};
  node.tensorMap.set(dataId, { shape, dtype: node.getDTypeInteger(dtype), id: -1, values: null, refCount: 1 });
  waiting.set(dataId, deferred);
  return tf.engine().makeTensorFromTensorInfo({ dataId, shape, dtype: dtype as tf.DataType });
}

/** Whether a tensor still has no memory. */
export const isDeferred = (x: tf.Tensor): boolean => waiting.has(x.dataId);

/** Every way to a tensor's numbers goes through two methods of the backend: there the memory is made. */
function teach(node: NodeBackend): void {
  if (taught.has(node)) return;
  taught.add(node);
  const [inputIds, readSync, disposeData] = [node.getInputTensorIds, node.readSync, node.disposeData];
  const fill = (dataId: object | undefined) => {
    const deferred = dataId && waiting.get(dataId);
    if (!deferred) return;
    node.tensorMap.get(dataId).id = deferred.make().id;
    waiting.delete(dataId);
    deferred.done?.();
  };
  node.getInputTensorIds = function (tensors) {
    for (const { dataId } of tensors) fill(dataId);
    return inputIds.call(this, tensors);
  };
  let cut = node.binding.cutMappings?.() ?? 0;
  node.readSync = function (dataId) {
    fill(dataId);
    const numbers = readSync.call(this, dataId);
    const now = node.binding.cutMappings?.() ?? 0;
    if (now === cut) return numbers;
    cut = now;
    throw new Error("A weight file was cut off while a model was using it: weights that stood there are zeros now. Load the model again.");
  };
  node.disposeData = function (dataId, force) {
    const gone = disposeData.call(this, dataId, force);
    const deferred = gone && waiting.get(dataId);
    if (deferred) {
      waiting.delete(dataId);
      deferred.done?.();
    }
    return gone;
  };
}
