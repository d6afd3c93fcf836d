/** InternVL in both layouts: tokens and their places, tile counts, sliding windows, rotary scaling by length, what is refused. Numbers: test/parity/internvl.ts. */
import assert from "node:assert/strict";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import type { Picture } from "vitrine/image/picture";
import { load, type VisionLanguageModel } from "vitrine/models";
import { internLM2Config } from "vitrine/models/internlm2";
import { internVLChatConfig } from "vitrine/models/internvl-chat";
import { type LlamaConfig, llama, llamaConfig, llamaRotary, llamaSpec } from "vitrine/models/llama";
import { phi3Config } from "vitrine/models/phi3";
import { random } from "vitrine/data/random";
import { makeCache } from "vitrine/nn/cache";
import { mapLeaves } from "vitrine/nn/spec";
import { record } from "vitrine/nn/tap";
import { expectClose, keepsTensorCount, messageOf } from "../support/close";

before(() => engine().then(() => {}));

const ORACLE = join(__dirname, "..", "oracle");
const open = (family: string) => load<VisionLanguageModel & { template?: string }>(join(ORACLE, family, "model"));
const picture = (width: number, height: number): Picture => {
  const next = random(3);
  return { width, height, data: Uint8Array.from({ length: width * height * 3 }, () => 256 * next()) };
};

test("prompt() gives every tile its tokens, the thumbnail last, and every token its place in the original picture", async () => {
  const model = await open("internvl_hf"); // tiles of 28 pixels, 4 patches a side, 2 x 2 tokens
  const { ids, images } = model.prompt("<IMG_CONTEXT>\nWhat?", [picture(84, 56)]);
  const [{ start, end, places, tiled }] = images;
  assert.deepEqual([tiled.grid, tiled.count], [{ rows: 2, columns: 3 }, 7]);
  assert.equal(end - start, 2 + 7 * 4);
  assert.deepEqual([places[0], places.at(-1)], [undefined, undefined], "<img> and </img> show nothing");
  const shown = places.slice(1, -1);
  assert.deepEqual(
    shown.slice(4, 8).map((p) => [p!.tile, p!.left, p!.top, p!.width, p!.height]),
    [
      [1, 28, 0, 14, 14],
      [1, 42, 0, 14, 14],
      [1, 28, 14, 14, 14],
      [1, 42, 14, 14, 14],
    ],
  );
  assert.deepEqual(shown.at(-1), { tile: 6, left: 42, top: 28, width: 42, height: 28 }, "the thumbnail shows all of the picture");
  const area = shown.slice(0, -4).reduce((sum, p) => sum + p!.width * p!.height, 0);
  assert.equal(area, 84 * 56, "the tiles' tokens cover the picture once");
  assert.equal(ids.filter((id) => id === model.tokenizer.idOf("<IMG_CONTEXT>")).length, 28);
  assert.equal(model.prompt("<IMG_CONTEXT>", [picture(84, 56)], { max_patches: 1 }).images[0].tiled.count, 1, "without tiles");
  await messageOf(() => model.prompt("<IMG_CONTEXT>", [picture(84, 56)], { max_pixels: 9 }), "max_pixels: not an argument");
  await messageOf(() => model.prompt("no picture", [picture(9, 9)]), "the text has 0 <IMG_CONTEXT>, 1 pictures came");
  await messageOf(() => model.prompt("<IMG_CONTEXT></img>", [picture(9, 9)]), 'the text holds "</img>"');
  model.dispose();
});

test("pixel shuffle v1 puts a picture's tokens in the order of columns, and their places say so", async () => {
  const folder = mkdtempSync(join(tmpdir(), "internvl-"));
  cpSync(join(ORACLE, "internvl_chat_qwen2", "model"), folder, { recursive: true });
  const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8"));
  writeFileSync(join(folder, "config.json"), JSON.stringify({ ...config, ps_version: "v1" }));
  const [v2, v1] = [await open("internvl_chat_qwen2"), await load<VisionLanguageModel>(folder)];
  assert.equal(v2.template, "Hermes-2");
  const [a, b] = [v2, v1].map((model) => {
    const prompt = model.prompt("<image>", [picture(28, 28)]);
    const rows = tf.tidy(() => model.embedPrompt(prompt).squeeze([0]).arraySync() as number[][]);
    return { rows, ...prompt.images[0] };
  });
  const key = (p: (typeof a.places)[number]) => `${p!.left} ${p!.top}`;
  const [first, second] = [a, b].map(
    ({ rows, places, start }) => new Map(places.slice(1, -1).map((place, i) => [key(place), rows[start + 1 + i]] as const)),
  );
  assert.notDeepEqual(a.places, b.places);
  for (const [place, row] of first) expectClose(second.get(place)!, row, 1e-6, `what shows ${place}`);
  v1.dispose();
  v2.dispose();
  rmSync(folder, { recursive: true });
});

