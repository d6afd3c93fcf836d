/** data/models/emoji-vl: what is committed is what was measured, and what transformers opens. */
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { before, test } from "node:test";
import sharp from "sharp";
import { dataset } from "vitrine/data";
import { compose, drawn, type Drawn, single, turnsOf } from "vitrine/data/questions";
import { engine, tf } from "vitrine/engine";
import { loadTileProcessor } from "vitrine/image/tiles";
import { load, type VisionLanguageModel } from "vitrine/models";
import { type InternVLParams, internVLConfig } from "vitrine/models/internvl";
import { accuracy } from "vitrine/train/answers";
import { internVLPupil } from "vitrine/train/conversations";
import { chatTemplate, FRAME } from "vitrine/train/emoji-vl-files";
import { expectClose } from "../support/close";
import { noReference, reference } from "../support/reference";

const FOLDER = join(__dirname, "..", "..", "data", "models", "emoji-vl");
const read = (name: string) => JSON.parse(readFileSync(join(FOLDER, name), "utf8"));

before(() => engine().then(() => {}));

async function emoji(): Promise<Drawn[]> {
  const rows = await dataset("emoji", { split: "test" });
  return Promise.all(rows.map(async (row) => drawn(row, await row.image())));
}

test("emoji-vl gives the answers of its results.json, on pictures that it has not seen, well above what one answer would reach", async () => {
  const model = await load<VisionLanguageModel<InternVLParams>>("emoji-vl");
  const config = internVLConfig(read("config.json"));
  const pupil = internVLPupil(model, config, loadTileProcessor(FOLDER), FRAME);
  const turns = (await emoji()).flatMap((one) => turnsOf(single(one)).map((turn) => ({ ...turn, picture: one.picture })));
  const { answers } = read("results.json");
  for (const topic of ["colour", "kind"]) {
    const got = await accuracy(
      pupil,
      turns.filter((turn) => turn.topic === topic),
    );
    assert.equal(got.count, answers[topic].count);
    assert.ok(Math.abs(got.accuracy - answers[topic].accuracy) <= 0.01, `${topic}: ${got.accuracy}, recorded ${answers[topic].accuracy}`);
  }
  for (const topic of ["colour", "kind", "count", "count in tiles", "place", "place in tiles"])
    assert.ok(answers[topic].accuracy > answers[topic].majority + 0.15, `${topic}: ${JSON.stringify(answers[topic])}`);
  assert.ok(answers.caption["right of 10"] > 2 * answers.caption.chance);
  model.dispose();
});

test("the folder is small, and its chat template says what training said", () => {
  const bytes = readdirSync(FOLDER).reduce((sum, name) => sum + statSync(join(FOLDER, name)).size, 0);
  assert.ok(bytes <= 12e6, `${bytes} bytes`);
  assert.equal(readFileSync(join(FOLDER, "chat_template.jinja"), "utf8"), chatTemplate);
});

test("transformers opens emoji-vl: the same prompt, ids and logits for one picture and for tiles", { skip: noReference }, async () => {
  const folder = mkdtempSync(join(tmpdir(), "emoji-vl-"));
  const model = await load<VisionLanguageModel<InternVLParams>>("emoji-vl");
  const [a, b, c] = await emoji();
  const scenes = [single(a), compose([a, undefined, b, c], { rows: 2, columns: 2, side: 64 })];
  const question = "How many are there?";
  const jobs = await Promise.all(
    scenes.map(async ({ picture: { width, height, data } }, i) => {
      const path = join(folder, `${i}.png`);
      await sharp(data, { raw: { width, height, channels: 3 } })
        .png()
        .toFile(path);
      return { kind: "answer", model: FOLDER, picture: path, question };
    }),
  );
  const wanted = reference(jobs);
  for (const [i, scene] of scenes.entries()) {
    const prompt = model.prompt(`${FRAME.user}${FRAME.image.mark}${question}${FRAME.assistant}`, [scene.picture]);
    assert.equal(wanted[i].text, prompt.text);
    assert.deepEqual(prompt.ids, wanted[i].ids);
    const logits = tf.tidy(() => {
      const hidden = model.language.forward({ embeddings: model.embedPrompt(prompt) });
      return model.language.logits(hidden.slice([0, hidden.shape[1] - 1, 0], [1, 1, -1])).dataSync();
    });
    expectClose(logits, wanted[i].logits, 2e-3, `scene ${i}`); // logits up to 20
  }
  model.dispose();
  rmSync(folder, { recursive: true });
});
