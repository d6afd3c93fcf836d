/** WGSL kernels of the ops of this folder, for AMD, Intel and Apple GPUs: one program where the formula takes three to ten. */
import { tf } from "../engine/tf";
import { runWgsl, type WgslProgram } from "../engine/wgsl";
import type { Kind } from "./kernels";

const onWebgpu = (): boolean => tf.getBackend() === "webgpu";

/** Threads that share a row. */
const GROUP = 64;

const ROW_SUMS = `
var<workgroup> partial : array<vec2<f32>, ${GROUP}>;
// Two sums over the workgroup, known to each of its threads.
fn total(value : vec2<f32>) -> vec2<f32> {
  partial[localIndex] = value;
  workgroupBarrier();
  for (var half = ${GROUP / 2}u; half > 0u; half = half / 2u) {
    if (localIndex < half) { partial[localIndex] = partial[localIndex] + partial[localIndex + half]; }
    workgroupBarrier();
  }
  let sum = partial[0];
  workgroupBarrier();
  return sum;
}
// Mean and 1 / sqrt(variance + eps) of a row that begins at start.
fn statistics(start : i32) -> vec2<f32> {
  let width = f32(uniforms.width);
  var sum = 0.0;
  for (var i = i32(localIndex); i < uniforms.width; i = i + ${GROUP}) { sum = sum + x[start + i]; }
  let mean = total(vec2<f32>(sum, 0.0)).x / width;
  var squares = 0.0;
  for (var i = i32(localIndex); i < uniforms.width; i = i + ${GROUP}) {
    let centred = x[start + i] - mean;
    squares = squares + centred * centred;
  }
  return vec2<f32>(mean, inverseSqrt(total(vec2<f32>(squares, 0.0)).x / width + uniforms.eps));
}
// Where this workgroup's row begins; workgroups too many do the last row again.
fn rowStart(index : i32) -> i32 { return min(index / ${GROUP}, uniforms.rows - 1) * uniforms.width; }
`;

const NORM: WgslProgram = {
  name: "layerNorm",
  inputs: { x: 1, weight: 1, bias: 1 },
  uniforms: { rows: "i32", width: "i32", eps: "f32" },
  workgroup: GROUP,
  code: `${ROW_SUMS}
fn main(index : i32) {
  let start = rowStart(index);
  let row = statistics(start);
  for (var i = i32(localIndex); i < uniforms.width; i = i + ${GROUP}) {
    result[start + i] = (x[start + i] - row.x) * row.y * weight[i] + bias[i];
  }
}`,
};

const NORM_GRADIENT: WgslProgram = {
  ...NORM,
  name: "layerNormGradient",
  inputs: { dy: 1, x: 1, weight: 1 },
  code: `${ROW_SUMS}
fn main(index : i32) {
  let start = rowStart(index);
  let row = statistics(start);
  var sums = vec2<f32>(0.0);
  for (var i = i32(localIndex); i < uniforms.width; i = i + ${GROUP}) {
    let g = dy[start + i] * weight[i];
    sums = sums + vec2<f32>(g, g * (x[start + i] - row.x) * row.y);
  }
  let means = total(sums) / f32(uniforms.width);
  for (var i = i32(localIndex); i < uniforms.width; i = i + ${GROUP}) {
    let normal = (x[start + i] - row.x) * row.y;
    result[start + i] = (dy[start + i] * weight[i] - means.x - normal * means.y) * row.y;
  }
}`,
};

function overRows(program: WgslProgram, inputs: tf.Tensor[], x: tf.Tensor, eps: number): tf.Tensor {
  const width = x.shape[x.shape.length - 1]!;
  const rows = width ? x.size / width : 0;
  return runWgsl(program, inputs, { shape: x.shape, groups: rows, numbers: { rows, width, eps } });
}

/** Layer norm over the last axis. x: [..., D] -> [..., D] */
export const normWebgpu = (x: tf.Tensor, weight: tf.Tensor, bias: tf.Tensor, eps: number): tf.Tensor =>
  overRows(NORM, [x, weight, bias], x, eps);

