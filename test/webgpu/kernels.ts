/** Run by test/webgpu/webgpu.test.ts in a process on WebGPU: its kernels, forward and gradients, beside the formulas on tfjs's `cpu` backend. */
import { random } from "vitrine/data/random";
import { engine, tf } from "vitrine/engine";
import { attend, type Heads } from "vitrine/nn/attend";
import { gelu, layerNormOp, linearProduct, quickGelu } from "vitrine/nn/ops";

/** `worst`: the largest distance of a number, as a share of the largest number or of 1. programs: how many ran for the forward pass. */
export type Outcome = { name: string; worst: number; programs: number };

type Arrays = { shape: number[]; values: Float32Array }[];
type Op = (...inputs: tf.Tensor[]) => tf.Tensor;
type Case = { name: string; op: Op; inputs: Arrays; constants?: Arrays };

const draw = random(3);
const noise = (shape: number[], spread = 1): Arrays[number] => ({
  shape,
  values: Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => spread * (2 * draw() - 1)),
});
/** 0 where a key may be seen, mostly; an additive mask of a large negative number elsewhere. */
const blocking = (shape: number[]): Arrays[number] => {
  const mask = noise(shape);
  return { shape, values: mask.values.map((x) => (x > 0.5 ? -1e30 : 0)) };
};

const norm: Op = (x, weight, bias) => layerNormOp(x, weight as tf.Tensor1D, bias as tf.Tensor1D, 1e-5);
const linear: Op = (x, weight, bias) => linearProduct(x, weight as tf.Tensor2D, bias as tf.Tensor1D);
const attention =
  (shape: Heads, causal: boolean): Op =>
  (q, k, v, bias) =>
    attend({ q: q as tf.Tensor3D, k: k as tf.Tensor3D, v: v as tf.Tensor3D }, shape, { causal, bias: bias as tf.Tensor4D | undefined });

const far = { shape: [9], values: Float32Array.of(-1e30, -1e4, -88, -14, 0, 14, 88, 1e4, 1e30) };

type More = { groups?: number; causal?: boolean; scale?: number; mask?: number[] };
function attends(B: number, N: number, M: number, heads: number, dh: number, more: More = {}): Case {
  const { groups = heads, causal = false, scale, mask } = more;
  const name = `attention [${B}, ${N}, ${heads} x ${dh}] to ${M} keys ${JSON.stringify(more)}`;
  const inputs = [noise([B, N, heads * dh]), noise([B, M, groups * dh]), noise([B, M, groups * dh])];
  return { name, op: attention({ heads, groups, scale }, causal), inputs, constants: mask && [blocking(mask)] };
}

const norms = [
  [1, 1],
  [3, 5],
  [2, 7, 64],
  [5, 130],
  [0, 5],
].map((shape) => {
  const D = shape.at(-1)!;
  return { name: `layer norm [${shape}]`, op: norm, inputs: [noise(shape, 3), noise([D]), noise([D])] };
});
const activations = Object.entries({ gelu, quickGelu }).flatMap(([name, op]) => [
  ...[[1], [7, 13], [64], [0, 3]].map((shape) => ({ name: `${name} [${shape}]`, op: op as Op, inputs: [noise(shape, 5)] })),
  { name: `${name} far out`, op: op as Op, inputs: [far] },
]);
const products = [
  [[1, 1], 1],
  [[2, 5, 7], 3],
  [[3, 130], 33],
].map(([shape, out]) => {
  const D = (shape as number[]).at(-1)!;
  return {
    name: `linear [${shape}] to ${out}`,
    op: linear,
    inputs: [noise(shape as number[]), noise([out as number, D]), noise([out as number])],
  };
});
const attentions = [
  attends(1, 1, 1, 1, 4),
  attends(2, 5, 5, 3, 12),
  attends(1, 16, 17, 2, 8),
  attends(2, 67, 67, 2, 64),
  attends(1, 33, 70, 1, 128),
  attends(2, 65, 65, 2, 16, { mask: [1, 1, 65, 65] }),
  attends(3, 7, 7, 2, 8, { mask: [3, 1, 7, 7], causal: true }),
  attends(2, 5, 9, 3, 4, { mask: [2, 1, 1, 9], scale: 0.3 }),
  attends(2, 3, 18, 6, 8, { groups: 2, causal: true }),
  attends(1, 66, 66, 4, 16, { groups: 1, mask: [1, 4, 66, 66] }),
  attends(1, 3, 3, 1, 6), // heads of 6 are for the formula
];
/** Every key blocked for the first query: a uniform pattern. */
const blocked: Case = {
  ...attends(1, 4, 4, 2, 8),
  name: "attention with a query that may look nowhere",
  constants: [{ shape: [1, 1, 4, 4], values: Float32Array.from({ length: 16 }, (_, i) => (i < 4 ? -1e30 : 0)) }],
};

