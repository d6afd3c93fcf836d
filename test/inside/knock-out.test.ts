import assert from "node:assert/strict";
import { before, test } from "node:test";
import { tf } from "vitrine/engine";
import { ablate, heaviest } from "vitrine/inside/ablation";
import { answerLogits, answerLogProb, type Asked } from "vitrine/inside/answer";
import { activationWithout, answerWithout, blockKeys, type HeldScore, type KnockOut, replaceRows } from "vitrine/inside/knock-out";
import type { VisionLanguageModel } from "vitrine/models";
import { record, type Tap } from "vitrine/nn/tap";
import { inputs, loadClip } from "../support/clip";
import { expectClose, expectSame, keepsTensorCount, messageOf, take } from "../support/close";
import { talker } from "./support";

let model: VisionLanguageModel;
let asked: Asked;
let pictures: number[];
before(async () => {
  ({ model, asked } = await talker());
  const { start, end } = asked.prompt.images[0];
  pictures = Array.from({ length: end - start }, (_, i) => start + i);
});

async function using<T>(score: HeldScore, work: (score: HeldScore) => Promise<T>): Promise<T> {
  try {
    return await work(score);
  } finally {
    score.dispose();
  }
}

test("replaceRows() by zeros and by the mean of some", async () => {
  const x = tf.tensor3d([1, 2, 3, 4, 5, 6], [1, 3, 2]);
  expectSame(take(replaceRows(x, [1], "zero")), [1, 2, 0, 0, 5, 6]);
  expectClose(take(replaceRows(x, [1], "mean")), [1, 2, 3, 4, 5, 6], 1e-6); // the mean of all is the middle
  expectClose(take(replaceRows(x, [0], "mean", [1, 2])), [4, 5, 3, 4, 5, 6], 1e-6);
  assert.equal(replaceRows(x, [], "zero"), x);
  await messageOf(() => replaceRows(x, [3], "zero"), "place 3 is not among the 3 tokens");
});

for (const how of ["zero", "mean", "block"] as KnockOut[])
  test(`answerWithout() (${how}) nothing is the answer as it is; the picture matters`, () =>
    keepsTensorCount(async () => {
      const want = take(answerLogProb(model, asked));
      await using(answerWithout(model, asked, { how }), async (score) => {
        expectSame([await score([])], want);
        assert.ok(Math.abs((await score(pictures)) - want[0]) > 1e-4);
      });
    }));

test("what is blocked is as if it were not there: another embedding in its place changes nothing", async () => {
  const places = pictures.slice(2, 6);
  const embeddings = model.embedPrompt(asked.prompt);
  const other = replaceRows(embeddings, places, "zero");
  const [a, b, free] = [embeddings, other, other].map((x, i) => {
    const made = blockKeys(/^language\..*attn_scores$/, places);
    return take(tf.tidy(() => answerLogits(model, asked, { embeddings: x, tap: i < 2 ? made.tap : undefined })));
  });
  expectClose(a, b, 1e-5);
  assert.ok(
    a.some((v, i) => Math.abs(v - free[i]) > 1e-3),
    "without the block it would",
  );
  tf.dispose([embeddings, other]);
});

test("blockKeys() leaves rows that sum to 1, nothing on the blocked keys save a token on itself", () => {
  const places = pictures.slice(0, 3);
  const { tap: block, check } = blockKeys(/attn_scores$/, places);
  const { tap: watch, seen } = record(/^language.*pattern$/);
  const tap: Tap = (name, x) => watch(name, block(name, x));
  answerLogits(model, asked, { tap }).dispose();
  check();
  for (const [, pattern] of seen.entries())
    for (const rows of (pattern.arraySync() as number[][][][])[0])
      rows.forEach((row, query) => {
        expectClose([row.reduce((x, y) => x + y)], [1], 1e-5);
        for (const key of places) if (key !== query) assert.equal(row[key], 0);
      });
  seen.dispose();
});

