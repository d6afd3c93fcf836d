/** A block as one gradient: it computes what its formulas compute, forward and backward, whoever looks, and leaves nothing behind. */
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { random } from "vitrine/data/random";
import { engine, tf } from "vitrine/engine";
import { frozenWeight } from "vitrine/engine/frozen";
import { hasNative } from "vitrine/engine/native";
import { asBlock } from "vitrine/nn/block";
import { splitColumns } from "vitrine/nn/columns";
import { add, attention, fusedAttention, fusedGatedMlp, layerNorm, type Linear, linear, type Mask, mlp } from "vitrine/nn/layers";
import { edit, noTap, record, type Tap } from "vitrine/nn/tap";
import { expectClose, expectSame, farthest, keepsTensorCount, messageOf } from "../support/close";

before(() => engine().then(() => {}));

type Dtype = "float32" | "bfloat16";
const DTYPES: Dtype[] = ["float32", "bfloat16"];
const draw = random(21);
const values = (...shape: number[]) =>
  tf.tensor(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => 2 * draw() - 1),
    shape,
  );

/** A linear layer, with an adapter of rank r where r > 0. */
function layer(inner: number, out: number, dtype: Dtype, r = 0): Linear {
  const weight = values(out, inner).div(Math.sqrt(inner)) as tf.Tensor2D;
  const lora = r && {
    A: tf.variable(values(r, inner)) as unknown as tf.Tensor2D,
    B: tf.variable(values(out, r)) as unknown as tf.Tensor2D,
    scale: 0.5,
    drop: (x: tf.Tensor) => x,
    dropping: () => false,
  };
  return { weight: dtype === "bfloat16" ? frozenWeight(weight) : weight, bias: values(out) as tf.Tensor1D, ...(lora ? { lora } : {}) };
}

const norm = (D: number) => ({ weight: values(D).add(1) as tf.Tensor1D, bias: values(D) as tf.Tensor1D });

function makeBlock(D: number, F: number, dtype: Dtype, r: number) {
  return {
    ln1: norm(D),
    attn: { q: layer(D, D, dtype, r), k: layer(D, D, dtype), v: layer(D, D, dtype, r), out: layer(D, D, dtype, r) },
    ln2: norm(D),
    mlp: { fc1: layer(D, F, dtype, r), fc2: layer(F, D, dtype) },
  };
}
type Params = ReturnType<typeof makeBlock>;

const forward = (p: Params, heads: number, x: tf.Tensor3D, tap: Tap, mask: Mask): tf.Tensor3D => {
  x = tap("resid_pre", x);
  x = tap(
    "resid_mid",
    add(x, "attn_out", tap, (onto) => attention(p.attn, layerNorm(p.ln1, x), { heads, tap, mask, onto })),
  );
  return tap(
    "resid_post",
    add(x, "mlp_out", tap, (onto) => mlp(p.mlp, layerNorm(p.ln2, x), "gelu", tap, onto)),
  );
};

type Case = { B: number; N: number; D: number; heads: number; r: number; mask?: Mask };
const PADDING = () => tf.tensor2d([1, 1, 1, 1, 1, 0, 0], [1, 7], "int32").tile([3, 1]) as tf.Tensor2D;
const CASES: Case[] = [
  { B: 1, N: 1, D: 16, heads: 1, r: 1 },
  { B: 3, N: 7, D: 64, heads: 2, r: 3 },
  { B: 3, N: 7, D: 64, heads: 2, r: 3, mask: { causal: true } },
  { B: 2, N: 5, D: 24, heads: 3, r: 2 }, // heads of a width that the attention kernel does not take
];

const adapters = (p: Params): tf.Variable[] =>
  [p.attn.q, p.attn.v, p.attn.out, p.mlp.fc1].flatMap(({ lora }) => (lora ? [lora.A, lora.B] : [])) as unknown as tf.Variable[];

/** Two blocks in a row, so that gradients go through one into the other. */
function twice(p: [Params, Params], one: Case, x: tf.Tensor3D, how: "block" | "checkpoint" | "formula"): tf.Tensor3D {
  const { padding, ...mask } = one.mask ?? {};
  return p.reduce((y, params) => {
    if (how === "formula") return forward(params, one.heads, y, noTap, { ...mask, padding });
    return asBlock(params, { x: y, padding }, ({ x, padding }) => forward(params, one.heads, x, noTap, { ...mask, padding }), {
      checkpointing: how === "checkpoint",
    });
  }, x);
}

const all = (): Case[] => [...CASES, { ...CASES[1], mask: { causal: true, padding: PADDING() } }];

/** The share of the largest number by which bfloat16 may be off: a few roundings of 2^-9 each. */
const TOLERANCE = { float32: 2e-6, bfloat16: 3e-2 };

