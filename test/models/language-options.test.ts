/** OPT, T5 and BERT with the options that the oracle's families do not have, against transformers: test/oracle/language. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { readJson } from "vitrine/files/json";
import { openSafetensors, type TensorSource, toFloat32 } from "vitrine/files/safetensors";
import { bert, bertConfig, bertEmbed, bertPool, bertSpec } from "vitrine/models/bert";
import { optConfig, optLanguage, optSpec } from "vitrine/models/opt";
import { t5Language, t5Spec } from "vitrine/models/t5";
import { t5Config } from "vitrine/models/t5-config";
import { makeCache } from "vitrine/nn/cache";
import { disposeParams, loadWeights } from "vitrine/nn/spec";
import { record, type Recording } from "vitrine/nn/tap";
import { expectClose, keepsTensorCount } from "../support/close";

const FOLDER = join(__dirname, "..", "oracle", "language");
const file = openSafetensors(join(FOLDER, "arrays.safetensors"));
type Case = { config: { [key: string]: unknown }; hidden: { [stack: string]: number }; outputs: string[] };
const cases = readJson(join(FOLDER, "cases.json")).cases as { [name: string]: Case };

before(() => engine().then(() => {}));
after(() => file.close());

/** One case: its weights for a spec, its inputs, and comparisons of places that are no padding. */
function open(name: string) {
  const source = (key: string): TensorSource => {
    const found = file.tensors.get(`${name}/${key}`);
    assert.ok(found, `${name}/${key} is in arrays.safetensors`);
    return found;
  };
  const ints = (key: string) =>
    tf.tensor2d(Int32Array.from(toFloat32(source(`inputs/${key}`))), source(`inputs/${key}`).shape as [number, number], "int32");
  const floats = (key: string) => tf.tensor(toFloat32(source(key)), source(key).shape);
  const prefix = `${name}/weights/`;
  const weights = new Map(
    [...file.tensors].filter(([key]) => key.startsWith(prefix)).map(([key, tensor]) => [key.slice(prefix.length), tensor]),
  );
  const load = <S>(spec: S, ignore?: RegExp) => loadWeights(spec, weights, { where: FOLDER, ignore });
  const close = (got: tf.Tensor, key: string, mask?: tf.Tensor2D) => {
    const want = floats(key);
    assert.deepEqual(got.shape, want.shape, key);
    const real = (x: tf.Tensor) => (mask ? x.mul(mask.expandDims(2)) : x).dataSync();
    const scale = Math.max(...real(want).map(Math.abs));
    expectClose(real(got), real(want), 1e-5 + 1e-4 * scale, `${name}: ${key}`);
  };
  const layers = (seen: Recording["seen"], prefix: string, stack: string, mask?: tf.Tensor2D) => {
    for (let i = 0; i < cases[name].hidden[stack]; i++)
      close(seen.get(i ? `${prefix}blocks.${i - 1}.resid_post` : `${prefix}blocks.0.resid_pre`), `${stack}.${i}`, mask);
  };
  return { config: cases[name].config, ints, floats, load, close, layers };
}

for (const name of ["opt_norm_behind", "opt_untied"])
  test(`OPT of the case ${name} is that of transformers`, () => {
    const { config, ints, load, close, layers } = open(name);
    const c = optConfig(config);
    const spec = optSpec(c);
    const params = load(spec, c.tie_word_embeddings ? /lm_head/ : undefined);
    const [ids, mask, language, { tap, seen }] = [ints("ids"), ints("mask"), optLanguage(params, c, []), record()];
    const embeddings = language.embed(ids);
    assert.equal(embeddings.shape[2], language.hiddenSize);
    const hidden = language.forward({ embeddings, padding: mask, tap });
    layers(seen, "", "hidden", mask);
    close(language.logits(hidden), "logits", mask);
    const cache = language.makeCache(9);
    for (const [from, to] of [
      [0, 6],
      [6, 7],
      [7, 9],
    ]) {
      const y = language.forward({
        embeddings: embeddings.slice([0, from, 0], [2, to - from, -1]),
        padding: mask.slice([0, 0], [2, to]),
        cache,
      });
      expectClose(y.slice([0, 0, 0], [1, -1, -1]).dataSync(), hidden.slice([0, from, 0], [1, to - from, -1]).dataSync(), 1e-5, "cached");
    }
    cache.dispose();
    seen.dispose();
    disposeParams(spec, params);
  });

