/** The part of tfjs-node's backend that recordings use, and the functions that src/native/binding.cc adds to its binding. */
import type { Attribute } from "./graph-def";
import type { tf } from "./tf";

export type Handle = { id: number; shape: number[]; dtype: number };

/** The functions of the binding that are used here: tfjs-node's, and those that src/native/binding.cc adds. */
export type Binding = {
  TF_STRING: number;
  TF_ATTR_TYPE: number;
  createTensor(shape: number[], dtype: number, data: ArrayBufferView | ArrayLike<number>): number;
  executeOp(name: string, attributes: Attribute[], inputs: number[], outputs: number): Handle[];
  tensorDataSync(id: number): unknown;
  tensorBytes(id: number): Uint8Array;
  runKernel(name: string): Handle[];
  addFunction?(definition: Uint8Array): void;
  removeFunction(name: string): void;
  opDefinitions(): Uint8Array;
};

/** The part of tfjs-node's backend that is used here (tfjs-node-gpu/src/nodejs_kernel_backend.ts). */
export type NodeBackend = {
  binding: Binding;
  tensorMap: { has(dataId: object): boolean; get(dataId: object): { dtype: number } };
  getInputTensorIds(tensors: tf.Tensor[]): number[];
  createOutputTensor(handle: Handle): tf.Tensor;
  incRef(dataId: object): void;
  readSync(dataId: object): unknown;
  write(values: unknown, shape: number[], dtype: string): object;
};