for (const dtype of DTYPES) {
  test(`asBlock() with ${dtype} weights computes what the layers compute one by one`, () => {
    for (const one of all()) {
      const p = makeBlock(one.D, 2 * one.D, dtype, one.r);
      const x = values(one.B, one.N, one.D) as tf.Tensor3D;
      const [got, want] = (["block", "formula"] as const).map((how) => twice([p, p], one, x, how).dataSync());
      const scale = Math.max(...Array.from(want as Float32Array, Math.abs));
      expectClose(got, want, TOLERANCE[dtype] * scale, `${JSON.stringify(one)}`);
    }
  });

  test(`asBlock() with ${dtype} weights has the layers' gradients, checkpointing the very same`, () => {
    for (const one of all()) {
      const p = [makeBlock(one.D, 2 * one.D, dtype, one.r), makeBlock(one.D, 2 * one.D, dtype, one.r)] as [Params, Params];
      const x = tf.variable(values(one.B, one.N, one.D)) as unknown as tf.Tensor3D;
      const list = [x as unknown as tf.Variable, ...p.flatMap(adapters)];
      const gradients = (how: "block" | "checkpoint" | "formula") => {
        const weights = tf.tensor1d(Float32Array.from({ length: one.D }, (_, i) => Math.cos(i)));
        const { grads, value } = tf.variableGrads(() => twice(p, one, x, how).mul(weights).mean() as tf.Scalar, list);
        const flat = list.map((v) => grads[v.name].dataSync());
        tf.dispose([grads, value, weights]);
        return flat;
      };
      const [got, again, want] = [gradients("block"), gradients("checkpoint"), gradients("formula")];
      const largest = (values: ArrayLike<number>) => Math.max(...Array.from(values, Math.abs));
      const most = Math.max(...want.map(largest));
      got.forEach((values, i) => {
        const scale = Math.max(largest(want[i]), most / 100); // of one key a query's gradient is 0
        expectClose(values, want[i], (dtype === "float32" ? 2e-5 : 6e-2) * scale, `${JSON.stringify(one)}, gradient ${i}`);
        expectSame(again[i], values, "checkpointing");
      });
    }
  });
}

for (const dtype of DTYPES)
  test(`a ${dtype} block of fused products has the values and gradients of its formulas, whichever sections lead to the loss`, async () => {
    for (const { heads, groups, parts } of [
      { heads: 2, groups: 2, parts: 1 },
      { heads: 4, groups: 2, parts: 2 },
      { heads: 4, groups: 1, parts: 1 },
    ]) {
      const [B, N, D, dh] = [2, 5, 32, 16];
      const p = {
        ln1: norm(D),
        attn: { qkv: layer(D, (heads + 2 * groups) * dh, dtype, 2), out: layer(heads * dh, D, dtype) },
        mlp: { gateUp: layer(D, 96, dtype, 3), down: layer(48, D, dtype) },
      };
      const compute = ({ x }: { x: tf.Tensor3D }) => {
        const y = fusedAttention(p.attn, layerNorm(p.ln1, x), { heads, groups, parts, onto: x });
        return fusedGatedMlp(p.mlp, layerNorm(p.ln1, y), noTap, y);
      };
      const x = tf.variable(values(B, N, D)) as unknown as tf.Tensor3D;
      const list = [x, ...[p.attn.qkv, p.mlp.gateUp].flatMap(({ lora }) => [lora!.A, lora!.B])] as unknown as tf.Variable[];
      const weights = tf.tensor1d(Float32Array.from({ length: D }, (_, i) => Math.cos(i)));
      const run = (how: "block" | "formula") => {
        const forward = () => (how === "block" ? asBlock(p, { x }, compute) : compute({ x }));
        const { grads, value } = tf.variableGrads(() => forward().mul(weights).mean() as tf.Scalar, list);
        const flat = [tf.tidy(() => forward().dataSync()), ...list.map((v) => grads[v.name].dataSync())];
        tf.dispose([grads, value]);
        return flat;
      };
      const [got, want] = [run("block"), run("formula")];
      got.forEach((numbers, i) => {
        const scale = Math.max(...Array.from(want[i], Math.abs));
        expectClose(numbers, want[i], (dtype === "float32" ? 2e-5 : 6e-2) * scale, `${heads} heads, ${groups} groups, gradient ${i}`);
      });
      await keepsTensorCount(() => void run("block"));
    }
    for (const section of [0, 1, 2]) {
      const p = { all: layer(16, 24, dtype, 2), out: layer(8, 16, dtype) };
      const x = values(2, 3, 16) as tf.Tensor3D;
      const compute = ({ x }: { x: tf.Tensor3D }) =>
        linear(p.out, splitColumns(linear(p.all, x), [2, 2, 2], 4)[section], { onto: x }) as tf.Tensor3D;
      const [got, want] = [() => asBlock(p, { x }, compute), () => compute({ x })].map((run) => {
        const { grads } = tf.variableGrads(() => run().square().mean() as tf.Scalar, [p.all.lora!.B as unknown as tf.Variable]);
        return Object.values(grads)[0].dataSync();
      });
      expectClose(got, want, (dtype === "float32" ? 2e-5 : 6e-2) * Math.max(...Array.from(want, Math.abs)), `section ${section} alone`);
    }
  });

