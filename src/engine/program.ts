/** Several kernel calls as one: what JavaScript and the binding cost for each is as much as a kernel on one token. */
import { type NativeCall, nativeBackend } from "./native";
import { tf } from "./tf";

/** Number `number` of call `call` is not that of the recording but `base` + a value given at each run. */
export type Varying = { call: number; number: number; base: number };

/**
 * Kernel calls as one call: their recording, to be done again with other inputs and numbers. JavaScript then costs one call for all of them.
 *
 * @param open inputs that are given anew at each run
 * @param constant tensors that stay what they are; an input that is neither open, constant nor made by an earlier call is a reason to give undefined
 * @returns a function of the open inputs and of what is added to each varying number, that gives the last call's first output
 */
export function makeProgram(
  calls: NativeCall[],
  open: tf.Tensor[],
  constant: tf.Tensor[],
  varying: Varying[],
): ((inputs: tf.Tensor[], value: number) => tf.Tensor) | undefined {
  const backend = nativeBackend();
  if (!backend || calls.length === 0) return undefined;
  const idOf = (x: tf.Tensor) => backend.getInputTensorIds([x])[0]!;
  const made = new Map<object, number>();
  const fixed = new Set(constant.map((x) => x.dataId as object));
  const code: number[] = [];
  const [openAt, varyingAt]: { at: number; from: number }[][] = [[], []];
  for (const [c, { inputs, numbers, outputs }] of calls.entries()) {
    code.push(inputs.length);
    for (const x of inputs) {
      const [slot, which] = [x && made.get(x.dataId), x ? open.findIndex((y) => y.dataId === x.dataId) : -1];
      if (which >= 0) openAt.push({ at: code.length, from: which });
      else if (x && slot === undefined && (!fixed.has(x.dataId) || x instanceof tf.Variable)) return undefined;
      code.push(slot !== undefined ? -2 - slot : x ? idOf(x) : -1);
    }
    code.push(numbers.length);
    for (const [n, number] of numbers.entries()) {
      const change = varying.find(({ call, number: at }) => call === c && at === n);
      if (change) varyingAt.push({ at: code.length, from: change.base });
      code.push(number);
    }
    for (const y of outputs) made.set(y.dataId, made.size);
  }
  const [names, numbers] = [calls.map(({ name }) => name), Float64Array.from(code)];
  return (inputs, value) => {
    for (const { at, from } of openAt) numbers[at] = idOf(inputs[from]!);
    for (const { at, from } of varyingAt) numbers[at] = from + value;
    return backend.createOutputTensor(backend.binding.runProgram(names, numbers)[0]!);
  };
}
