/**
 * Attention in WGSL without the matrix of scores (Milakov & Gimelshein 2018; Dao et al. 2022). A thread owns one query, or in the gradients to keys
 * and values one key, and walks over the other side, of which a workgroup keeps a tile where all its threads reach it.
 * Letters: B batch, N queries, M keys, H heads of q, G of k and v, dh width of a head. q: [B, N, H·dh], k, v: [B, M, G·dh].
 */
import { tf } from "../engine/tf";
import { runWgsl, type WgslProgram } from "../engine/wgsl";
import { BLOCKED } from "./masks";

const GROUP = 64;
/** Rows of a tile: 2 tiles of 16 rows of 128 floats fill the 16 KB that every GPU has. */
const TILE = 16;

type Qkv = { q: tf.Tensor3D; k: tf.Tensor3D; v: tf.Tensor3D; mask?: tf.Tensor4D };
type Heads = { heads: number; groups: number; causal: boolean; scale: number };

/** Which side a thread owns, which it walks over, and what it does there. The texts see `own`, `other` (row numbers), `score`. */
type Walk = {
  name: string;
  side: "query" | "key";
  /** Arrays whose row of its own a thread keeps; the first two of them, if so many, and `other`'s, in the order (q or k, dz or v). */
  keeps: [string] | [string, string];
  tiles: [string, string];
  needs?: string[];
  /** Before the walk, for every tile of scores, and after it. */
  before: string;
  each: string;
  after: string;
};

/** p and dp of a pair (own, other) of one query and one key, from the statistics of the query. */
const PAIR = (query: string) => `
      let known = statistics[(batch * uniforms.heads + head) * uniforms.queries + ${query}];
      let p = exp(scores[j] - known.x) * known.y;`;

const FORWARD: Walk = {
  name: "attention",
  side: "query",
  keeps: ["q"],
  tiles: ["k", "v"],
  before: `
  var largest = -3.0e38;
  var weight = 0.0;`,
  each: `
    var next = largest;
    for (var j = 0; j < count; j = j + 1) { next = max(next, scores[j]); }
    let shrink = exp(largest - next);
    largest = next;
    weight = weight * shrink;
    for (var c = 0; c < ROW; c = c + 1) { sum[c] = sum[c] * shrink; }
    for (var j = 0; j < count; j = j + 1) {
      let p = exp(scores[j] - largest);
      weight = weight + p;
      for (var c = 0; c < ROW; c = c + 1) { sum[c] = sum[c] + p * second[j * ROW + c]; }
    }`,
  after: "for (var c = 0; c < ROW; c = c + 1) { result[mine + c] = sum[c] / weight; }",
};

/** Of each query: largest score, 1 / sum of the powers, and Σ p dp, which the softmax's gradient takes off. -> [B, H, N, 4], the last a filler */
const STATISTICS: Walk = {
  name: "attentionStatistics",
  side: "query",
  keeps: ["q", "dz"],
  tiles: ["k", "v"],
  before: `
  var largest = -3.0e38;
  var weight = 0.0;
  var delta = 0.0;`,
  each: `
    var next = largest;
    for (var j = 0; j < count; j = j + 1) { next = max(next, scores[j]); }
    let shrink = exp(largest - next);
    largest = next;
    weight = weight * shrink;
    delta = delta * shrink;
    for (var j = 0; j < count; j = j + 1) {
      let p = exp(scores[j] - largest);
      weight = weight + p;
      delta = delta + p * along(j);
    }`,
  after: "result[plane * uniforms.queries + own] = vec4<f32>(largest, 1.0 / weight, delta / weight, 0.0);",
};

const writeSum = "for (var c = 0; c < ROW; c = c + 1) { result[mine + c] = sum[c]; }";

const addTimes = (factor: string, from: "first" | "second", query: string) => `
    for (var j = 0; j < count; j = j + 1) {${PAIR(query)}
      let factor = ${factor};
      for (var c = 0; c < ROW; c = c + 1) { sum[c] = sum[c] + factor * ${from}[j * ROW + c]; }
    }`;