test("asBlock() gives the gradient to any tensor that somebody asks for, variable or not", () => {
  const one = CASES[1];
  const p = makeBlock(one.D, 2 * one.D, "float32", one.r);
  const x = values(one.B, one.N, one.D) as tf.Tensor3D;
  for (const by of [x, p.attn.k.weight, p.ln2.weight, p.mlp.fc2.bias!] as tf.Tensor[]) {
    const gradient = (how: "block" | "formula") => {
      const loss = () => twice([p, p], one, x, how).square().mean();
      const { grads } = tf.engine().gradients(loss as never, [by], undefined as never) as unknown as { grads: tf.Tensor[] };
      return grads[0].dataSync();
    };
    const [got, want] = [gradient("block"), gradient("formula")];
    expectClose(got, want, 1e-5 * Math.max(...want.map(Math.abs)), `[${by.shape}]`);
  }
});

test("looking into a block changes no digit, and an edit inside counts", () => {
  for (const dtype of DTYPES) {
    const p = makeBlock(64, 96, dtype, 2);
    const x = values(2, 5, 64) as tf.Tensor3D;
    const run = (tap: Tap) => asBlock(p, { x }, ({ x }) => forward(p, 2, x, tap, {}), { tap }).dataSync();
    const { tap, seen } = record();
    expectSame(run(tap), run(noTap), dtype);
    for (const name of ["q", "pattern", "z", "attn_out", "resid_mid", "pre", "post", "mlp_out", "resid_post"])
      assert.equal(seen.get(name).dtype, "float32", `${name} can be read`);
    expectClose(seen.get("resid_mid").dataSync(), seen.get("resid_pre").add(seen.get("attn_out")).dataSync(), 0, "the stream is a sum");
    seen.dispose();
    const silent = edit("post", (post) => tf.zerosLike(post));
    const without = asBlock(p, { x }, ({ x }) => forward(p, 2, x, silent.tap, {}), { tap: silent.tap });
    const rest = asBlock(p, { x }, ({ x }) =>
      add(x, "attn_out", noTap, (onto) => attention(p.attn, layerNorm(p.ln1, x), { heads: 2, onto })),
    );
    expectClose(without.dataSync(), rest.add(p.mlp.fc2.bias!).dataSync(), 1e-5, "no feed-forward part but its bias");
  }
});

test("asBlock() leaves no tensor behind, with and without a gradient, needed or not", async () => {
  for (const dtype of DTYPES)
    for (const how of ["block", "checkpoint"] as const) {
      const one = CASES[1];
      const p = makeBlock(one.D, 2 * one.D, dtype, one.r);
      const x = values(one.B, one.N, one.D) as tf.Tensor3D;
      const step = () => {
        tf.tidy(() => twice([p, p], one, x, how)).dispose();
        tf.dispose(tf.variableGrads(() => twice([p, p], one, x, how).mean() as tf.Scalar, adapters(p)));
        const other = tf.tidy(() => tf.variable(tf.scalar(2)));
        const loss = () => twice([p, p], one, x, how).mean().mul(other) as tf.Scalar; // no block on the way to `other`
        tf.dispose([tf.variableGrads(loss, [other]), other]);
      };
      await keepsTensorCount(step);
    }
});

test("a block says so when something in it is not recorded", async () => {
  if (!hasNative("attention")) return;
  const p = makeBlock(16, 32, "float32", 1);
  const x = values(1, 3, 16) as tf.Tensor3D;
  const loss = () => asBlock(p, { x }, ({ x }) => linear(p.attn.q, layerNorm(p.ln1, x).mul(2)) as tf.Tensor3D).mean() as tf.Scalar;
  await keepsTensorCount(() =>
    messageOf(() => tf.variableGrads(loss, adapters(p)), "linear: an input [1,3,16] comes from an operation that a block does not record"),
  );
  assert.ok(farthest(asBlock(p, { x }, ({ x }) => layerNorm(p.ln1, x)).dataSync(), layerNorm(p.ln1, x).dataSync()) < 1e-6);
});