test("several pictures stand in their order, each with its own tiles, and none is computed again for a follow-up", async () => {
  const model = await open("internvl_chat_internlm2");
  const [wide, small] = [picture(84, 28), picture(20, 20)];
  const prompt = model.prompt("Image-1: <image>\nImage-2: <image>\nCompare", [wide, small]);
  assert.deepEqual(
    prompt.images.map((image) => image.tiled.count),
    [4, 1],
  );
  const { tap, seen } = record("projector");
  await keepsTensorCount(() => {
    const rest = model.embedPrompt(prompt, { from: prompt.images[0].end, tap });
    assert.equal(rest.shape[1], prompt.ids.length - prompt.images[0].end);
    assert.deepEqual(seen.names(), ["images.1.projector"]);
    rest.dispose();
    seen.dispose();
  });
  model.dispose();
});

for (const family of ["internvl_chat_internlm2", "internvl_chat_phi3"])
  for (const dtype of ["float32", "bfloat16", "int8"] as const)
    test(`${family} in ${dtype} says the same with a cache`, async () => {
      const model = await load<VisionLanguageModel>(join(ORACLE, family, "model"), { dtype });
      const prompt = model.prompt("<image>\nWhat is there to see in this picture, and what is there not?", [picture(56, 28)]);
      const N = prompt.ids.length;
      await keepsTensorCount(() =>
        tf.tidy(() => {
          const embeddings = model.embedPrompt(prompt);
          const whole = model.language.forward({ embeddings });
          const cache = model.language.makeCache(N);
          let at = 0;
          for (const count of [N - 4, 1, 1, 2]) {
            const y = model.language.forward({ embeddings: embeddings.slice([0, at, 0], [1, count, -1]), cache });
            const close = { float32: 2e-5, bfloat16: 4e-2, int8: 8e-2 }[dtype]; // in 8 bits few rows are multiplied in float32, many in bfloat16
            expectClose(y.dataSync(), whole.slice([0, at, 0], [1, count, -1]).dataSync(), close, `from ${at} on`);
            at += count;
          }
          cache.dispose();
        }),
      );
      model.dispose();
    });

/** A small decoder with random weights. */
function decoder(keys: object, window?: "asked" | "always") {
  const raw = {
    ...{ vocab_size: 20, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 3, num_attention_heads: 4, num_key_value_heads: 2 },
    ...{ max_position_embeddings: 64 },
    ...keys,
  };
  const c = llamaConfig(raw, "text_config", { qkv_bias: true, tied: true, window });
  const p = mapLeaves(llamaSpec(c), ({ shape }) => tf.randomNormal(shape, 0, 0.3, "float32", 1)) as Parameters<typeof llama>[0];
  return { c, p, rotary: llamaRotary(c) };
}
const embeddings = (N: number) => tf.randomNormal([1, N, 32], 0, 1, "float32", 7) as tf.Tensor3D;
const last = (x: tf.Tensor3D) => x.slice([0, x.shape[1] - 1, 0], [1, 1, -1]).dataSync();

