/** Models with two towers, whatever their family, through the functions that embed, rank and train; and what the oracle does not hold, against a living PyTorch. */
import assert from "node:assert/strict";
import { cpSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { embedImages, embedTexts, pixelBatch, tokenBatch } from "vitrine/embed";
import { tf } from "vitrine/engine";
import { readPicture } from "vitrine/image/picture";
import { type DualEncoder, type Flava, load, type VisionTextDualEncoder } from "vitrine/models";
import { unit } from "vitrine/models/clip";
import { dualConfig } from "vitrine/models/dual-encoder";
import { flavaConfig } from "vitrine/models/flava";
import { withLora } from "vitrine/nn/lora";
import { pairBatches, pairLoss } from "vitrine/train/contrastive";
import { channelsLast, integers, openOracle } from "../parity/check";
import { ORACLE } from "../support/clip";
import { expectClose, expectSame, keepsTensorCount } from "../support/close";
import { noReference, reference } from "../support/reference";

const PICTURES = ["rgb_wide.png", "gray.png", "photo.jpg"].map((name) => join(ORACLE, "images", name));
const TEXTS = ["a photo of a cat", "two dogs running in the park 你好", "x"];

const QUERIES: { [family: string]: string[] } = {
  clip: ["q_proj"],
  siglip: ["q_proj"],
  vision_text_dual_encoder: ["q_proj", "query"], // of ViT and of BERT
  flava: ["query"],
};

for (const [family, targetModules] of Object.entries(QUERIES))
  test(`${family}: embedImages() and embedTexts() are its towers' vectors, and a LoRA step trains it`, async () => {
    const model = await load<DualEncoder>(join(ORACLE, family, "model"));
    const pictures = await Promise.all(PICTURES.map(async (path) => model.imageProcessor.crop(await readPicture(path))));
    await keepsTensorCount(async () => {
      const images = await embedImages(model, PICTURES);
      const texts = await embedTexts(model, TEXTS, { batchSize: 2 });
      assert.deepEqual([images.width, texts.width, images.count, texts.count], [model.width, model.width, 3, 3]);
      const pixels = pixelBatch(model, pictures);
      const { ids, mask } = tokenBatch(model, TEXTS);
      const ours = tf.tidy(() => model.logits(model.encodeImage(pixels), model.encodeText(ids, mask)));
      const same = tf.tidy(() => model.logits(tf.tensor2d(images.values, [3, model.width]), tf.tensor2d(texts.values, [3, model.width])));
      expectClose(same.dataSync(), ours.dataSync(), 2e-4);
      tf.dispose([pixels, ids, mask, ours, same]);
    });
    const { model: trained, adapter } = withLora(model, { targetModules, r: 2, loraAlpha: 4 });
    await keepsTensorCount(() =>
      tf.tidy(() => {
        const [pixels, { ids, mask }] = [pixelBatch(model, pictures), tokenBatch(model, TEXTS)];
        expectSame(trained.encodeImage(pixels).dataSync(), model.encodeImage(pixels).dataSync(), "B is 0: pictures");
        expectSame(trained.encodeText(ids, mask).dataSync(), model.encodeText(ids, mask).dataSync(), "B is 0: texts");
      }),
    );
    const pairs = PICTURES.map((path, i) => ({ image: () => readPicture(path), caption: TEXTS[i] }));
    for await (const batch of pairBatches(trained, pairs, { batchSize: 3, epochs: 1 })) {
      const { value, grads } = tf.variableGrads(() => pairLoss(trained)(batch), adapter.variables);
      assert.ok(Number.isFinite(value.dataSync()[0]));
      const reached = adapter.modules.filter(({ name }) => !name.startsWith("multimodal_model")); // FLAVA's third encoder has no part in this loss
      assert.equal(Object.values(grads).filter((g) => g.abs().max().dataSync()[0] > 0).length, reached.length); // B's; A has none while B is 0
      tf.dispose([value, ...Object.values(grads), ...Object.values(batch)]);
    }
    adapter.dispose();
    model.dispose();
  });

test("embedTexts() of SigLIP are the oracle's, padded as it was trained", async () => {
  const oracle = openOracle(ORACLE, "siglip");
  const model = await load<DualEncoder>(join(oracle.folder, "model"));
  const forward = oracle.cases.forward.find(({ name }: { name: string }) => name === "siglip");
  const { values } = await embedTexts(model, forward.captions);
  expectClose(values, oracle.array(forward.text_embeds).values, 2e-5);
  model.dispose();
});

const folder = mkdtempSync(join(tmpdir(), "dual-encoder-"));
after(() => rmSync(folder, { recursive: true, force: true }));

test("a dual encoder with CLIP's tower gives PyTorch's numbers", { skip: noReference }, async () => {
  const from = join(ORACLE, "vision_text_dual_encoder", "model");
  for (const name of ["tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json", "preprocessor_config.json"])
    cpSync(join(from, name), join(folder, name));
  const [ids, mask] = [
    [
      [2, 5, 6, 7, 3],
      [2, 9, 3, 0, 0],
    ],
    [
      [1, 1, 1, 1, 1],
      [1, 1, 1, 0, 0],
    ],
  ];
  const [want] = reference([{ kind: "dual_encoder", folder, vocab: 430, ids, mask }]);
  const model = await load<VisionTextDualEncoder>(folder);
  const pixels = tf.tensor4d(want.pixels, [2, 32, 32, 3]);
  const [images, texts] = [
    model.encodeImage(pixels),
    model.encodeText(tf.tensor2d(ids, [2, 5], "int32"), tf.tensor2d(mask, [2, 5], "int32")),
  ];
  expectClose(unit(images).dataSync(), want.images, 2e-5);
  expectClose(unit(texts).dataSync(), want.texts, 2e-5);
  expectClose(model.logits(images, texts).dataSync(), want.logits, 2e-4);
  model.dispose();
});

test("FLAVA guesses words and patches as PyTorch does, read alone and together", { skip: noReference }, async () => {
  const oracle = openOracle(ORACLE, "flava");
  const hidden = [
    [1, 0, 0, 1],
    [0, 0, 0, 0],
    [1, 1, 1, 1],
  ]; // of 2 x 2 patches
  const files = { model: join(oracle.folder, "model"), arrays: join(oracle.folder, "arrays.safetensors") };
  const [want] = reference([{ kind: "flava_heads", ...files, hidden }]);
  const model = await load<Flava>(files.model);
  const [ids, mask] = ["input_ids", "attention_mask"].map((name) => integers(oracle.array(`forward.${name}`)));
  const pixels = channelsLast(oracle.array("forward.pixel_values"));
  const pairs = model.encodePairs(pixels, ids, mask);
  expectClose(model.wordLogits(ids, mask).dataSync(), want.alone, 2e-4);
  expectClose(model.wordLogitsSeeing(pairs, ids.shape[1]).dataSync(), want.seeing, 2e-4);
  expectClose(model.patchLogits(pixels, tf.tensor2d(hidden, [3, 4], "int32")).dataSync(), want.patches, 2e-4);
  expectClose(model.patchLogitsSeeing(pairs).dataSync(), want.patches_seeing, 2e-4);
  model.dispose();
});

/** What transformers of before 2023 wrote into every part of a config, as in facebook/flava-full and openai/clip-vit-base-patch32. */
const WRITTEN_OUT = {
  ...{
    add_cross_attention: false,
    architectures: null,
    bad_words_ids: null,
    chunk_size_feed_forward: 0,
    eos_token_id: null,
    finetuning_task: null,
  },
  ...{
    id2label: { 0: "LABEL_0" },
    is_decoder: false,
    num_beams: 1,
    pruned_heads: {},
    tie_word_embeddings: true,
    top_k: 50,
    torch_dtype: null,
  },
};

test("configs with every key of every part written out are read, and their twins that are null", () => {
  const parts = Object.fromEntries(["text", "image", "multimodal", "image_codebook"].map((name) => [`${name}_config`, WRITTEN_OUT]));
  const twins = Object.fromEntries(Object.keys(parts).map((name) => [`${name}_dict`, null]));
  const absolute = { ...WRITTEN_OUT, position_embedding_type: "absolute" };
  assert.deepEqual(flavaConfig({ ...parts, ...twins, text_config: absolute, eos_token_id: null }), flavaConfig({}));
  assert.throws(
    () => flavaConfig({ text_config: { position_embedding_type: "relative_key" } }),
    /position_embedding_type "relative_key" is not known/,
  );
  for (const model_type of ["vit", "clip_vision_model"]) {
    const plain = { vision_config: { model_type }, text_config: {} };
    assert.deepEqual(dualConfig({ vision_config: { ...WRITTEN_OUT, model_type }, text_config: absolute }), dualConfig(plain));
  }
});

test("what a dual encoder's config asks for and is not handled is named", () => {
  assert.throws(
    () => dualConfig({ vision_config: { model_type: "swin" }, text_config: {} }),
    /model_type "swin" is not known; known: vit, clip_vision_model/,
  );
  assert.throws(
    () => dualConfig({ text_config: { model_type: "roberta" } }),
    /text_config: model_type "roberta" is not known; known: bert/,
  );
  assert.throws(() => dualConfig({ vision_config: { pooler_act: "relu" } }), /pooler_act "relu" is not known; known: tanh/);
  assert.throws(
    () => flavaConfig({ image_config: { hiden_size: 3 } }),
    /image_config cannot be used:\n {2}hiden_size: not handled here \(nearest known key: hidden_size\)/,
  );
});