/** Its gradient to x, undefined on other backends; the row's statistics are computed again. */
export const normGradientWebgpu = (dy: tf.Tensor, x: tf.Tensor, weight: tf.Tensor, eps: number): tf.Tensor | undefined =>
  onWebgpu() ? overRows(NORM_GRADIENT, [dy, x, weight], x, eps) : undefined;

const list = (numbers: number[]): string => numbers.join(", ");

/** erf by the fit that the native kernels use (src/native/vector.h): x P(x²) / Q(x²) up to 3.925, where float32 holds no more than 1. */
const ERROR_FUNCTION = `
fn errorFunction(value : f32) -> f32 {
  let x = clamp(value, -3.925, 3.925);
  let t = x * x;
  let p = array<f32, 6>(${list([1.1283791458, 0.19059416374, 0.05276934846, 3.7725668627e-3, 2.8484381207e-4, 2.0460229392e-6])});
  let q = array<f32, 6>(${list([1, 0.50224241013, 0.11418288712, 0.014983231108, 1.1638616698e-3, 3.804774316e-5])});
  let above = ((((p[5] * t + p[4]) * t + p[3]) * t + p[2]) * t + p[1]) * t + p[0];
  let below = ((((q[5] * t + q[4]) * t + q[3]) * t + q[2]) * t + q[1]) * t + q[0];
  return x * above / below;
}`;

/** `activate` and its slope. Nothing overflows: WGSL promises no infinity. */
const ACTIVATIONS: { [K in Kind]: string } = {
  gelu: `${ERROR_FUNCTION}
fn phi(x : f32) -> f32 { return 0.5 + 0.5 * errorFunction(x * ${Math.SQRT1_2}); }
fn activate(x : f32) -> f32 { return x * phi(x); }
fn slope(x : f32) -> f32 {
  let near = clamp(x, -13.0, 13.0);
  return phi(x) + near * exp(-0.5 * near * near) * ${1 / Math.sqrt(2 * Math.PI)};
}`,
  quick_gelu: `
fn sigmoid(x : f32) -> f32 { return 1.0 / (1.0 + exp(-max(x, -80.0))); }
fn activate(x : f32) -> f32 { return x * sigmoid(1.702 * x); }
fn slope(x : f32) -> f32 {
  let near = clamp(1.702 * x, -80.0, 80.0);
  let s = sigmoid(near);
  return s + near * s * sigmoid(-near);
}`,
};

function overElements(name: string, kind: Kind, inputs: { [name: string]: tf.Tensor }, value: string): tf.Tensor {
  const tensors = Object.values(inputs);
  const program: WgslProgram = {
    name: `${name}_${kind}`,
    inputs: Object.fromEntries(Object.keys(inputs).map((key) => [key, 1])),
    uniforms: { count: "i32" },
    workgroup: GROUP,
    code: `${ACTIVATIONS[kind]}
fn main(index : i32) { if (index < uniforms.count) { result[index] = ${value}; } }`,
  };
  const { size, shape } = tensors[0]!;
  return runWgsl(program, tensors, { shape, groups: Math.ceil(size / GROUP), numbers: { count: size } });
}

/** GELU or quick GELU of each number. Any shape. */
export const activationWebgpu = (x: tf.Tensor, kind: Kind): tf.Tensor => overElements("activation", kind, { x }, "activate(x[index])");

/** Its gradient to x, undefined on other backends. */
export const activationGradientWebgpu = (dy: tf.Tensor, x: tf.Tensor, kind: Kind): tf.Tensor | undefined =>
  onWebgpu() ? overElements("activationGradient", kind, { dy, x }, "dy[index] * slope(x[index])") : undefined;

/** x·Wᵀ + b with the addition inside tfjs's own product. x: [rows, in], weight: [out, in], bias: [out] -> [rows, out] */
export const productWithBias = (x: tf.Tensor2D, weight: tf.Tensor2D, bias: tf.Tensor1D): tf.Tensor2D =>
  tf.engine().runKernel("_FusedMatMul", { a: x, b: weight, bias }, {
    transposeA: false,
    transposeB: true,
    activation: "linear",
  } as unknown as tf.NamedAttrMap) as tf.Tensor2D;
