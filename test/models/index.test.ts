import assert from "node:assert/strict";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { tf } from "vitrine/engine";
import { load } from "vitrine/models";
import { loadClipWeights } from "vitrine/models/clip-load";
import { inputs, loadClip, logits, MODEL, modelWith } from "../support/clip";
import { expectSame, keepsTensorCount, messageOf } from "../support/close";

test("load() refuses a model_type that it does not know and lists those it does", async () => {
  await messageOf(
    () =>
      load(
        modelWith((c) => {
          c.model_type = "clipp";
        }),
      ),
    /config\.json: model_type "clipp" is not known \(nearest: clip\); known: clip/,
  );
  await messageOf(
    () =>
      load(
        modelWith((c) => {
          c.model_type = "constructor";
        }),
      ),
    'model_type "constructor" is not known',
    "known: clip",
  );
  await messageOf(
    () =>
      load(
        modelWith((c) => {
          delete c.model_type;
        }),
      ),
    "model_type",
    "known: clip",
  );
});

test("load() refuses a dtype that it does not know", async () => {
  await messageOf(() => load(MODEL, { dtype: "float16" as never }), 'load: dtype "float16" is not known; expected "float32" or "bfloat16"');
});

test("load() of weights that are not the config's lists every misfit, how much each asks for, and makes no tensor", async () => {
  const folder = modelWith((c) => {
    c.vision_config.num_hidden_layers = 4;
    c.projection_dim = 1000;
  });
  await keepsTensorCount(() =>
    messageOf(
      () => load(folder),
      "does not fit this model (18 misfits, 110 tensors expected):",
      /missing +vision_model\.encoder\.layers\.3\.mlp\.fc2\.bias \[48\]/,
      /wrong shape visual_projection\.weight: file \[24,48\], config \[1000,48\]/,
      /the config asks for \d+\.\d MB of float32, the files hold 0\.5 MB/,
    ),
  );
});

test("load() refuses enormous sizes before anything is allocated, and says how much they ask for", async () => {
  const before = tf.memory().numBytes;
  await messageOf(
    () =>
      load(
        modelWith((c) => {
          c.text_config.vocab_size = 9_999_999;
          c.text_config.hidden_size = 100_000;
        }),
      ),
    /the config asks for \d{4}\.\d GB of float32/,
  );
  await messageOf(
    () =>
      load(
        modelWith((c) => {
          c.text_config.vocab_size = 1e9;
        }),
      ),
    "vocab_size: is 1000000000, expected a whole number from 1 to 10,000,000",
  );
  assert.equal(tf.memory().numBytes, before);
});

test("with() is the same model around other parameters", async () => {
  const clip = await loadClip();
  const x = inputs();
  const louder = clip.with({ ...clip.params, logitScale: tf.scalar(0) });
  const [a, b] = [logits(clip, x), logits(louder, x)];
  const factor = Math.exp(clip.params.logitScale.dataSync()[0]);
  a.forEach((value, i) => assert.ok(Math.abs(value - factor * b[i]) < 1e-3));
  assert.equal(louder.tokenizer, clip.tokenizer);
  assert.equal(louder.folder, clip.folder);
  clip.dispose();
});

test("loadClipWeights() needs no tokenizer or preprocessor, computes the same, and refuses another family", async () => {
  const folder = modelWith(() => {});
  for (const name of [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
  ])
    rmSync(join(folder, name));
  const [bare, clip, x] = [await loadClipWeights(folder), await loadClip(), inputs()];
  assert.deepEqual(bare.grid, [4, 4]);
  const image = (model: typeof bare) => tf.tidy(() => Float32Array.from(model.encodeImage(x.pixels).dataSync()));
  expectSame(image(bare), image(clip as never));
  bare.dispose();
  clip.dispose();
  await messageOf(
    () =>
      loadClipWeights(
        modelWith((c) => {
          c.model_type = "siglip";
        }),
      ),
    'model_type is "siglip"; loadClipWeights reads "clip"',
  );
});
