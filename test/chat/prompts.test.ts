/** Prompts of every family that talks: asked for in one line, displayed with each picture's tokens folded, and two templates' told apart. */
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { pipeline, type RenderMessage } from "vitrine/chat";
import { engine } from "vitrine/engine";
import { diffPrompts, showPrompt } from "vitrine/figures/prompt";
import type { Picture } from "vitrine/image/picture";
import { load } from "vitrine/models";
import type { VisionLanguageModel } from "vitrine/models/loaded";
import { bundleOf } from "vitrine/notebook/bundle";
import { oraclePicture } from "../support/talk";
import { folderOf, SHORT_CONTEXT, TALKERS } from "../support/talkers";

/** BLIP-2 reads one picture, before the text. */
const question = ([{ content }]: RenderMessage[]): string =>
  `<image>Question: ${content.map((part) => (part.type === "text" ? part.text : "")).join("")} Answer:`;

let [wide, gray]: Picture[] = [];
before(async () => {
  await engine();
  [wide, gray] = [await oraclePicture("rgb_wide.png"), await oraclePicture("gray.png")];
});

for (const family of TALKERS)
  test(`${family}: pipeline().prompt(), showPrompt() and the difference of two templates`, async () => {
    const model = await load<VisionLanguageModel>(folderOf(family));
    // Prompts of a family with few positions do not fit; what is displayed is the same for a model that reads more.
    const talker = SHORT_CONTEXT.includes(family) ? { ...model, language: { ...model.language, contextLength: 4096 } } : model;
    const isSingle = ["blip-2", "instructblip"].includes(model.modelType);
    const pictures = isSingle ? [wide] : [wide, gray];
    const ask = ["What is <image_soft_token> here?", pictures] as const;
    const [own, other] = [
      await pipeline(talker),
      await pipeline(talker, { template: isSingle ? question : family === "minigpt4" ? "minigpt4-llama2" : "internvl2_5" }),
    ];
    const [a, b] = [await own.prompt(ask), await other.prompt(ask)];
    const { runs, ...figure } = showPrompt(a);
    assert.deepEqual(
      runs.filter(({ kind }) => kind === "image"),
      a.images.map(({ start, end }) => ({ kind: "image", text: model.imageMark, count: end - start })),
    );
    assert.equal(a.images.length, pictures.length);
    assert.equal(runs.map(({ text }) => text).join(""), a.text);
    const { bundle } = await bundleOf({ runs, ...figure });
    for (const { count } of runs.filter(({ kind }) => kind === "image"))
      assert.ok(String(bundle["text/plain"]).includes(`${model.imageMark} × ${count}`), String(bundle["text/plain"]));
    assert.deepEqual(
      b.images.map(({ start, end }) => end - start),
      a.images.map(({ start, end }) => end - start),
      "the same tokens for each picture under another template",
    );
    const difference = diffPrompts(a, b);
    assert.equal(difference.title, `${a.template} against ${b.template}`);
    const side = (which: "left" | "right") =>
      difference.runs
        .filter((run) => !run.side || run.side === which)
        .map(({ text }) => text)
        .join("");
    assert.deepEqual([side("left"), side("right")], [a.text, b.text]);
    assert.notEqual(a.text, b.text);
    assert.ok(difference.runs.some((run) => run.side) && difference.runs.some(({ kind, side }) => kind === "image" && !side));
    own.close();
    other.close();
    model.dispose();
  });