/** As many workgroups as a GPU that counts to five in one dimension would not start in one. */
const crowded: Case[] = [
  { name: "layer norm in 50 workgroups", op: norm, inputs: [noise([50, 5], 3), noise([5]), noise([5])] },
  { name: "gelu in 15 workgroups", op: gelu as Op, inputs: [noise([7, 130], 5)] },
  { ...attends(2, 67, 67, 2, 8), name: "attention in 8 workgroups" },
];

const tensors = (arrays: Arrays): tf.Tensor[] => arrays.map(({ values, shape }) => tf.tensor(values, shape));

/** Result and gradients of a case on a backend, with a fixed weighting of the results. */
async function evaluate(backend: string, { op, inputs, constants = [] }: Case, gradients = true): Promise<Float32Array[]> {
  await tf.setBackend(backend);
  const made = tf.tidy(() => {
    const fixed = tensors(constants);
    const y = op(...tensors(inputs), ...fixed);
    if (y.size === 0 || !gradients) return [y];
    const weighting = tf.tensor(
      Float32Array.from({ length: y.size }, (_, i) => Math.sin(1.7 * i)),
      y.shape,
    );
    return [
      y,
      ...tf.grads(
        (...xs: tf.Tensor[]) =>
          op(...xs, ...fixed)
            .mul(weighting)
            .sum() as tf.Scalar,
      )(tensors(inputs)),
    ];
  });
  return Promise.all(made.map((x) => x.data() as Promise<Float32Array>));
}

function distance(got: Float32Array, want: Float32Array): number {
  let [worst, scale] = [got.length === want.length ? 0 : Number.NaN, 1];
  for (let i = 0; i < want.length; i++) {
    const d = Math.abs(got[i] - want[i]);
    if (!(d <= worst)) worst = d;
    scale = Math.max(scale, Math.abs(want[i]));
  }
  return worst / scale;
}

export async function kernels(): Promise<Outcome[]> {
  await engine();
  (tf.findBackend("cpu") as unknown as { firstUse: boolean }).firstUse = false; // it would print an advertisement
  const backend = tf.backend() as unknown as { runWebGPUProgram(...args: unknown[]): unknown; device: { limits: object } };
  const outcomes: Outcome[] = [];
  let programs = 0;
  const run = backend.runWebGPUProgram;
  backend.runWebGPUProgram = (...args) => {
    programs += 1;
    return run.apply(backend, args);
  };
  const cases: Case[] = [...norms, ...activations, ...products, ...attentions, blocked];
  for (const one of cases) {
    const [want, got] = [await evaluate("cpu", one), await evaluate("webgpu", one)];
    programs = 0;
    tf.tidy(() => one.op(...tensors(one.inputs), ...tensors(one.constants ?? [])));
    outcomes.push({ name: one.name, worst: Math.max(...got.map((x, i) => distance(x, want[i]))), programs });
  }
  const { limits } = backend.device;
  Object.defineProperty(backend.device, "limits", { value: { maxComputeWorkgroupsPerDimension: 5 }, configurable: true });
  for (const one of crowded) {
    const [want, got] = [await evaluate("cpu", one, false), await evaluate("webgpu", one, false)];
    outcomes.push({ name: one.name, worst: distance(got[0], want[0]), programs: 1 });
  }
  Object.defineProperty(backend.device, "limits", { value: limits });
  return outcomes;
}
