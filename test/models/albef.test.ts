/** ALBEF beside the oracle's numbers (test/parity/albef.ts): its two halves, its files, and what it says of wrong ones. */
import assert from "node:assert/strict";
import { cpSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { embedImages, embedTexts } from "vitrine/embed";
import { engine, tf } from "vitrine/engine";
import { type Albef, load } from "vitrine/models";
import { albefConfig } from "vitrine/models/albef";
import { leaves } from "vitrine/nn/spec";
import { withLora } from "vitrine/nn/lora";
import { record } from "vitrine/nn/tap";
import { openOracle } from "../parity/check";
import { pairsOf } from "../parity/matching";
import { ORACLE, scratch } from "../support/clip";
import { cosine, expectClose, expectSame, keepsTensorCount, messageOf } from "../support/close";

before(() => engine().then(() => {}));

const MODEL = join(ORACLE, "albef", "model");
const pairs = () => pairsOf(openOracle(ORACLE, "albef"));
const logitsOf = (model: Albef) => {
  const { pixels, words } = pairs();
  return tf.tidy(() => model.matchingLogits(model.see(pixels), words).dataSync());
};
const rowOf = (x: tf.Tensor2D, i: number, length: number) => x.slice([i, 0], [1, length]) as tf.Tensor2D;

/** A copy of the oracle's folder, changed. */
function folderWith(change: (folder: string) => void): string {
  const folder = join(scratch(), "model");
  cpSync(MODEL, folder, { recursive: true });
  change(folder);
  return folder;
}

test("layers below fusion_layer read the text alone, those from it on look at the picture", async () => {
  const model = await load<Albef>(MODEL);
  const { pixels, words } = pairs();
  const states = model.see(pixels);
  const F = model.config.text_config.fusion_layer;
  const depth = model.config.text_config.num_hidden_layers;
  assert.deepEqual(
    model.params.text.layers.map((layer) => "cross" in layer),
    Array.from({ length: depth }, (_, i) => i >= F),
  );
  const seen = [states, states.mul(0.5) as tf.Tensor3D].map((x) => {
    const { tap, seen } = record(/resid_post$/);
    model.matchingLogits(x, words, { tap });
    return seen;
  });
  const numbers = (i: number) => seen.map((one) => one.get(`${i < F ? "text" : "fused"}.blocks.${i}.resid_post`).dataSync());
  for (let i = 0; i < depth; i++) {
    const [one, other] = numbers(i);
    if (i < F) expectSame(one, other, `layer ${i}`);
    else assert.notDeepEqual(one, other, `layer ${i}`);
  }
  for (const one of seen) one.dispose();
  const { tap, seen: alone } = record();
  model.encodeWords(words, tap);
  assert.deepEqual(
    alone.names().filter((name) => /resid_post$/.test(name)),
    Array.from({ length: F }, (_, i) => `text.blocks.${i}.resid_post`),
  );
  alone.dispose();
  model.dispose();
});

test("padding is as if it were not there, one picture goes with every text, and no tensor is left behind", async () => {
  const model = await load<Albef>(MODEL);
  const { pixels, words } = pairs();
  const states = model.see(pixels);
  const logits = model.matchingLogits(states, words);
  const lengths = words.padding.sum(1).dataSync();
  const i = lengths.findIndex((length) => length < words.ids.shape[1]);
  assert.ok(i >= 0);
  const one = { ids: rowOf(words.ids, i, lengths[i]) };
  const own = states.slice([i, 0, 0], [1, -1, -1]) as tf.Tensor3D;
  expectClose(model.matchingLogits(own, one).dataSync(), logits.slice([i, 0], [1, 2]).dataSync(), 5e-6);
  expectClose(model.encodeWords(one).dataSync(), model.encodeWords(words).slice([i, 0], [1, -1]).dataSync(), 5e-6);
  expectClose(model.matchingLogits(own, words).slice([i, 0], [1, 2]).dataSync(), logits.slice([i, 0], [1, 2]).dataSync(), 5e-6);
  await messageOf(() => model.matchingLogits(states, one), "3 pictures and 1 texts");
  await keepsTensorCount(() => tf.dispose([model.matchingLogits(states, words), model.encodeImage(pixels), model.encodeWords(words)]));
  model.dispose();
});

test("an adapter whose B is zero changes no digit; bfloat16 and int8 stay near; vectors for embedImages() and embedTexts()", async () => {
  const model = await load<Albef>(MODEL);
  const want = logitsOf(model);
  const { model: adapted, adapter } = withLora(model, { targetModules: ["query", "value", "qkv"], r: 4 });
  expectSame(logitsOf(adapted), want);
  adapter.dispose();
  const images = await embedImages(model, [join(ORACLE, "images", "photo.jpg")]);
  const texts = await embedTexts(model, ["a red bus", "two dogs"]);
  assert.deepEqual([images.width, texts.width, texts.count], [model.config.embed_dim, model.width, 2]);
  expectClose([Math.hypot(...images.values), Math.hypot(...texts.values.subarray(0, texts.width))], [1, 1], 1e-6);
  model.dispose();
  for (const dtype of ["bfloat16", "int8"] as const) {
    const other = await load<Albef>(MODEL, { dtype });
    assert.ok(cosine(logitsOf(other), want) > 0.99, dtype);
    other.dispose();
  }
});

test("load() takes a folder or one of its weight files, and the settings that stand with the weights", async () => {
  const model = await load<Albef>(MODEL);
  const want = logitsOf(model);
  assert.ok(leaves(model.spec).every(({ spec }) => !/_m\.|queue/.test(spec.name)));
  model.dispose();
  const bare = folderWith((folder) => {
    for (const name of ["config.json", "checkpoint_retrieval.pth", "legacy_pickle.pth"]) rmSync(join(folder, name));
    cpSync(join(folder, "bert-base-uncased"), folder, { recursive: true });
    rmSync(join(folder, "bert-base-uncased"), { recursive: true });
  });
  const other = await load<Albef>(bare);
  expectSame(logitsOf(other), want);
  other.dispose();

  const several = folderWith((folder) => renameSync(join(folder, "checkpoint_retrieval.pth"), join(folder, "retrieval.pth")));
  await messageOf(() => load(several), "holds ALBEF.pth, legacy_pickle.pth, retrieval.pth; name one of them: load(");
  const none = folderWith((folder) => {
    for (const name of ["ALBEF.pth", "checkpoint_retrieval.pth", "legacy_pickle.pth"]) rmSync(join(folder, name));
  });
  await messageOf(() => load(none), "has no weights: expected a .pth file");
  await messageOf(() => load(join(MODEL, "other.pth")), "other.pth");
  await messageOf(() => load(join(ORACLE, "clip", "model", "weights.pth")), "weights.pth is a weight file, and its folder is not ALBEF's");
  const untold = folderWith((folder) => rmSync(join(folder, "config.json")));
  await messageOf(
    () => load(join(untold, "legacy_pickle.pth")),
    "legacy_pickle.pth holds no settings (config), and config.json is missing",
  );
  await messageOf(() => load(folderWith((folder) => rmSync(join(folder, "config_bert.json")))), "config_bert.json is missing");
  await messageOf(
    () => load(folderWith((folder) => rmSync(join(folder, "bert-base-uncased"), { recursive: true }))),
    "has no tokenizer; put that of bert-base-uncased",
  );
});

test("albefConfig() and load() say what does not fit", async () => {
  const [settings, raw] = ["config.json", "config_bert.json"].map((name) => JSON.parse(readFileSync(join(MODEL, name), "utf8")));
  await messageOf(() => albefConfig(settings, { ...raw, fusion_layer: 4 }), "fusion_layer is 4, expected less than num_hidden_layers 4");
  await messageOf(() => albefConfig(settings, { ...raw, encoder_width: 48 }), "encoder_width is 48, but the picture tower's width 32");
  await messageOf(() => albefConfig({ ...settings, mask_ratio: 0.5 }, raw), "mask_ratio: not handled here");
  await messageOf(() => albefConfig(settings, { ...raw, position_embedding_type: "relative_key" }), '"relative_key" is not known');
  const wide = folderWith((folder) => writeFileSync(join(folder, "config.json"), JSON.stringify({ ...settings, image_res: 48 })));
  await keepsTensorCount(() => messageOf(() => load(wide), "wrong shape visual_encoder.pos_embed: file [1,5,32], config [1,10,32]"));
});
