/** Programs of our own in WGSL on tensors of tfjs's WebGPU backend, through its public `runWebGPUProgram` (tfjs-backend-webgpu/src/backend_webgpu.ts). */
import { tf } from "./tf";

type Components = 1 | 2 | 4;

export type WgslProgram = {
  /** Names the compiled program in tfjs's cache: another text needs another name. */
  name: string;
  /** The arrays that the text reads, by name, with how many floats an element of theirs holds. */
  inputs: { [name: string]: Components };
  /** Floats in an element of `result`, which the text writes. */
  output?: Components;
  /** What the text reads as `uniforms.NAME`. */
  uniforms: { [name: string]: "i32" | "f32" };
  /** Threads of a workgroup; all of them share `workgroupId`, and `localIndex` numbers them. */
  workgroup: number;
  /**
   * `fn main(index : i32)`, with whatever it calls. index counts threads over all workgroups. There may be more workgroups than were asked for (where
   * a GPU counts no higher in one dimension): the text must hold them off.
   */
  code: string;
};

type TensorInfo = { dataId: object; shape: number[]; dtype: string };
type Program = {
  shaderKey: string;
  variableNames: string[];
  variableComponents: number[];
  outputComponent: number;
  outputShape: number[];
  uniforms: string;
  workgroupSize: [number, number, number];
  dispatch: [number, number, number];
  dispatchLayout: { x: number[] };
  getUserCode(): string;
};
type Backend = {
  runWebGPUProgram(program: Program, inputs: TensorInfo[], dtype: string, uniforms: { type: string; data: number[] }[]): TensorInfo;
};

/** A tensor as one long row: what a program sees of it, so that it is compiled once and not for every rank. */
const flat = ({ dataId, size, dtype }: tf.Tensor): TensorInfo => ({ dataId, shape: [size], dtype });

/**
 * Runs a program once. Not recorded for gradients.
 *
 * @param inputs float32 tensors in the order of `program.inputs`
 * @param run shape of the result (float32), how many workgroups, and the uniforms' values by name
 * @throws TypeError naming every input that is no float32, and every uniform without a value
 */
export function runWgsl(
  program: WgslProgram,
  inputs: tf.Tensor[],
  { shape, groups, numbers }: { shape: number[]; groups: number; numbers: { [name: string]: number } },
): tf.Tensor {
  check(program, inputs, numbers);
  const size = shape.reduce((a, b) => a * b, 1);
  const described: Program = {
    shaderKey: `vitrine_${program.name}`,
    variableNames: Object.keys(program.inputs),
    variableComponents: Object.values(program.inputs),
    outputComponent: program.output ?? 1,
    outputShape: [size],
    uniforms: Object.entries(program.uniforms)
      .map(([name, type]) => `${name} : ${type},`)
      .join(" "),
    workgroupSize: [program.workgroup, 1, 1],
    dispatch: [groups, 1, 1],
    dispatchLayout: { x: [0] },
    getUserCode: () => program.code,
  };
  const values = Object.entries(program.uniforms).map(([name, type]) => ({
    type: type === "i32" ? "int32" : "float32",
    data: [numbers[name]!],
  }));
  const backend = tf.backend() as unknown as Backend;
  const { dataId } = backend.runWebGPUProgram(described, inputs.map(flat), "float32", values);
  return tf.engine().makeTensorFromTensorInfo({ dataId, shape, dtype: "float32" });
}

function check({ name, inputs: named, uniforms }: WgslProgram, inputs: tf.Tensor[], numbers: { [name: string]: number }): void {
  const names = Object.keys(named);
  const misfits = names.length === inputs.length ? [] : [`${inputs.length} inputs, expected ${names.join(", ")}`];
  for (const [i, { dtype }] of inputs.entries()) if (dtype !== "float32") misfits.push(`${names[i]} is ${dtype}, expected float32`);
  for (const key of Object.keys(uniforms)) if (!Number.isFinite(numbers[key])) misfits.push(`${key} is ${numbers[key]}, expected a number`);
  if (tf.getBackend() !== "webgpu") misfits.push(`the backend is ${tf.getBackend()}, expected webgpu`);
  if (misfits.length) throw new TypeError(`WGSL program ${name}: ${misfits.join("; ")}`);
}
