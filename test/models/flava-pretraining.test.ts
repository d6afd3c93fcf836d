/** FLAVA's pre-training beyond the oracle's numbers (test/parity/flava-pretraining.ts): identities, files without heads or codebook, what is refused. */
import assert from "node:assert/strict";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { openSafetensors, saveSafetensors } from "vitrine/files/safetensors";
import { blockMask, loadBlockMask } from "vitrine/image/block-mask";
import { random } from "vitrine/data/random";
import { type Flava, load } from "vitrine/models";
import { codebookConfig } from "vitrine/models/flava-codebook";
import { type FlavaBatch, flavaLosses } from "vitrine/models/flava-pretraining";
import { saveModel } from "vitrine/models/save";
import { IGNORED } from "vitrine/nn/cross-entropy";
import { channelsLast, integers, openOracle } from "../parity/check";
import { ORACLE } from "../support/clip";
import { expectClose, expectSame, keepsTensorCount, messageOf } from "../support/close";
import { scratch } from "../support/scratch";

before(() => engine().then(() => {}));

const oracle = openOracle(ORACLE, "flava_pretraining");
const MODEL = join(oracle.folder, "model");
const int = (name: string) => integers(oracle.array(`pretraining.${name}`));
const pixelsOf = (name: string) => channelsLast(oracle.array(name));

/** The oracle's four pairs, all of it. */
const pairs = (): FlavaBatch & { pixels: tf.Tensor4D; ids: tf.Tensor2D; hidden: tf.Tensor2D } => ({
  pixels: pixelsOf("pretraining.pixel_values"),
  ...{ hidden: int("bool_masked_pos"), words: int("mim_labels"), ids: int("input_ids"), mask: int("attention_mask") },
  ...{ masked: int("input_ids_masked"), labels: int("mlm_labels") },
});

test("nothing hidden is no mask; what stands under a hidden patch does not matter; other patches do", async () => {
  const model = await load<Flava>(MODEL);
  await keepsTensorCount(() =>
    tf.tidy(() => {
      const { pixels, ids, mask, hidden } = pairs();
      const none = tf.zerosLike(hidden);
      expectSame(model.patchLogits(pixels, none).dataSync(), model.patchLogits(pixels).dataSync());
      const seen = model.encodePairs(pixels, ids, mask).dataSync();
      expectSame(model.encodePairs(pixels, ids, mask, undefined, none).dataSync(), seen);
      const all = tf.onesLike(hidden);
      const blank = tf.zerosLike(pixels);
      expectSame(model.patchLogits(pixels, all).dataSync(), model.patchLogits(blank as tf.Tensor4D, all).dataSync());
      assert.notDeepEqual(model.patchLogits(pixels, hidden).dataSync(), model.patchLogits(blank as tf.Tensor4D, hidden).dataSync());
      assert.notDeepEqual(model.encodePairs(pixels, ids, mask, undefined, all).dataSync(), seen);
    }),
  );
  model.dispose();
});

test("flavaLosses() counts rows alone that count, leaves no tensor, and learns from masks and words of its own making", async () => {
  const model = await load<Flava>(MODEL);
  const { rows, columns } = loadBlockMask(MODEL);
  await keepsTensorCount(() =>
    tf.tidy(() => {
      const { pixels, ids, mask, masked, labels, hidden } = pairs();
      const words = model.visualWords(pixelsOf("codebook.pixel_values"));
      expectSame(words.dataSync(), int("mim_labels").dataSync());
      assert.equal(rows * columns, words.shape[1]);
      const drawn = tf.tensor2d(
        [0, 1, 2, 3].map((seed) => [...blockMask(loadBlockMask(MODEL), random(seed))]),
        [4, rows * columns],
        "int32",
      );
      const whole = { pixels, hidden: drawn, words, ids, mask, masked, labels };
      assert.deepEqual(Object.keys(flavaLosses(model, whole)), ["mmmImage", "mmmText", "contrastive", "total"]);
      // A pair that does not belong has no part in the guesses: what it hides, and whose words are asked, does not matter.
      const matches = tf.tensor1d([1, 1, 0, 1], "int32");
      const other = tf.where(tf.tensor2d([[0], [0], [1], [0]], [4, 1]).equal(1), tf.sub(1, hidden).cast("int32"), hidden) as tf.Tensor2D;
      const [one, two] = [hidden, other].map((hidden) => flavaLosses(model, { ...whole, hidden, matches }));
      expectClose(two.mmmImage!.dataSync(), one.mmmImage!.dataSync(), 1e-6);
      expectClose(two.mmmText!.dataSync(), one.mmmText!.dataSync(), 1e-6);
      assert.notEqual(two.itm!.dataSync()[0], one.itm!.dataSync()[0]);
      const none = tf.fill(labels!.shape, IGNORED, "int32") as tf.Tensor2D;
      assert.ok(Number.isNaN(flavaLosses(model, { ids, mask, labels: none }).total.dataSync()[0]), "as PyTorch's, where nothing counts");
    }),
  );
  model.dispose();
});

