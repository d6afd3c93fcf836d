/** data/models/emoji-vl: what is committed is what was measured, and what transformers opens. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { loadTileProcessor } from "vitrine/image/tiles";
import { load, type VisionLanguageModel } from "vitrine/models";
import { type InternVLParams, internVLConfig } from "vitrine/models/internvl";
import { internVLPupil } from "vitrine/train/conversations";
import { chatTemplate, FRAME } from "vitrine/train/emoji-vl-files";
import { checkAgainstTransformers, checkAnswers, checkFolder } from "../support/emoji-talker";
import { noReference } from "../support/reference";

let model: VisionLanguageModel<InternVLParams>;
before(async () => {
  model = await load<VisionLanguageModel<InternVLParams>>("emoji-vl");
});
after(() => model.dispose());
const read = (name: string) => JSON.parse(readFileSync(join(model.folder, name), "utf8"));

test("emoji-vl gives the answers of its results.json, on pictures that it has not seen, well above what one answer would reach", async () => {
  const pupil = internVLPupil(model, internVLConfig(read("config.json")), loadTileProcessor(model.folder), FRAME);
  const { answers } = read("results.json");
  await checkAnswers(pupil, answers, ["colour", "kind", "count", "count in tiles", "place", "place in tiles"]);
  assert.ok(answers.caption["right of 10"] > 2 * answers.caption.chance);
});

test("the folder is small, and its chat template says what training said", () => checkFolder(model.folder, 12e6, chatTemplate));

test("transformers opens emoji-vl: the same prompt, ids and logits for one picture and for tiles", { skip: noReference }, () =>
  checkAgainstTransformers(model, FRAME),
);