test("a block in one layer does less than in all, and a layer that is not there is an error", async () => {
  const scoreOf = (layers?: number[]) => using(answerWithout(model, asked, { how: "block", layers }), (score) => score(pictures));
  const [all, one] = [await scoreOf(), await scoreOf([0])];
  assert.notEqual(all, one);
  await assert.rejects(scoreOf([99]), /met none of the \d+ activations/);
  await assert.rejects(
    using(answerWithout(model, asked), (score) => score([4096])),
    /place 4096 is not among the \d+ tokens/,
  );
});

test("activationWithout() patches of CLIP: none is the model as it is, all by zeros is the model without a picture", async () => {
  const clip = await loadClip();
  const { pixels } = inputs();
  const first = pixels.slice([0, 0, 0, 0], [1, -1, -1, -1]);
  const run = (tap?: Tap) => tf.tidy(() => clip.encodeImage(first, tap).sum());
  const score = activationWithout(run, "vision.patch_embed", { how: "zero" });
  expectClose([await score([])], run().dataSync(), 1e-5);
  const other = activationWithout((tap) => tf.tidy(() => clip.encodeImage(first.mul(-1), tap).sum()), "vision.patch_embed", {
    how: "zero",
  });
  const all = Array.from({ length: 16 }, (_, i) => i);
  expectClose([await score(all)], [await other(all)], 1e-5);
  await assert.rejects(activationWithout(run, "vision.patchembed")([0]), /met none of the 43 activations/);
  await assert.rejects(
    activationWithout((tap) => clip.encodeImage(first, tap), "vision.patch_embed")([0]),
    /the run gives \[1,24\], expected one number/,
  );
  clip.dispose();
});

test("ablate() finds what a score depends on, and draws the same with one seed", async () => {
  const weights = [0, 5, 1, 0, 3, 0, 0, 0];
  const score = async (out: readonly number[]) => weights.reduce((sum, w, i) => sum + (out.includes(i) ? 0 : w), 0);
  const among = weights.map((_, i) => i);
  const found = await ablate(score, heaviest(weights, 2), { among, draws: 20, seed: 3 });
  assert.deepEqual([found.intact, found.chosen, found.size, found.of, found.random.length], [9, 1, 2, 8, 20]);
  assert.ok(found.random.every((x) => x >= 1 && x <= 9) && new Set(found.random).size > 2);
  assert.deepEqual(await ablate(score, [4, 1], { among, draws: 20, seed: 3 }), found);
  assert.notDeepEqual((await ablate(score, [4, 1], { among, draws: 20, seed: 4 })).random, found.random);
  const nothing = await ablate(score, [], { among, draws: 3 });
  assert.deepEqual([nothing.chosen, ...nothing.random], [9, 9, 9, 9]);
});

test("ablate() stops on a signal, and says what cannot be compared", async () => {
  const stop = new AbortController();
  const score = async (out: readonly number[]) => out.length;
  const counted = async (out: readonly number[]) => {
    if (out.length === 1) stop.abort();
    return out.length;
  };
  assert.deepEqual((await ablate(counted, [0], { among: [0, 1], signal: stop.signal })).random, []);
  await messageOf(() => ablate(score, [7], { among: [0, 1] }).catch((e) => Promise.reject(e)), "place 7 was chosen and is not in among");
  await messageOf(() => ablate(score, [0, 1], { among: [0, 1] }), "all 2 places were chosen");
  assert.equal((await ablate(score, [0, 1], { among: [0, 1], draws: 0 })).chosen, 2);
});

test("heaviest() by count and by share", () => {
  assert.deepEqual(heaviest([0.1, 0.4, 0.4, 0.1], 3), [1, 2, 0]);
  assert.deepEqual(heaviest(Float32Array.from([1, 2, 3, 4]), 0.5), [3, 2]);
  assert.throws(() => heaviest([1, 2], 3), /count is 3, expected 1 to 2/);
});