const SLOPE = "p * (along(j) - known.z) * uniforms.scale";
const TO_Q: Walk = {
  name: "attentionToQuery",
  side: "query",
  keeps: ["q", "dz"],
  tiles: ["k", "v"],
  needs: ["statistics"],
  before: "",
  each: addTimes(SLOPE, "first", "own"),
  after: writeSum,
};
const TO_K: Walk = {
  ...TO_Q,
  name: "attentionToKey",
  side: "key",
  keeps: ["k", "v"],
  tiles: ["q", "dz"],
  each: addTimes(SLOPE, "first", "(start + j)"),
};
const TO_V: Walk = { ...TO_K, name: "attentionToValue", keeps: ["k"], each: addTimes("p", "second", "(start + j)") };

/** The text of a walk for heads of 4 · ROW numbers. */
function program(walk: Walk, dh: number, masked: boolean): WgslProgram {
  const { side, keeps, tiles, needs = [] } = walk;
  const [owned, walked] = side === "query" ? ["queries", "keys"] : ["keys", "queries"];
  const [query, key] = side === "query" ? ["own", "(start + j)"] : ["(start + j)", "own"];
  const [ownHeads, otherHeads, otherHead] =
    side === "query" ? ["uniforms.heads", "uniforms.groups", "head / shares"] : ["uniforms.groups", "uniforms.heads", "head"];
  const arrays = [...keeps, ...tiles, ...needs];
  const load = keeps.map((name, i) => `${i ? "beside" : "row"}[c] = ${name}[mine + c];`).join(" ");
  return {
    name: `${walk.name}_${dh}${masked ? "_masked" : ""}`,
    inputs: { ...Object.fromEntries(arrays.map((name) => [name, 4 as const])), ...(masked ? { mask: 1 as const } : {}) },
    output: 4,
    uniforms: {
      queries: "i32",
      keys: "i32",
      heads: "i32",
      groups: "i32",
      planes: "i32",
      causal: "i32",
      scale: "f32",
      maskBatch: "i32",
      maskHead: "i32",
      maskQuery: "i32",
      maskKey: "i32",
    },
    workgroup: GROUP,
    code: `
const ROW = ${dh / 4};
var<workgroup> first : array<vec4<f32>, ${(TILE * dh) / 4}>;
var<workgroup> second : array<vec4<f32>, ${(TILE * dh) / 4}>;
var<private> row : array<vec4<f32>, ${dh / 4}>;
var<private> beside : array<vec4<f32>, ${dh / 4}>;
var<private> sum : array<vec4<f32>, ${dh / 4}>;
// The product of the rows that stand beside the scored ones: dz · v of a pair.
fn along(j : i32) -> f32 {
  var product = 0.0;
  for (var c = 0; c < ROW; c = c + 1) { product = product + dot(beside[c], second[j * ROW + c]); }
  return product;
}
fn main(index : i32) {
  let group = index / ${GROUP};
  let blocks = (uniforms.${owned} + ${GROUP - 1}) / ${GROUP};
  let plane = min(group / blocks, uniforms.planes - 1); // of a picture and a head; workgroups too many do the last one's rows again
  let batch = plane / ${ownHeads};
  let shares = uniforms.heads / uniforms.groups; // heads of q that share one of k and v
  let number = (group % blocks) * ${GROUP} + i32(localIndex);
  let own = min(number, uniforms.${owned} - 1); // threads too many go along, for the barriers, and write nothing
  let mine = ((batch * uniforms.${owned} + own) * ${ownHeads} + plane % ${ownHeads}) * ROW;
  for (var c = 0; c < ROW; c = c + 1) { ${load} }
  var head = plane % ${ownHeads}${side === "query" ? "" : " * shares"};
  var scores : array<f32, ${TILE}>;${walk.before}
  for (var share = 0; share < ${side === "query" ? "1" : "uniforms.heads / uniforms.groups"}; share = share + 1) {
    for (var start = 0; start < uniforms.${walked}; start = start + ${TILE}) {
      workgroupBarrier();
      for (var i = i32(localIndex); i < ${TILE} * ROW; i = i + ${GROUP}) {
        let other = min(start + i / ROW, uniforms.${walked} - 1);
        let at = ((batch * uniforms.${walked} + other) * ${otherHeads} + ${otherHead}) * ROW + i % ROW;
        first[i] = ${tiles[0]}[at];
        second[i] = ${tiles[1]}[at];
      }
      workgroupBarrier();
      let count = min(${TILE}, uniforms.${walked} - start);
      for (var j = 0; j < count; j = j + 1) {
        var score = 0.0;
        for (var c = 0; c < ROW; c = c + 1) { score = score + dot(row[c], first[j * ROW + c]); }
        score = score * uniforms.scale;
        ${masked ? `score = score + mask[batch * uniforms.maskBatch + head * uniforms.maskHead + ${query} * uniforms.maskQuery + ${key} * uniforms.maskKey];` : ""}
        if (uniforms.causal != 0 && ${key} > ${query} + uniforms.keys - uniforms.queries) { score = score + ${(2 * BLOCKED).toExponential()}; }
        scores[j] = score;
      }${walk.each}
    }
    head = head + 1;
  }
  if (number < uniforms.${owned}) { ${walk.after} }
}`,
  };
}

