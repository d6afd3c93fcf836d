/** The towers of vision-language models against PyTorch's numbers, layer by layer: Q-Former, InternViT with its projector, a Qwen2 decoder with a cache. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { openCheckpoint } from "vitrine/files/checkpoint";
import { evaVit, evaVitConfig, evaVitSpec } from "vitrine/models/eva-vit";
import { embedPrompt, internVLConfig, internVLSpec, projectImages } from "vitrine/models/internvl";
import { llama, llamaConfig, llamaLogits, llamaRotary } from "vitrine/models/llama";
import { qFormerConfig, qFormerSpec, readPicture } from "vitrine/models/qformer";
import { makeCache } from "vitrine/nn/cache";
import { linearPaths } from "vitrine/nn/lora";
import { type Dtype, disposeParams, leaves, loadWeights } from "vitrine/nn/spec";
import { record } from "vitrine/nn/tap";
import { ATTENTION, channelsLast, Checks, FLOAT, openOracle } from "../parity/check";
import { cosine, expectClose, expectSame, farthest, keepsTensorCount, messageOf } from "../support/close";

before(() => engine().then(() => {}));

const ORACLE = join(__dirname, "..", "oracle");

function allHold(checks: Checks): void {
  assert.ok(checks.rows.length > 0);
  assert.deepEqual(
    checks.rows.filter((row) => !row.ok),
    [],
  );
}

const tensorOf = ({ values, shape }: { values: Float32Array; shape: number[] }) => tf.tensor(values, shape);

/** A part of a checkpoint: what its spec names. */
function loadPart<S>(folder: string, spec: S, dtype: Dtype = "float32") {
  const checkpoint = openCheckpoint(folder);
  const names = new Set(leaves(spec).map((leaf) => leaf.spec.name));
  const tensors = new Map([...checkpoint.tensors].filter(([name]) => names.has(name)));
  const params = loadWeights(spec, tensors, { dtype, where: folder });
  const dispose = () => {
    disposeParams(spec, params);
    checkpoint.close();
  };
  return { params, dispose };
}

test("readPicture() gives the Q-Former's hidden states and attentions of transformers", async () => {
  const oracle = openOracle(ORACLE, "blip2_opt");
  const folder = join(ORACLE, "blip2_opt", "model");
  const { config, tensors, close } = openCheckpoint(folder);
  const c = qFormerConfig(config.qformer_config);
  const { params: p, dispose } = loadPart(folder, qFormerSpec(c, "qformer."));
  const token = tensors.get("query_tokens")!;
  const states = tensorOf(oracle.array("vision.last_hidden_state")) as tf.Tensor3D;
  const queries = tf.tensor(new Float32Array(token.read().buffer), token.shape).tile([states.shape[0], 1, 1]) as tf.Tensor3D;
  const { tap, seen } = record();
  const last = readPicture(p, c, { queries, states }, tap);
  const [checks, forward] = [new Checks("blip2_opt"), oracle.cases.forward[0].qformer];
  const see = async (name: string, what: string, tolerance = FLOAT) => checks.tensor(name, seen.get(name), oracle.array(what), tolerance);
  await see("qformer.embed", forward.hidden[0]);
  for (let i = 0; i < c.num_hidden_layers; i++) await see(`qformer.layers.${i}.out`, forward.hidden[i + 1]);
  for (const [layer, name] of Object.entries(forward.cross_attention as { [layer: string]: string }))
    await see(`qformer.layers.${layer}.cross.pattern`, name, ATTENTION);
  await see("qformer.layers.0.self.pattern", "qformer.self_attention.0", ATTENTION);
  allHold(checks);
  expectSame(readPicture(p, c, { queries, states }).dataSync(), last.dataSync(), "looking changes no digit");
  const all = tf.ones([states.shape[0], states.shape[1]], "int32") as tf.Tensor2D;
  expectClose(readPicture(p, c, { queries, states, statesMask: all }).dataSync(), last.dataSync(), 1e-6, "a mask that hides nothing");
  const half = all.mul(tf.range(0, states.shape[1], 1, "int32").less(5).cast("int32")) as tf.Tensor2D;
  const short = states.slice([0, 0, 0], [-1, 5, -1]);
  expectClose(
    readPicture(p, c, { queries, states, statesMask: half }).dataSync(),
    readPicture(p, c, { queries, states: short }).dataSync(),
    1e-6,
    "masked states are as if they were not there",
  );
  dispose();
  close();
});

