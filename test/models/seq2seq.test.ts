/** OPT and T5 by themselves: transformers' layers on the oracle's states, and that a cache, padding and a bias in training change nothing. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { openCheckpoint } from "vitrine/files/checkpoint";
import type { LanguageModel } from "vitrine/models/loaded";
import { optConfig, optLanguage, optSpec } from "vitrine/models/opt";
import { type T5, t5Encode, t5Language, t5Spec } from "vitrine/models/t5";
import { bucketOf, positionBias } from "vitrine/models/t5-buckets";
import { t5Config } from "vitrine/models/t5-config";
import { withLora } from "vitrine/nn/lora";
import { type Dtype, disposeParams, leaves, loadWeights, mapLeaves } from "vitrine/nn/spec";
import { record } from "vitrine/nn/tap";
import { withTrainable } from "vitrine/nn/trainable";
import { ATTENTION, Checks, FLOAT, openOracle } from "../parity/check";
import { expectClose, keepsTensorCount, messageOf } from "../support/close";

before(() => engine().then(() => {}));

const ORACLE = join(__dirname, "..", "oracle");
const tensorOf = ({ values, shape }: { values: Float32Array; shape: number[] }) => tf.tensor3d(values, shape as [number, number, number]);
const ints = ({ values, shape }: { values: Float32Array; shape: number[] }): tf.Tensor2D =>
  tf.tensor2d(Int32Array.from(values), shape as [number, number], "int32");

/** The language model in a checkpoint of BLIP-2. */
function part<S>(family: string, specOf: (config: unknown) => S, dtype: Dtype = "float32") {
  const folder = join(ORACLE, family, "model");
  const checkpoint = openCheckpoint(folder);
  const spec = specOf(checkpoint.config.text_config);
  const names = new Set(leaves(spec).map((leaf) => leaf.spec.name));
  const tensors = new Map([...checkpoint.tensors].filter(([name]) => names.has(name)));
  const params = loadWeights(spec, tensors, { dtype, where: folder });
  const dispose = () => {
    disposeParams(spec, params);
    checkpoint.close();
  };
  return { params, config: checkpoint.config.text_config, dispose };
}

function t5(dtype: Dtype = "float32") {
  const { params, config, dispose } = part("blip2_t5", (c) => t5Spec(t5Config(c, true), "language_model."), dtype);
  const c = t5Config(config, true);
  return { params, c, language: t5Language(params, c, [1]), dispose };
}

function opt(dtype: Dtype = "float32", change: object = {}) {
  const { params, config, dispose } = part("blip2_opt", (c) => optSpec(optConfig(c), "language_model."), dtype);
  const c = { ...optConfig(config), ...change };
  return { params, c, language: optLanguage(params, c, [2]), dispose };
}

function allHold(checks: Checks): void {
  assert.ok(checks.rows.length > 0);
  assert.deepEqual(
    checks.rows.filter((row) => !row.ok),
    [],
  );
}

test("T5 gives the hidden states, attentions, position biases and logits of transformers", async () => {
  const { language, dispose } = t5();
  const oracle = openOracle(ORACLE, "blip2_t5");
  const [forward] = oracle.cases.forward;
  const { tap, seen } = record();
  const padding = ints(oracle.array("forward.attention_mask"));
  const states = language.encoder!.encode({ embeddings: tensorOf(oracle.array("encoder.hidden.0")), padding, tap });
  const embeddings = language.embed(ints(oracle.array("forward.decoder_input_ids")));
  const final = language.forward({ embeddings, encoded: { states, padding }, tap });
  const checks = new Checks("blip2_t5");
  const see = (name: string, what: string, tolerance = FLOAT) => checks.tensor(name, seen.get(name), oracle.array(what), tolerance);
  for (const [stack, prefix] of [
    ["encoder", "encoder."],
    ["decoder", ""],
  ]) {
    const hidden: string[] = forward[`${stack}_hidden`];
    for (const [i, name] of hidden.entries())
      await see(i === 0 ? `${prefix}blocks.0.resid_pre` : `${prefix}blocks.${i - 1}.resid_post`, name);
    await see(`${prefix}position_bias`, forward[`${stack}_position_bias`]);
  }
  for (const [i, name] of forward.encoder_attention.entries()) await see(`encoder.blocks.${i}.attn.pattern`, name, ATTENTION);
  for (const [i, name] of forward.decoder_self_attention.entries()) await see(`blocks.${i}.attn.pattern`, name, ATTENTION);
  for (const [i, name] of forward.decoder_cross_attention.entries()) await see(`blocks.${i}.cross_attn.pattern`, name, ATTENTION);
  await see("encoder.final", forward.encoder_last_hidden_state);
  await checks.tensor("logits", language.logits(final), oracle.array(forward.logits), FLOAT);
  allHold(checks);
  seen.dispose();
  dispose();
});

