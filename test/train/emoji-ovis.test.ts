/** data/models/emoji-ovis: what is committed is what was measured, and what transformers opens. */
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { before, test } from "node:test";
import sharp from "sharp";
import { dataset } from "vitrine/data";
import { compose, drawn, type Drawn, single, turnsOf } from "vitrine/data/questions";
import { engine, tf } from "vitrine/engine";
import { load, type VisionLanguageModel } from "vitrine/models";
import { ovis2Config, type Ovis2Params } from "vitrine/models/ovis2";
import { withTrainable } from "vitrine/nn/trainable";
import { accuracy } from "vitrine/train/answers";
import { answerLoss, answerStates } from "vitrine/train/conversations";
import { chatTemplate, FRAME } from "vitrine/train/emoji-ovis-files";
import { ovisPupil } from "vitrine/train/ovis-pupil";
import { expectClose } from "../support/close";
import { noReference, reference } from "../support/reference";

const FOLDER = join(__dirname, "..", "..", "data", "models", "emoji-ovis");
const read = (name: string) => JSON.parse(readFileSync(join(FOLDER, name), "utf8"));
const config = ovis2Config(read("config.json"));
let model: VisionLanguageModel<Ovis2Params>;

before(async () => {
  await engine();
  model = await load<VisionLanguageModel<Ovis2Params>>("emoji-ovis");
});

async function emoji(): Promise<Drawn[]> {
  const rows = await dataset("emoji", { split: "test" });
  return Promise.all(rows.map(async (row) => drawn(row, await row.image())));
}

test("emoji-ovis gives the answers of its results.json, on pictures that it has not seen, above what one answer would reach", async () => {
  const pupil = ovisPupil(model, config, FRAME);
  const turns = (await emoji()).flatMap((one) => turnsOf(single(one)).map((turn) => ({ ...turn, picture: one.picture })));
  const { answers } = read("results.json");
  for (const topic of ["colour", "kind"]) {
    const got = await accuracy(
      pupil,
      turns.filter((turn) => turn.topic === topic),
    );
    assert.equal(got.count, answers[topic].count);
    assert.ok(Math.abs(got.accuracy - answers[topic].accuracy) <= 0.01, `${topic}: ${got.accuracy}, recorded ${answers[topic].accuracy}`);
    assert.ok(answers[topic].accuracy > answers[topic].majority + 0.15, `${topic}: ${JSON.stringify(answers[topic])}`);
  }
});

test("ovisPupil() reads batches as the model reads prompts, tiles and indicators included, and its loss reaches every weight", async () => {
  const [a, b] = await emoji();
  const pupil = ovisPupil(model, config, FRAME);
  const scenes = [single(a), compose([a, undefined, b, a], { rows: 2, columns: 2, side: 64 })];
  const question = "How many are there?";
  const batch = pupil.teacher.batch(scenes.map(({ picture }) => [{ question, answer: "one", picture }]));
  const states = answerStates(pupil, batch);
  let at = 0;
  for (const { picture } of scenes) {
    const prompt = model.prompt(`${FRAME.user}${model.imageMark}${question}${FRAME.assistant}`, [picture]);
    const last = tf.tidy(() => {
      const hidden = model.language.forward({ embeddings: model.embedPrompt(prompt) });
      return hidden.slice([0, hidden.shape[1] - 1, 0], [1, 1, -1]).dataSync();
    });
    expectClose(states.slice([at, 0], [1, -1]).dataSync(), last, 1e-4);
    at += pupil.teacher.tokensOf([{ question, answer: "one" }]).answers.filter(Boolean).length;
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

test("the folder is small, and its chat template says what training said", () => {
  const bytes = readdirSync(FOLDER).reduce((sum, name) => sum + statSync(join(FOLDER, name)).size, 0);
  assert.ok(bytes <= 4e6, `${bytes} bytes`);
  assert.equal(readFileSync(join(FOLDER, "chat_template.jinja"), "utf8"), chatTemplate);
});

test("transformers opens emoji-ovis: the same prompt, ids and logits for one picture and for tiles", { skip: noReference }, async () => {
  const folder = mkdtempSync(join(tmpdir(), "emoji-ovis-"));
  const [a, b, c] = await emoji();
  const scenes = [single(a), compose([a, undefined, b, c], { rows: 2, columns: 2, side: 64 })];
  const question = "How many are there?";
  const jobs = await Promise.all(
    scenes.map(async ({ picture: { width, height, data } }, i) => {
      const path = join(folder, `${i}.png`);
      await sharp(data, { raw: { width, height, channels: 3 } })
        .png()
        .toFile(path);
      return { kind: "answer", family: "ovis2", model: FOLDER, picture: path, question };
    }),
  );
  const wanted = reference(jobs);
  for (const [i, scene] of scenes.entries()) {
    const prompt = model.prompt(`${FRAME.user}${model.imageMark}${question}${FRAME.assistant}`, [scene.picture]);
    assert.equal(wanted[i].text, prompt.text);
    assert.deepEqual(prompt.ids, wanted[i].ids);
    const logits = tf.tidy(() => {
      const hidden = model.language.forward({ embeddings: model.embedPrompt(prompt) });
      return model.language.logits(hidden.slice([0, hidden.shape[1] - 1, 0], [1, 1, -1])).dataSync();
    });
    expectClose(logits, wanted[i].logits, 2e-3, `scene ${i}`); // logits up to 20
  }
  rmSync(folder, { recursive: true });
});
