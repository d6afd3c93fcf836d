import assert from "node:assert/strict";
import { before, test } from "node:test";
import { random } from "vitrine/data/random";
import { engine, tf } from "vitrine/engine";
import type { Picture } from "vitrine/image/picture";
import { withTrainable } from "vitrine/nn/trainable";
import { train } from "vitrine/train/loop";
import {
  hardNegatives,
  picturesSeen,
  type StageOneData,
  stageOneBatches,
  stageOneLoss,
  stageOneLosses,
  statesOf,
} from "vitrine/train/stage-one";
import { speakingBlip2 } from "../support/blip2";
import { expectClose, keepsTensorCount, messageOf } from "../support/close";

before(() => engine().then(() => {}));

test("hardNegatives() draws another row by its share among the others", async () => {
  const logits = [9, 0, Math.log(3), 5, 9, -50, 0, 0, 9];
  const next = random(1);
  const counts = [0, 0, 0];
  for (let i = 0; i < 2000; i++) {
    const [first, second, third] = hardNegatives(logits, 3, next);
    assert.ok(first !== 0 && second === 0 && third !== 2);
    counts[first]++;
  }
  assert.ok(Math.abs(counts[2] / 2000 - 0.75) < 0.04, `${counts}`);
  await messageOf(() => hardNegatives([1], 1, next), "1 numbers for 1 rows; expected 1, of 2 or more");
});

const TEXTS = ["a red bus", "two cats", "a photo of a cat", "what is it?", "a pink blanket", "a bus"];

/** Six flat pictures of different colours. */
async function setting() {
  const model = await speakingBlip2();
  const pictures: Picture[] = TEXTS.map((_, i) => ({
    width: 42,
    height: 42,
    data: Uint8Array.from({ length: 42 * 42 * 3 }, (_, j) => (i * 40 + (j % 3) * (i % 2 ? 60 : 0)) % 256),
  }));
  const states = await picturesSeen(model, pictures, pictures.length, 4);
  const data: StageOneData = { count: 6, states, picture: (i) => i, text: (i) => ({ matched: TEXTS[i], spoken: TEXTS[i] }) };
  return { model, pictures, states, data };
}

test("picturesSeen() keeps what the frozen tower makes of each picture", async () => {
  const { model, pictures, states } = await setting();
  const pixels = tf.tensor4d(model.imageProcessor.process(pictures[5]), [1, 42, 42, 3]);
  expectClose(statesOf(states, [5]).dataSync(), model.see(pixels).dataSync(), 2e-6);
  await messageOf(() => picturesSeen(model, pictures, 7), "6 pictures came, 7 were announced");
  model.dispose();
});

test("the three losses of a batch are the model's, negatives beside their partners, and training lowers each", async () => {
  const { model: base, data } = await setting();
  const { model, variables, dispose } = withTrainable(base, (name) => !name.startsWith("vision_model."));
  const source = stageOneBatches(model, data, { batchSize: 6, negativeTemperature: 0.07, seed: 2 });
  const { value: batch } = await source.next();
  assert.ok(batch);
  const first = stageOneLosses(model, batch);
  expectClose(first.contrastive.dataSync(), model.loss.contrastive(batch.states, batch).dataSync(), 1e-6);
  const logits = (rows: Int32Array, which: "picture" | "text") => {
    const index = tf.tensor1d(rows, "int32");
    const pick = <T extends tf.Tensor>(x: T) => tf.gather(x, index) as T;
    return which === "picture"
      ? model.matchingLogits(pick(batch.states), batch)
      : model.matchingLogits(batch.states, { ids: pick(batch.ids), padding: pick(batch.padding) });
  };
  const own = model.matchingLogits(batch.states, batch);
  const all = tf.concat([
    own,
    logits(batch.wrongPicture.dataSync() as Int32Array, "picture"),
    logits(batch.wrongText.dataSync() as Int32Array, "text"),
  ]) as tf.Tensor2D;
  const shares = tf.logSoftmax(all).arraySync() as number[][];
  const want = -shares.reduce((sum, [no, yes], i) => sum + (i < 6 ? yes : no), 0) / 18;
  expectClose(first.matching.dataSync(), [want], 1e-5);
  const before = Object.values(first).map((x) => x.dataSync()[0]);
  const run = train({ variables, batches: source, loss: stageOneLoss(model), steps: 30, learningRate: 3e-3, warmupSteps: 3 });
  for await (const row of run) assert.ok(Number.isFinite(row.loss));
  const after = Object.values(stageOneLosses(model, batch)).map((x) => x.dataSync()[0]);
  after.forEach((loss, i) => assert.ok(loss < before[i], `loss ${i}: ${before[i]} -> ${loss}`));
  await keepsTensorCount(() => {
    const { value, grads } = tf.variableGrads(() => stageOneLoss(model)(batch), variables);
    tf.dispose([value, grads]);
  });
  dispose();
  base.dispose();
});