test("evaVit() gives BLIP-2's picture states of transformers; LoRA's layers are its fused ones", async () => {
  const oracle = openOracle(ORACLE, "blip2_itm");
  const folder = join(oracle.folder, "model");
  const { config, close } = openCheckpoint(folder);
  const c = evaVitConfig(config.vision_config);
  const checks = new Checks("blip2_itm");
  const pixels = channelsLast(oracle.array("forward.pixel_values"));
  const { params, dispose } = loadPart(folder, evaVitSpec(c));
  const { tap, seen } = record();
  const states = evaVit(params, c, pixels, tap);
  await checks.tensor("vision.final", states, oracle.array("vision.last_hidden_state"), FLOAT);
  allHold(checks);
  expectSame(evaVit(params, c, pixels).dataSync(), states.dataSync(), "looking changes no digit");
  const pattern = seen.get("vision.blocks.0.attn.pattern");
  assert.deepEqual(pattern.shape, [3, c.num_attention_heads, 10, 10]);
  const names = linearPaths({ spec: evaVitSpec(c) }).map((m) => m.name);
  assert.ok(names.includes("vision_model.encoder.layers.1.self_attn.qkv"));
  for (const dtype of ["bfloat16", "int8"] as const) {
    const half = loadPart(folder, evaVitSpec(c), dtype);
    assert.ok(cosine(evaVit(half.params, c, pixels).dataSync(), states.dataSync()) > 0.999, dtype);
    half.dispose();
  }
  await messageOf(
    () => evaVitConfig({ hidden_size: 30, num_attention_heads: 4 }),
    "hidden_size 30 does not divide into num_attention_heads 4",
  );
  dispose();
  close();
});

/** InternVL's weights, its inputs of the oracle, and what takes part in a forward pass. */
function internVL(dtype: Dtype) {
  const oracle = openOracle(ORACLE, "internvl_hf");
  const folder = join(oracle.folder, "model");
  const checkpoint = openCheckpoint(folder);
  const config = internVLConfig(checkpoint.config);
  const params = loadWeights(internVLSpec(config), checkpoint.tensors, { dtype, where: folder });
  const { values, shape } = oracle.array("forward.input_ids");
  const ids = tf.tensor2d(Int32Array.from(values), shape as [number, number], "int32");
  const pixels = channelsLast(oracle.array("forward.pixel_values"));
  const rotary = llamaRotary(config.text_config);
  return { oracle, config, params, ids, pixels, rotary };
}

test("InternVL's picture tower, projector and decoder give the hidden states, attentions and logits of transformers", async () => {
  const { oracle, config, params, ids, pixels, rotary } = internVL("float32");
  const { tap, seen } = record();
  const images = projectImages(params, config, pixels, tap);
  const x = llama(params.language, config.text_config, { embeddings: embedPrompt(params, config, ids, images), rotary, tap });
  const [checks, forward] = [new Checks("internvl_hf"), oracle.cases.forward[0]];
  const hidden = async (prefix: string, names: string[]) => {
    for (const [i, name] of names.entries()) {
      const at = i === 0 ? `${prefix}blocks.0.resid_pre` : `${prefix}blocks.${i - 1}.resid_post`;
      await checks.tensor(at, seen.get(at), oracle.array(name), FLOAT);
    }
  };
  await hidden("vision.", forward.vision_hidden);
  await checks.tensor("projector", images, oracle.array(forward.projector), FLOAT);
  await hidden("", forward.lm_hidden);
  await checks.tensor("attention", seen.get("blocks.0.attn.pattern"), oracle.array(forward.lm_attention_layer0), ATTENTION);
  await checks.tensor("final", x, oracle.array(forward.lm_last_hidden_state), FLOAT);
  await checks.tensor("logits", llamaLogits(params.language, x), oracle.array(forward.logits), FLOAT);
  allHold(checks);
});