test("bucketOf() gives T5's buckets of transformers from -200 to 200", () => {
  const oracle = openOracle(ORACLE, "blip2_t5");
  const { num_buckets, max_distance, ...names } = oracle.cases.relative_position_buckets;
  const c = { relative_attention_num_buckets: num_buckets, relative_attention_max_distance: max_distance };
  const distances = [...oracle.array(names.relative_position).values];
  for (const side of ["encoder", "decoder"] as const)
    assert.deepEqual(
      distances.map((d) => bucketOf(d, c, side === "encoder")),
      [...oracle.array(names[side]).values],
    );
});

test("positionBias() of the last queries is the end of the whole", () => {
  const { params, c, dispose } = t5();
  for (const bidirectional of [true, false]) {
    const whole = positionBias(params.decoder.bias, c, { queries: 40, keys: 40, bidirectional });
    const last = positionBias(params.decoder.bias, c, { queries: 3, keys: 40, bidirectional });
    expectClose(last.dataSync(), whole.slice([0, 0, 37, 0], [1, c.num_heads, 3, 40]).dataSync(), 0);
  }
  dispose();
});

/** The same tokens at once and in pieces, after an encoder's states where there is an encoder. */
async function cachedIsUncached(language: LanguageModel, close: number): Promise<void> {
  const ids = tf.tensor2d(
    Int32Array.from({ length: 24 }, (_, i) => 3 + ((i * 37) % 200)),
    [2, 12],
    "int32",
  );
  const padding = tf.tensor2d([1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], [2, 6], "int32");
  const states = language.encoder?.encode({ embeddings: language.embed(ids.slice([0, 0], [2, 6])), padding });
  const encoded = states && { states, padding };
  const embeddings = language.embed(ids);
  const whole = language.forward({ embeddings, encoded });
  await keepsTensorCount(() => {
    for (const cuts of [[12], [9, 1, 1, 1], [2, 6, 4]]) {
      const cache = language.makeCache(14);
      let at = 0;
      for (const count of cuts) {
        const piece = embeddings.slice([0, at, 0], [2, count, -1]);
        const y = language.forward({ embeddings: piece, encoded, cache });
        const want = whole.slice([0, at, 0], [2, count, -1]);
        expectClose(y.dataSync(), want.dataSync(), close, `${cuts}, from ${at} on`);
        tf.dispose([piece, y, want]);
        at += count;
      }
      cache.dispose();
    }
  });
}

for (const dtype of ["float32", "bfloat16"] as const)
  test(`OPT and T5 in ${dtype} say the same with a cache, however the tokens are cut`, async () => {
    for (const model of [opt(dtype), t5(dtype)]) {
      await cachedIsUncached(model.language, dtype === "float32" ? 2e-5 : 6e-2);
      model.dispose();
    }
  });

test("a cache that saw another prompt's states reads the new ones", () => {
  const { language, dispose } = t5();
  const prompt = (first: number) => language.embed(tf.tensor2d([first, 5, 6], [1, 3], "int32"));
  const [one, other] = [prompt(7), prompt(90)].map((embeddings) => ({ states: language.encoder!.encode({ embeddings }) }));
  const embeddings = language.embed(tf.tensor2d([0], [1, 1], "int32"));
  const cache = language.makeCache(2);
  language.forward({ embeddings, encoded: one, cache });
  cache.length = 0; // as an engine does that begins again
  for (const layer of cache.layers) {
    tf.dispose([layer.k!, layer.v!]);
    layer.k = layer.v = undefined;
  }
  const again = language.forward({ embeddings, encoded: other, cache });
  expectClose(again.dataSync(), language.forward({ embeddings, encoded: other }).dataSync(), 1e-5);
  cache.dispose();
  dispose();
});

