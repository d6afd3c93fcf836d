import assert from "node:assert/strict";
import { before, test } from "node:test";
import { tf } from "vitrine/engine";
import { answerAttention, answerLogits, answerLogProb, answerLogProbs, type Asked } from "vitrine/inside/answer";
import type { VisionLanguageModel } from "vitrine/models";
import { record } from "vitrine/nn/tap";
import { expectClose, keepsTensorCount, messageOf } from "../support/close";
import { talker } from "./support";

let model: VisionLanguageModel;
let asked: Asked;
before(async () => {
  ({ model, asked } = await talker());
});

test("answerLogits() of a greedy answer have their maxima at its tokens", () => {
  const logits = answerLogits(model, asked);
  assert.deepEqual([...tf.tidy(() => logits.argMax(1).dataSync())], [...asked.answer]);
  logits.dispose();
});

test("answerLogProbs() are probabilities of what was said, token by token", () => {
  const [logits, got, sum] = [answerLogits(model, asked), answerLogProbs(model, asked), answerLogProb(model, asked)];
  const rows = logits.arraySync();
  const want = rows.map((row, i) => {
    const most = Math.max(...row);
    return row[asked.answer[i]] - most - Math.log(row.reduce((s, x) => s + Math.exp(x - most), 0));
  });
  expectClose(got.dataSync(), want, 1e-5);
  expectClose(sum.dataSync(), [want.reduce((a, b) => a + b)], 1e-5);
  tf.dispose([logits, got, sum]);
});

test("answerAttention() is the pattern of the whole run in the answer's rows", async () => {
  const got = await answerAttention(model, asked);
  const { tap, seen } = record(/^language\.blocks\.\d+\.attn\.pattern$/);
  answerLogits(model, asked, { tap }).dispose();
  assert.equal(got.length, model.language.layers);
  const [N, A] = [asked.prompt.ids.length, asked.answer.length];
  for (const [layer, [, pattern]] of seen.entries().entries()) {
    const want = (pattern.arraySync() as number[][][][])[0].map((rows) => rows.slice(N - 1));
    assert.deepEqual([got[layer].length, got[layer][0].length, got[layer][0][0].length], [pattern.shape[1], A, N + A - 1]);
    expectClose(got[layer].flat(2), want.flat(2), 1e-5, `layer ${layer}`);
  }
  seen.dispose();
});

test("an answer of one token, and of none", async () => {
  await keepsTensorCount(async () => {
    const [[head]] = await answerAttention(model, { ...asked, answer: asked.answer.slice(0, 1) });
    assert.equal(head.length, 1);
    expectClose([head[0].reduce((a, b) => a + b)], [1], 1e-5);
    answerLogProb(model, { ...asked, answer: asked.answer.slice(0, 1) }).dispose();
    await messageOf(() => answerLogits(model, { ...asked, answer: [] }), "the answer has no tokens");
    await messageOf(() => answerAttention(model, { ...asked, answer: [] }), "the answer has no tokens");
  });
});