test("flavaLosses() and the encoders name every input that does not fit", async () => {
  const model = await load<Flava>(MODEL);
  const { pixels, hidden, words, ids, labels } = pairs();
  const short = tf.zeros([4, 9], "int32") as tf.Tensor2D;
  await messageOf(() => flavaLosses(model, { pixels }), "nothing to learn from");
  await messageOf(
    () => flavaLosses(model, { ids, hidden, words, labels: short }),
    "hidden without pixels",
    `labels is [4,9], expected [${ids.shape}] as ids`,
  );
  await messageOf(
    () => flavaLosses(model, { pixels, hidden, words: short }),
    "words is [4,9], expected [4,16] as hidden",
    "codebook_size of the processor",
  );
  await messageOf(
    () =>
      flavaLosses(model, { pixels: pixels.slice([0, 0, 0, 0], [3, -1, -1, -1]), ids, labels, matches: tf.tensor1d([1, 0, 1], "int32") }),
    "3 pictures and 4 texts, expected as many of each",
    "matches is [3], expected [4]",
  );
  await messageOf(() => model.patchLogits(pixels, short), "hidden patches are [4,9], expected [4,16]");
  await messageOf(() => model.visualWords(tf.zeros([1, 7, 9, 3])), "pixels are [1,7,9,3]", "at least 8 rows and columns");
  assert.throws(() => codebookConfig({ num_blocks: 3 }), /image_codebook_config cannot be used:\n {2}num_blocks: not handled here/);
  model.dispose();
});

/** A copy of the checkpoint with some of its tensors, under other names. */
async function copyWith(rename: (name: string) => string | undefined, edit = (config: string) => config): Promise<string> {
  const folder = scratch();
  cpSync(MODEL, folder, { recursive: true });
  writeFileSync(join(folder, "config.json"), edit(readFileSync(join(MODEL, "config.json"), "utf8")));
  const { tensors, close } = openSafetensors(join(MODEL, "model.safetensors"));
  const kept = [...tensors].flatMap(([name, { dtype, shape, read }]) => {
    const now = rename(name);
    return now === undefined ? [] : [{ name: now, dtype, shape, data: read() }];
  });
  await saveSafetensors(join(folder, "model.safetensors"), kept as never, { format: "pt" });
  close();
  return folder;
}

test("a file of FlavaModel, or one without a codebook, loads, and says what it cannot", async () => {
  const { pixels, ids, mask } = pairs();
  const whole = await load<Flava>(MODEL);
  const bare = await load<Flava>(await copyWith((name) => (name.startsWith("flava.") ? name.slice("flava.".length) : undefined)));
  expectSame(bare.encodePairs(pixels, ids, mask).dataSync(), whole.encodePairs(pixels, ids, mask).dataSync());
  await messageOf(() => bare.patchLogits(pixels), "without the heads of FlavaForPreTraining");
  await messageOf(() => bare.visualWords(pixels), "holds no codebook");
  const noBook = await load<Flava>(await copyWith((name) => (name.startsWith("image_codebook.") ? undefined : name)));
  expectSame(noBook.patchLogits(pixels).dataSync(), whole.patchLogits(pixels).dataSync());
  await messageOf(() => noBook.visualWords(pixels), "holds no codebook");
  const unmasked = await copyWith(
    (name) => (name.endsWith("mask_token") ? undefined : name),
    (config) => config.replace('"mask_token": true', '"mask_token": false'),
  );
  const blind = await load<Flava>(unmasked);
  await messageOf(() => blind.patchLogits(pixels, int("bool_masked_pos")), "mask_token is false, so no patch can be hidden");
  for (const model of [whole, bare, noBook, blind]) model.dispose();
});

test("saveModel() keeps the heads and the codebook; bfloat16 says nearly the same", async () => {
  const model = await load<Flava>(MODEL);
  const batch = pairs();
  const want = flavaLosses(model, batch).total.dataSync();
  const folder = scratch();
  await saveModel(model as never, folder);
  const again = await load<Flava>(folder);
  expectSame(flavaLosses(again, batch).total.dataSync(), want);
  const pictures = pixelsOf("codebook.pixel_values");
  expectSame(again.visualWords(pictures).dataSync(), model.visualWords(pictures).dataSync());
  if ((await engine()).bfloat16) {
    const narrow = await load<Flava>(MODEL, { dtype: "bfloat16" });
    expectClose(flavaLosses(narrow, batch).total.dataSync(), want, 0.02 * want[0]);
    narrow.dispose();
  }
  model.dispose();
  again.dispose();
});