test("padding is as if it were not there, on the left and on the right, for positions too", () => {
  const { language, dispose } = opt();
  const ids = [5, 9, 60, 33, 12];
  const alone = language.forward({ embeddings: language.embed(tf.tensor2d(ids, [1, 5], "int32")) });
  for (const before of [3, 0]) {
    const all = [...new Array(before).fill(1), ...ids, ...new Array(3 - before).fill(1)];
    const real = all.map((_, i) => (i >= before && i < before + 5 ? 1 : 0));
    const padded = language.forward({
      embeddings: language.embed(tf.tensor2d(all, [1, 8], "int32")),
      padding: tf.tensor2d(real, [1, 8], "int32"),
    });
    expectClose(padded.slice([0, before, 0], [1, 5, -1]).dataSync(), alone.dataSync(), 1e-5, `${before} before`);
    // … and with a cache: positions go on behind the real tokens.
    const cache = language.makeCache(9);
    const mask = tf.tensor2d([...real, 1], [1, 9], "int32");
    const next = (id: number) => language.embed(tf.tensor2d([id], [1, 1], "int32"));
    language.forward({
      embeddings: language.embed(tf.tensor2d(all, [1, 8], "int32")),
      padding: mask.slice([0, 0], [1, 8]),
      cache,
    });
    const y = language.forward({ embeddings: next(44), padding: mask, cache });
    const want = language.forward({ embeddings: language.embed(tf.tensor2d([...ids, 44], [1, 6], "int32")) });
    expectClose(y.dataSync(), want.slice([0, 5, 0], [1, 1, -1]).dataSync(), 1e-5, `the next token, ${before} before`);
    cache.dispose();
  }
  dispose();
});

test("a position beyond OPT's table, a T5 without states, and keys that nothing handles are errors", async () => {
  const short = opt("float32", { max_position_embeddings: 4 });
  await messageOf(
    () => short.language.forward({ embeddings: tf.zeros([1, 5, 32]) }),
    "5 tokens, but its positions reach 4 (max_position_embeddings)",
  );
  short.dispose();
  const seq = t5();
  await messageOf(() => seq.language.forward({ embeddings: tf.zeros([1, 1, 32]) }), "give encoded: { states: encoder.encode(…) }");
  seq.dispose();
  await messageOf(() => optConfig({ layer_norm_elementwise_affine: false }), "layer_norm_elementwise_affine false is not handled here");
  await messageOf(() => optConfig({ hidden_size: 30, num_attention_heads: 4 }), "30 does not divide");
  await messageOf(() => t5Config({ feed_forward_proj: "gated-mish" }, true), '"mish" is not known; known: silu, gelu, gelu_new');
});

/** A T5 of random weights whose heads are wide enough for the kernels. */
function randomT5() {
  const c = t5Config(
    { vocab_size: 50, d_model: 32, d_kv: 16, num_heads: 2, d_ff: 48, num_layers: 2, feed_forward_proj: "gated-gelu" },
    true,
  );
  let seed = 0;
  const params = mapLeaves(t5Spec(c), ({ shape }) => tf.randomNormal(shape, 0, 0.3, "float32", ++seed)) as T5;
  return { c, params };
}

for (const which of ["the bias alone", "every weight", "an adapter too"] as const)
  test(`T5's learned bias has the gradient of finite differences where ${which} is trained`, () => {
    const { params, c } = randomT5();
    const embeddings = tf.randomNormal([2, 5, c.d_model], 0, 1, "float32", 93) as tf.Tensor3D;
    const padding = tf.tensor2d([1, 1, 1, 1, 1, 1, 1, 1, 0, 0], [2, 5], "int32");
    const weights = tf.randomNormal([2, 5, c.d_model], 0, 1, "float32", 94);
    const base = { spec: t5Spec(c), params, modelType: "t5", folder: "", with: (params: T5) => ({ ...base, params }) };
    type Model = typeof base;
    const trained = withTrainable<Model>(base, (name) => /relative_attention_bias/.test(name) || which === "every weight");
    const lora = which === "an adapter too" ? withLora<Model>(trained.model, { targetModules: ["q"], r: 2 }) : undefined;
    const model = lora?.model ?? trained.model;
    const table = model.params.encoder.bias as unknown as tf.Variable;
    const loss = (): tf.Scalar =>
      tf.tidy(() => t5Encode(model.params, c, { embeddings, padding }).mul(weights).mul(padding.expandDims(2)).sum() as tf.Scalar);
    const { grads } = tf.variableGrads(loss, [table, ...(lora?.adapter.variables ?? [])]);
    const got = grads[table.name].dataSync();
    const start = Float32Array.from(table.dataSync());
    const step = 1e-2;
    for (const place of [0, 1, 5, 17 * c.num_heads, 18 * c.num_heads + 1]) {
      const at = (delta: number) => {
        const moved = start.slice();
        moved[place] += delta;
        table.assign(tf.tensor(moved, table.shape));
        return loss().dataSync()[0];
      };
      const want = (at(step) - at(-step)) / (2 * step);
      expectClose([got[place]], [want], 2e-2 * Math.max(1, Math.abs(want)), `place ${place}`);
    }
    assert.ok(got.some((x) => Math.abs(x) > 0.1));
    lora?.adapter.dispose();
    trained.dispose();
  });