for (const dtype of ["float32", "bfloat16", "int8", "nf4"] as const)
  test(`a decoder in ${dtype} says the same with a cache, however the prompt is cut`, async () => {
    const { config, params, ids, pixels, rotary } = internVL(dtype);
    const embeddings = embedPrompt(params, config, ids, projectImages(params, config, pixels));
    const N = embeddings.shape[1];
    const whole = llama(params.language, config.text_config, { embeddings, rotary });
    await keepsTensorCount(() => {
      for (const cuts of [[N], [N - 3, 1, 1, 1], [5, 20, N - 25]]) {
        const cache = makeCache(config.text_config.num_hidden_layers, N + 2);
        let at = 0;
        for (const count of cuts) {
          const part = embeddings.slice([0, at, 0], [1, count, -1]);
          const y = llama(params.language, config.text_config, { embeddings: part, rotary, cache });
          const want = whole.slice([0, at, 0], [1, count, -1]);
          // In 8 or 4 bits up to 8 rows are multiplied in float32, more in bfloat16.
          const close = dtype === "float32" ? 1e-5 : dtype === "bfloat16" ? 4e-2 : 8e-2;
          expectClose(y.dataSync(), want.dataSync(), close, `${cuts}, from ${at} on`);
          tf.dispose([part, y, want]);
          at += count;
        }
        assert.equal(cache.length, N);
        cache.dispose();
      }
    });
  });

test("bfloat16 weights leave a decoder's logits near those of float32", () => {
  const logits = (dtype: Dtype) => {
    const { config, params, ids, pixels, rotary } = internVL(dtype);
    const embeddings = embedPrompt(params, config, ids, projectImages(params, config, pixels));
    return llamaLogits(params.language, llama(params.language, config.text_config, { embeddings, rotary })).dataSync();
  };
  const [want, got] = [logits("float32"), logits("bfloat16")];
  assert.ok(cosine(got, want) > 0.9995, `cosine ${cosine(got, want)}`);
  assert.ok(farthest(got, want) < 0.1 * Math.max(...Array.from(want, Math.abs)));
});

test("embedPrompt() and the cache say what does not fit", async () => {
  const { config, params, ids, pixels, rotary } = internVL("float32");
  const images = projectImages(params, config, pixels);
  await messageOf(() => embedPrompt(params, config, ids), "image tokens (id 481), the pictures give 0; each tile needs 4");
  await messageOf(() => embedPrompt(params, config, ids, images.slice([0, 0, 0], [1, -1, -1])), "the pictures give 4 (1 tiles of 4)");
  const cache = makeCache(config.text_config.num_hidden_layers, 8);
  const embeddings = embedPrompt(params, config, ids, images);
  await messageOf(
    () => llama(params.language, config.text_config, { embeddings, rotary, cache }),
    `${ids.size} tokens do not fit the room for 8`,
  );
  cache.dispose();
});

test("internVLConfig() and llamaConfig() refuse what they do not compute", async () => {
  const how = { qkv_bias: true, tied: false };
  await messageOf(() => llamaConfig({ hidden_act: "relu" }, "text_config", how), 'hidden_act "relu" is not known; known: silu');
  await messageOf(
    () => llamaConfig({ use_sliding_window: true }, "text_config", how),
    "sliding_window is undefined, expected a whole number",
  );
  await messageOf(
    () => llamaConfig({ num_attention_heads: 6, num_key_value_heads: 4, hidden_size: 48 }, "t", how),
    "6 do not divide among num_key_value_heads 4",
  );
  await messageOf(() => llamaConfig({ logit_softcapping: 30 }, "text_config", how), "logit_softcapping: not handled here");
  await messageOf(() => internVLConfig({ vision_config: { use_mask_token: true } }), "use_mask_token true are not handled here");
  await messageOf(() => internVLConfig({ vision_config: { norm_type: "group_norm" } }), 'norm_type "group_norm" is not known');
  await messageOf(() => internVLConfig({ vision_feature_select_strategy: "full" }), '"full" is not known; known: default');
});
