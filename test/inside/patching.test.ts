import assert from "node:assert/strict";
import { before, test } from "node:test";
import { tf } from "vitrine/engine";
import { answerLogits, type Asked } from "vitrine/inside/answer";
import { logitLens } from "vitrine/inside/logit-lens";
import { divergenceFrom, logitDifference, patchRuns, type Run } from "vitrine/inside/patching";
import { activationStatistics } from "vitrine/inside/statistics";
import type { VisionLanguageModel } from "vitrine/models";
import { expectClose, expectSame, keepsTensorCount, messageOf, take } from "../support/close";
import { talker, turned } from "./support";

let model: VisionLanguageModel;
let asked: Asked;
let other: Asked;
let [run, otherRun]: Run[] = [];
before(async () => {
  const made = await talker();
  ({ model, asked } = made);
  other = { ...asked, prompt: model.prompt(made.text, [turned(made.picture)]) };
  const first = (one: Asked): Run => {
    const embeddings = tf.keep(model.embedPrompt(one.prompt));
    return (tap) => answerLogits(model, { ...one, answer: one.answer.slice(0, 1) }, { embeddings, tap });
  };
  [run, otherRun] = [first(asked), first(other)];
});

test("patching a run with itself changes nothing", () =>
  keepsTensorCount(async () => {
    const measure = logitDifference(asked.answer[0], 0);
    const { base, source, values, names } = await patchRuns(run, run, { which: /resid_post$/, measure, positions: [[0, 3], [5]] });
    assert.equal(source, base);
    assert.deepEqual(
      names,
      Array.from({ length: model.language.layers }, (_, i) => `language.blocks.${i}.resid_post`),
    );
    expectClose(values.flat(), Array(values.flat().length).fill(base), 1e-5);
  }));

test("patching every position gives the other run's answer, at any layer", async () => {
  const N = asked.prompt.ids.length;
  const all = [Array.from({ length: N }, (_, i) => i)];
  const measure = logitDifference(asked.answer[0], 0);
  const { base, source, values } = await patchRuns(run, otherRun, { which: /resid_p(re|ost)$/, measure, positions: all });
  assert.ok(Math.abs(base - source) > 1e-3, "the pictures differ in their answers");
  expectClose(values.flat(), Array(values.length).fill(source), 1e-5);
  const reference = otherRun((_, x) => x);
  const far = await patchRuns(run, otherRun, { which: "language.blocks.0.attn.z", measure: divergenceFrom(reference), positions: all });
  expectClose([far.source], [0], 1e-6);
  assert.ok(far.base > 0 && far.values[0][0] > 0, "the residual path of another picture stays");
  reference.dispose();
});

test("patching a position that the answer's position cannot see anew: the last layer carries the last position alone", async () => {
  const N = asked.prompt.ids.length;
  const last = `language.blocks.${model.language.layers - 1}.resid_post`;
  const measure = logitDifference(asked.answer[0], 0);
  const { base, source, values } = await patchRuns(run, otherRun, { which: last, measure, positions: [[0], [N - 2], [N - 1]] });
  expectClose(values[0], [base, base, source], 1e-5);
});

test("patchRuns() names what does not fit, and stops on a signal", async () => {
  const measure = logitDifference(0, 1);
  await messageOf(() => patchRuns(run, run, { which: "resid_pots", measure }), "resid_pots met none of the");
  await messageOf(() => patchRuns(run, run, { which: "resid_post", measure, positions: [[999]] }), "position 999 is not among the");
  const short: Run = (tap) => answerLogits(model, { prompt: { ...asked.prompt, ids: [1, 2, 3], images: [] }, answer: [1] }, { tap });
  await messageOf(() => patchRuns(run, short, { which: "resid_post", measure }), "both need equally many tokens");
  assert.deepEqual((await patchRuns(run, run, { which: "resid_post", measure, signal: AbortSignal.abort() })).values, [[]]);
});

test("logitLens() behind the last layer is the model's own answer", () =>
  keepsTensorCount(async () => {
    const embeddings = model.embedPrompt(asked.prompt);
    const lens = await logitLens(model.language, embeddings, { top: 3 });
    assert.deepEqual([lens.names.length, lens.ids[0].length, lens.ids[0][0].length], [model.language.layers, 12, 3]);
    const N = embeddings.shape[1];
    assert.equal(lens.positions.at(-1), N - 1);
    const want = take(
      tf.tidy(() => {
        const logits = model.language.logits(model.language.forward({ embeddings }));
        return tf.topk(tf.softmax(logits.slice([0, N - 12, 0], [1, 12, -1])), 3).values;
      }),
    );
    expectClose(lens.probabilities.at(-1)!.flat(), want, 1e-6);
    assert.equal(lens.ids.at(-1)!.at(-1)![0], asked.answer[0]);
    await messageOf(() => logitLens(model.language, embeddings, { positions: [N] }), `position ${N} is not among the ${N}`);
    embeddings.dispose();
  }));

test("activationStatistics() by hand", () =>
  keepsTensorCount(async () => {
    const x = tf.tensor3d([3, 4, 0, 0, -3, 4, 0, 0.001], [1, 2, 4]);
    const [row] = await activationStatistics([["blocks.0.mlp.post", x]]);
    const { name, ...numbers } = row;
    assert.equal(name, "blocks.0.mlp.post");
    // mean 8.001 / 8; mean square (9 + 16) · 2 / 8 = 6.25; two of four channels stay below 0.025
    expectClose(Object.values(numbers), [5, 1.000125, Math.sqrt(6.25 - 1.000125 ** 2), 4, 0.5], 1e-5);
    x.dispose();
    expectSame([(await activationStatistics([])).length], [0]);
  }));
