/** What the shipped models that talk about emoji are asked: the answers of their results.json, their folder, and transformers beside them. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import { dataset } from "vitrine/data";
import { compose, type Drawn, drawn, single, turnsOf } from "vitrine/data/questions";
import { tf } from "vitrine/engine";
import type { VisionLanguageModel } from "vitrine/models";
import { accuracy } from "vitrine/train/answers";
import type { Frame, Pupil } from "vitrine/train/conversations";
import { expectClose } from "./close";
import { reference } from "./reference";
import { scratch } from "./scratch";

export const QUESTION = "How many are there?";

/** Emoji of the test split. */
export async function testEmoji(): Promise<Drawn[]> {
  const rows = await dataset("emoji", { split: "test" });
  return Promise.all(rows.map(async (row) => drawn(row, await row.image())));
}

/** The recorded answers are those that the model gives to pictures that it has not seen, and well above what one answer would reach. */
export async function checkAnswers(
  pupil: Pupil,
  answers: { [topic: string]: { accuracy: number; majority: number; count: number } },
  topics: string[],
): Promise<void> {
  const turns = (await testEmoji()).flatMap((one) => turnsOf(single(one)).map((turn) => ({ ...turn, picture: one.picture })));
  for (const topic of ["colour", "kind"]) {
    const got = await accuracy(
      pupil,
      turns.filter((turn) => turn.topic === topic),
    );
    assert.equal(got.count, answers[topic].count);
    assert.ok(Math.abs(got.accuracy - answers[topic].accuracy) <= 0.01, `${topic}: ${got.accuracy}, recorded ${answers[topic].accuracy}`);
  }
  for (const topic of topics)
    assert.ok(answers[topic].accuracy > answers[topic].majority + 0.15, `${topic}: ${JSON.stringify(answers[topic])}`);
}

/** The folder takes at most so many bytes, and its chat template says what training said. */
export function checkFolder(folder: string, most: number, chatTemplate: string): void {
  const bytes = readdirSync(folder).reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);
  assert.ok(bytes <= most, `${bytes} bytes`);
  assert.equal(readFileSync(join(folder, "chat_template.jinja"), "utf8"), chatTemplate);
}

/** transformers opens the folder: the same prompt, ids and logits for one picture and for tiles. family: for reference.py, where it is no InternVL */
export async function checkAgainstTransformers(model: VisionLanguageModel, { user, assistant }: Frame, family?: string): Promise<void> {
  const folder = scratch();
  const [a, b, c] = await testEmoji();
  const scenes = [single(a), compose([a, undefined, b, c], { rows: 2, columns: 2, side: 64 })];
  const jobs = await Promise.all(
    scenes.map(async ({ picture: { width, height, data } }, i) => {
      const path = join(folder, `${i}.png`);
      await sharp(data, { raw: { width, height, channels: 3 } })
        .png()
        .toFile(path);
      return { kind: "answer", family, model: model.folder, picture: path, question: QUESTION };
    }),
  );
  const wanted = reference(jobs);
  for (const [i, scene] of scenes.entries()) {
    const prompt = model.prompt(`${user}${model.imageMark}${QUESTION}${assistant}`, [scene.picture]);
    assert.equal(wanted[i].text, prompt.text);
    assert.deepEqual(prompt.ids, wanted[i].ids);
    const logits = tf.tidy(() => {
      const hidden = model.language.forward({ embeddings: model.embedPrompt(prompt) });
      return model.language.logits(hidden.slice([0, hidden.shape[1] - 1, 0], [1, 1, -1])).dataSync();
    });
    expectClose(logits, wanted[i].logits, 2e-3, `scene ${i}`); // logits up to 20
  }
}