/** Whether the kernels take these tensors. */
function fits({ q, k, v, mask }: Qkv, { heads }: Heads): boolean {
  const dh = q.shape[2] / heads;
  const [B, N, M] = [q.shape[0], q.shape[1], k.shape[1]];
  const masks =
    !mask || (mask.dtype === "float32" && [B, heads, N, M].every((n, axis) => mask.shape[axis] === n || mask.shape[axis] === 1));
  const floats = [q, k, v].every((x) => x.dtype === "float32");
  return tf.getBackend() === "webgpu" && dh % 4 === 0 && dh <= 128 && B * N * M > 0 && floats && masks;
}

function run(walk: Walk, arrays: { [name: string]: tf.Tensor }, { q, k, mask }: Qkv, shape: Heads, result: number[]): tf.Tensor {
  const { heads, groups, causal, scale } = shape;
  const [B, N, D] = q.shape;
  const M = k.shape[1];
  const written = program(walk, D / heads, Boolean(mask));
  const [maskBatch, maskHead, maskQuery, maskKey] = (mask ? stridesOf(mask.shape) : [0, 0, 0, 0]) as [number, number, number, number];
  const [planes, rows] = walk.side === "query" ? [B * heads, N] : [B * groups, M];
  const strides = { maskBatch, maskHead, maskQuery, maskKey };
  const numbers = { queries: N, keys: M, heads, groups, planes, causal: causal ? 1 : 0, scale, ...strides };
  const inputs = Object.keys(written.inputs).map((name) => (name === "mask" ? mask! : arrays[name]!));
  return runWgsl(written, inputs, { shape: result, groups: planes * Math.ceil(rows / GROUP), numbers });
}

/** How far apart neighbours on each axis are; 0 on an axis of 1, which is the same for all. */
const stridesOf = (shape: number[]): number[] =>
  shape.map((n, axis) => (n === 1 ? 0 : shape.slice(axis + 1).reduce((product, m) => product * m, 1)));

/** softmax(scale·q·kᵀ + mask)·v. -> [B, N, H·dh]; undefined where the kernels do not run, and the op takes its formula */
export const attentionWebgpu = (x: Qkv, shape: Heads): tf.Tensor | undefined =>
  fits(x, shape) ? run(FORWARD, { q: x.q, k: x.k, v: x.v }, x, shape, x.q.shape) : undefined;

/** Gradients to q, k and v; undefined where the kernels do not run. */
export function attentionGradientWebgpu(dz: tf.Tensor, x: Qkv, shape: Heads): [tf.Tensor, tf.Tensor, tf.Tensor] | undefined {
  if (!fits(x, shape)) return undefined;
  const [B, N] = x.q.shape;
  const arrays = { q: x.q, k: x.k, v: x.v, dz };
  const statistics = run(STATISTICS, arrays, x, shape, [B, shape.heads, N, 4]);
  const all = { ...arrays, statistics };
  const gradients = [run(TO_Q, all, x, shape, x.q.shape), run(TO_K, all, x, shape, x.k.shape), run(TO_V, all, x, shape, x.v.shape)];
  statistics.dispose();
  return gradients as [tf.Tensor, tf.Tensor, tf.Tensor];
}
