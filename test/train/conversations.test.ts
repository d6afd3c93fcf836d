/** Conversations as batches: what is asked is not learned, what is answered is; the loss and its gradient. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { loadTileProcessor } from "vitrine/image/tiles";
import { load, type VisionLanguageModel } from "vitrine/models";
import { type InternVLParams, internVLConfig } from "vitrine/models/internvl";
import { withTrainable } from "vitrine/nn/trainable";
import { accuracy, choice } from "vitrine/train/answers";
import { answerLoss, answerStates, internVLPupil, type InternVLFrame } from "vitrine/train/conversations";
import { expectClose, keepsTensorCount } from "../support/close";

before(() => engine().then(() => {}));

const FOLDER = join(__dirname, "..", "oracle", "internvl_hf", "model");
const FRAME: InternVLFrame = {
  user: "<|im_start|>user\n",
  assistant: "<|im_end|>\n<|im_start|>assistant\n",
  end: "<|im_end|>",
  image: { start: "<img>", mark: "<IMG_CONTEXT>", end: "</img>\n" },
};
const white = (width: number, height: number) => ({ width, height, data: new Uint8Array(width * height * 3).fill(255) });

async function loaded(frame = FRAME) {
  const model = await load<VisionLanguageModel<InternVLParams>>(FOLDER);
  const config = internVLConfig(JSON.parse(readFileSync(join(FOLDER, "config.json"), "utf8")));
  return { model, config, pupil: internVLPupil(model, config, loadTileProcessor(FOLDER), frame) };
}

test("teacher() lays conversations out as the model's prompt does, and marks the answers' tokens", async () => {
  const { model, pupil } = await loaded();
  const { teacher } = pupil;
  const talk = [
    { question: "What is it?", answer: "a cat", picture: white(56, 28) },
    { question: "Sure?", answer: "yes" },
  ];
  const { ids, answers } = teacher.tokensOf(talk);
  const text =
    "<|im_start|>user\n<IMG_CONTEXT>\nWhat is it?<|im_end|>\n<|im_start|>assistant\na cat<|im_end|><|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>";
  assert.deepEqual(ids, model.prompt(text, [white(56, 28)]).ids);
  const learned = ids.filter((_, i) => answers[i]);
  assert.equal(model.tokenizer.decode(learned, { skipSpecialTokens: false }), "a cat<|im_end|>yes<|im_end|>");

  const batch = teacher.batch([talk, [{ question: "Hm?", answer: "no" }]]);
  assert.deepEqual(batch.pixels.shape, [3, 28, 28, 3], "two tiles and the thumbnail");
  assert.deepEqual([...batch.labels.dataSync()].slice(0, learned.length), learned);
  const flat = batch.ids.dataSync();
  batch.places.dataSync().forEach((place, i) => assert.equal(flat[place + 1], batch.labels.dataSync()[i]));

  // Each conversation's loss is that of a pass over it alone: padding and neighbours change nothing.
  const states = answerStates(pupil, batch);
  const alone = answerStates(pupil, teacher.batch([talk]));
  expectClose(states.slice([0, 0], [learned.length, -1]).dataSync(), alone.dataSync(), 1e-5);
  model.dispose();
});

test("answerLoss() reaches every weight but those that no answer needs, and leaves nothing behind", async () => {
  const { model: base, config } = await loaded();
  const { model, variables, dispose } = withTrainable(base);
  const pupil = internVLPupil(model, config, loadTileProcessor(FOLDER), FRAME);
  const batch = pupil.teacher.batch([[{ question: "What is it?", answer: "a cat", picture: white(28, 28) }]]);
  await keepsTensorCount(() => {
    const { value, grads } = tf.variableGrads(() => answerLoss(pupil)(batch), variables);
    assert.ok(value.dataSync()[0] > 1);
    assert.deepEqual(
      variables.filter((v) => !grads[v.name]).map((v) => v.shape),
      [],
    );
    tf.dispose([value, grads]);
  });
  dispose();
  base.dispose();
});

test("accuracy() and choice() count what greedy decoding would say", async () => {
  const { model, pupil } = await loaded();
  const { teacher } = pupil;
  const asked = { question: "What is it?", picture: white(28, 28) };
  const prompt = model.prompt("<|im_start|>user\n<IMG_CONTEXT>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n", [asked.picture]);
  const greedy = tf.tidy(() => {
    const hidden = model.language.forward({ embeddings: model.embedPrompt(prompt) });
    return model.language
      .logits(hidden.slice([0, hidden.shape[1] - 1, 0], [1, 1, -1]))
      .argMax(-1)
      .dataSync()[0];
  });
  const wrong = await accuracy(pupil, [
    { ...asked, answer: "cat" },
    { ...asked, answer: "dog" },
    { ...asked, answer: "dog" },
  ]);
  assert.deepEqual(wrong, { accuracy: 0, majority: 2 / 3, count: 3 });
  // An answer that is the very token that the model says first is right.
  const obliging = {
    ...(await loaded({ ...FRAME, end: "!" })).pupil.teacher,
    batch: (talks: Parameters<typeof teacher.batch>[0]) => {
      const batch = teacher.batch(talks);
      batch.labels.dispose();
      return { ...batch, labels: tf.tensor1d([greedy], "int32") };
    },
  };
  assert.equal((await accuracy({ ...pupil, teacher: obliging }, [{ ...asked, answer: "" }])).accuracy, 1);
  const answers = [
    { ...asked, answer: "" },
    { ...asked, answer: "a long and unlikely answer" },
  ];
  assert.equal(await choice(pupil, answers, 1), 0.5, "of two questions with one answer, the likelier one is right once");
  model.dispose();
});

test("answerLoss() refuses a head with a bias, which a loss without logits would leave out", () => {
  const headBias = tf.zeros([4]) as tf.Tensor1D;
  const language = { headWeight: tf.zeros([4, 2]) as tf.Tensor2D, headBias } as unknown as VisionLanguageModel["language"];
  assert.throws(() => answerLoss({ language, embed: () => assert.fail("embedded") }), /answerLoss: this model's head adds a bias/);
  tf.dispose([language.headWeight, headBias]);
});
