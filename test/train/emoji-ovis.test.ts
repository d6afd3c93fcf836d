/** data/models/emoji-ovis: what is committed is what was measured, and what transformers opens. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { compose, single } from "vitrine/data/questions";
import { tf } from "vitrine/engine";
import { load, type VisionLanguageModel } from "vitrine/models";
import { type Ovis2Config, ovis2Config, type Ovis2Params } from "vitrine/models/ovis2";
import { withTrainable } from "vitrine/nn/trainable";
import { answerLoss, answerStates } from "vitrine/train/conversations";
import { chatTemplate, FRAME } from "vitrine/train/emoji-ovis-files";
import { ovisPupil } from "vitrine/train/ovis-pupil";
import { expectClose } from "../support/close";
import { checkAgainstTransformers, checkAnswers, checkFolder, QUESTION, testEmoji } from "../support/emoji-talker";
import { noReference } from "../support/reference";

let model: VisionLanguageModel<Ovis2Params>;
let config: Ovis2Config;
const read = (name: string) => JSON.parse(readFileSync(join(model.folder, name), "utf8"));
before(async () => {
  model = await load<VisionLanguageModel<Ovis2Params>>("emoji-ovis");
  config = ovis2Config(read("config.json"));
});
after(() => model.dispose());

test("emoji-ovis gives the answers of its results.json, on pictures that it has not seen, above what one answer would reach", () =>
  checkAnswers(ovisPupil(model, config, FRAME), read("results.json").answers, ["colour", "kind"]));

test("ovisPupil() reads batches as the model reads prompts, tiles and indicators included, and its loss reaches every weight", async () => {
  const [a, b] = await testEmoji();
  const pupil = ovisPupil(model, config, FRAME);
  const scenes = [single(a), compose([a, undefined, b, a], { rows: 2, columns: 2, side: 64 })];
  const batch = pupil.teacher.batch(scenes.map(({ picture }) => [{ question: QUESTION, answer: "one", picture }]));
  const states = answerStates(pupil, batch);
  let at = 0;
  for (const { picture } of scenes) {
    const prompt = model.prompt(`${FRAME.user}${model.imageMark}${QUESTION}${FRAME.assistant}`, [picture]);
    const last = tf.tidy(() => {
      const hidden = model.language.forward({ embeddings: model.embedPrompt(prompt) });
      return hidden.slice([0, hidden.shape[1] - 1, 0], [1, 1, -1]).dataSync();
    });
    expectClose(states.slice([at, 0], [1, -1]).dataSync(), last, 1e-4);
    at += pupil.teacher.tokensOf([{ question: QUESTION, answer: "one" }]).answers.filter(Boolean).length;
  }
  const { model: trainable, variables, dispose } = withTrainable(model);
  const { value, grads } = tf.variableGrads(() => answerLoss(ovisPupil(trainable, config, FRAME))(batch), variables);
  assert.deepEqual(
    variables.filter((v) => !grads[v.name]).map((v) => v.shape),
    [],
  );
  tf.dispose([value, grads, states, batch as tf.TensorContainer]);
  dispose();
});

test("the folder is small, and its chat template says what training said", () => checkFolder(model.folder, 4e6, chatTemplate));

test("transformers opens emoji-ovis: the same prompt, ids and logits for one picture and for tiles", { skip: noReference }, () =>
  checkAgainstTransformers(model, FRAME, "ovis2"),
);