test("a sliding window hides what is before it, layer by layer as the config says, with and without a cache", () => {
  const wide = decoder({ use_sliding_window: false, sliding_window: 2 });
  assert.deepEqual(wide.c.windows, [undefined, undefined, undefined]);
  assert.deepEqual(decoder({ use_sliding_window: true, sliding_window: 2, max_window_layers: 2 }).c.windows, [undefined, undefined, 2]);
  assert.deepEqual(decoder({ sliding_window: 5 }, "always").c.windows, [5, 5, 5]);
  const kinds = ["sliding_attention", "full_attention", "sliding_attention"];
  assert.deepEqual(decoder({ use_sliding_window: true, sliding_window: 4, layer_types: kinds }).c.windows, [4, undefined, 4]);

  const { c, p, rotary } = decoder({ use_sliding_window: true, sliding_window: 3, max_window_layers: 0 });
  const x = embeddings(12);
  // Three layers of windows of 3 reach 2 · 3 tokens back: what is before them might be anything.
  const changed = tf.concat([x.slice([0, 0, 0], [1, 5, -1]).mul(-3), x.slice([0, 5, 0], [1, 7, -1])], 1) as tf.Tensor3D;
  const whole = llama(p, c, { embeddings: x, rotary });
  expectClose(last(llama(p, c, { embeddings: changed, rotary })), last(whole), 1e-6, "out of reach");
  const near = tf.concat([x.slice([0, 0, 0], [1, 6, -1]).mul(-3), x.slice([0, 6, 0], [1, 6, -1])], 1) as tf.Tensor3D;
  assert.throws(() => expectClose(last(llama(p, c, { embeddings: near, rotary })), last(whole), 1e-4), "in reach");
  const cache = makeCache(3, 12);
  for (let i = 0; i < 12; i++) {
    const y = llama(p, c, { embeddings: x.slice([0, i, 0], [1, 1, -1]), rotary, cache });
    expectClose(y.dataSync(), whole.slice([0, i, 0], [1, 1, -1]).dataSync(), 2e-5, `token ${i} with a cache`);
  }
  cache.dispose();
});

test("rotary positions that are scaled by length: as they are within it, and by the whole length beyond", async () => {
  const scaling = { rope_theta: 1000, max_position_embeddings: 8, rope_scaling: { type: "dynamic", factor: 2 } };
  const [plain, scaled] = [decoder({ rope_theta: 1000, max_position_embeddings: 8 }), decoder(scaling)];
  const run = ({ c, p }: typeof plain, N: number, rotary = scaled.rotary) => llama(p, c, { embeddings: embeddings(N), rotary });
  expectClose(run(scaled, 8).dataSync(), run(plain, 8, plain.rotary).dataSync(), 0);
  assert.throws(() => expectClose(run(scaled, 12).dataSync(), run(plain, 12, plain.rotary).dataSync(), 1e-4));
  const fixed = scaled.rotary.at!(12)!;
  expectClose(run(scaled, 12).dataSync(), run(scaled, 12, fixed).dataSync(), 0);
  await keepsTensorCount(() => tf.tidy(() => void run(scaled, 12)));
  const positions = tf.tensor2d([[0, 1, 2, 30]], [1, 4], "int32");
  const far = llama(scaled.p, scaled.c, { embeddings: embeddings(4), rotary: scaled.rotary, positions });
  const by31 = llama(scaled.p, scaled.c, { embeddings: embeddings(4), rotary: scaled.rotary.at!(31)!, positions });
  expectClose(far.dataSync(), by31.dataSync(), 0, "positions decide, not the count of tokens");
});

test("the original layout's configs: what is filled in, what is refused", async () => {
  const raw = JSON.parse(readFileSync(join(ORACLE, "internvl_chat_phi3", "model", "config.json"), "utf8"));
  const config = internVLChatConfig(raw, 7);
  assert.equal(config.image_token_id, 7);
  assert.equal(config.image_seq_length, (config.tile_size / config.vision_config.patch_size / 2) ** 2);
  assert.notEqual(config.tile_size, config.vision_config.image_size, "force_image_size is the tiles'");
  await messageOf(() => internVLChatConfig({ ...raw, ps_version: "v3" }, 7), 'ps_version "v3" is not known; known: v1, v2');
  await messageOf(() => internVLChatConfig({ ...raw, use_llm_lora: 16 }, 7), "merge the adapters into the weights first");
  await messageOf(
    () => internVLChatConfig({ ...raw, llm_config: { architectures: ["Mamba"] } }, 7),
    '"Mamba" is not known',
    "InternLM2ForCausalLM",
  );
  await messageOf(
    () => internVLChatConfig({ ...raw, vision_config: { ...raw.vision_config, norm_type: "batch" } }, 7),
    'norm_type "batch" is not known',
  );
  await messageOf(() => phi3Config({ attention_bias: true }, "llm"), "attention_bias true is not handled here");
  const window = (c: LlamaConfig) => c.windows[0];
  assert.deepEqual([window(phi3Config({ sliding_window: 9 }, "llm")), window(phi3Config({}, "llm"))], [9, undefined]);
  assert.equal(internLM2Config({ num_key_value_heads: 8 }, "llm").parts, 8);
});