for (const [name, ownHead] of [
  ["t5_first", false],
  ["t5_silu", false],
] as const)
  test(`T5 of the case ${name} is that of transformers`, () => {
    const { config, ints, load, close, layers } = open(name);
    const c = t5Config(config, ownHead);
    const spec = t5Spec(c);
    const params = load(spec, /lm_head|embed_tokens/);
    const [mask, language, { tap, seen }] = [ints("mask"), t5Language(params, c, []), record()];
    const states = language.encoder!.encode({ embeddings: language.embed(ints("ids")), padding: mask, tap });
    const hidden = language.forward({ embeddings: language.embed(ints("written")), encoded: { states, padding: mask }, tap });
    layers(seen, "encoder.", "encoder", mask);
    close(states, "states", mask);
    layers(seen, "", "decoder");
    close(language.logits(hidden), "logits");
    seen.dispose();
    disposeParams(spec, params);
  });

test("BERT is that of transformers: places, kinds, padding, pooler", async () => {
  const { config, ints, load, close, layers } = open("bert");
  const c = bertConfig(config);
  const spec = bertSpec(c, "");
  const params = load(spec);
  const [ids, types, padding, { tap, seen }] = [ints("ids"), ints("types"), ints("mask"), record()];
  const last = bert(params, c, { x: bertEmbed(params, c, { ids, types }, tap), mask: { padding } }, tap);
  layers(seen, "", "hidden", padding);
  close(bertPool(params, last, tap), "pooled");
  const half = bert(params, c, { x: bertEmbed(params, c, { ids, types }), mask: { padding }, end: 1 });
  const rest = bert(params, c, { x: half, mask: { padding }, first: 1 });
  expectClose(rest.dataSync(), last.dataSync(), 1e-6, "in two parts");
  await keepsTensorCount(() => bert(params, c, { x: half, mask: { padding } }).dispose());
  seen.dispose();
  disposeParams(spec, params);
});

test("a BERT that writes while it reads states is that of transformers, and the same with a cache", () => {
  const { config, ints, floats, load, close, layers } = open("bert_reads");
  const c = bertConfig(config);
  const spec = bertSpec(c, "", { cross: { width: c.hidden_size } });
  const params = load(spec);
  const [ids, types, padding, { tap, seen }] = [ints("ids"), ints("types"), ints("mask"), record()];
  const reading = { states: floats("inputs/states") as tf.Tensor3D, statesPadding: ints("statesMask") };
  const x = bertEmbed(params, c, { ids, types }, tap);
  const last = bert(params, c, { x, mask: { causal: true, padding }, ...reading }, tap);
  layers(seen, "", "hidden", padding);
  close(bertPool(params, last), "pooled");
  const cache = makeCache(c.num_hidden_layers, 9);
  for (const [from, to] of [
    [0, 5],
    [5, 6],
  ]) {
    const part = bertEmbed(params, c, {
      ids: ids.slice([0, from], [2, to - from]),
      types: types.slice([0, from], [2, to - from]),
      first: from,
    });
    const y = bert(params, c, { x: part, mask: { causal: true, padding: padding.slice([0, 0], [2, to]) }, ...reading, cache });
    expectClose(y.dataSync(), last.slice([0, from, 0], [2, to - from, -1]).dataSync(), 1e-5, `cached, from ${from} on`);
  }
  cache.dispose();
  seen.dispose();
  disposeParams(spec, params);
});
