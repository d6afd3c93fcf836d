/** The shipped emoji-qformer: transformers computes the same with it, and its results are what it does. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import sharp from "sharp";
import { dataset } from "vitrine/data";
import { engine, tf } from "vitrine/engine";
import { type Blip2, load } from "vitrine/models";
import { measureStageOne } from "vitrine/train/measure-stage-one";
import { picturesSeen, statesOf } from "vitrine/train/stage-one";
import { scratch } from "../support/clip";
import { expectClose } from "../support/close";
import { noReference, reference } from "../support/reference";

before(() => engine().then(() => {}));

test("emoji-qformer: transformers' processor and model give the same heads", { skip: noReference }, async () => {
  const model = await load<Blip2>("emoji-qformer");
  const shown = (await dataset("emoji", { split: "test" })).slice(0, 4);
  const folder = scratch();
  const files = shown.map((_, i) => join(folder, `${i}.png`));
  const pictures = await Promise.all(shown.map((row) => row.image()));
  await Promise.all(
    pictures.map(({ data, width, height }, i) =>
      sharp(data, { raw: { width, height, channels: 3 } })
        .png()
        .toFile(files[i]),
    ),
  );
  const texts = shown.map((row) => `${row.caption}, a drawing`);
  const [wanted] = reference([{ kind: "retrieval", model: model.folder, texts, pictures: files }]);
  const states = statesOf(await picturesSeen(model, pictures, 4), [0, 1, 2, 3]);
  const text = model.read(texts);
  expectClose(model.matchingLogits(states, text).dataSync(), wanted.matching, 1e-4);
  expectClose(model.similarities(model.encodePicture(states), model.encodeWords(text)).dataSync(), wanted.contrastive, 2e-5);
  tf.dispose([states, text.ids, text.padding]);
  model.dispose();
});

test("emoji-qformer does with pictures it has never seen what results.json says, above chance", async () => {
  const model = await load<Blip2>("emoji-qformer");
  const { steps: _s, minutes: _m, ...results } = JSON.parse(readFileSync(join(model.folder, "results.json"), "utf8"));
  const rows = await dataset("emoji", { split: "test" });
  const measured = JSON.parse(JSON.stringify(await measureStageOne(model, rows, await dataset("emoji", { split: "train" }))));
  const near = (got: unknown, want: unknown, path: string): void => {
    if (typeof want === "number") assert.ok(Math.abs((got as number) - want) < 0.02, `${path}: ${got}, results.json ${want}`);
    else if (want && typeof want === "object")
      for (const key of Object.keys(want)) near((got as never)[key], (want as never)[key], `${path}.${key}`);
  };
  near(
    { ...measured, generation: { ...measured.generation, examples: [] } },
    { ...results, generation: { ...results.generation, examples: [] } },
    "results",
  );
  for (const { contrastive, reranked, random } of results.retrieval)
    assert.ok(contrastive["R@1"] > 10 * random && reranked["R@1"] > 10 * random);
  assert.ok(results.matching.random.accuracy > 0.55 && results.matching.random.ranking > 0.7);
  const { loss, otherPicture, wordFrequencies, chance } = results.generation;
  assert.ok(loss.generation < otherPicture && loss.generation < wordFrequencies && wordFrequencies < chance);
  model.dispose();
});
