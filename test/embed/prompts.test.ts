/** Embeddings from models that talk: PyTorch's hidden states, layer by layer, taken together. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { embedPrompts } from "vitrine/embed/prompts";
import { load, type VisionLanguageModel } from "vitrine/models";
import { readPicture } from "vitrine/image/picture";
import { join } from "node:path";
import { openOracle } from "../parity/check";
import { ORACLE } from "../support/clip";
import { expectClose, keepsTensorCount, messageOf } from "../support/close";
import { talker } from "../inside/support";

const unit = (x: number[]): number[] => {
  const length = Math.hypot(...x);
  return x.map((one) => one / length);
};

for (const family of ["internvl_hf", "llava_next"])
  test(`embedPrompts() of ${family} are PyTorch's hidden states, by layer and pooling`, async () => {
    const oracle = openOracle(ORACLE, family);
    const [forward] = oracle.cases.forward;
    const model = await load<VisionLanguageModel>(join(oracle.folder, "model"));
    const pictures = await Promise.all((forward.images ?? [forward.image]).map((file: string) => readPicture(join(oracle.root, file))));
    const prompt = model.prompt(forward.text, pictures);
    const states: string[] = [...forward.lm_hidden.slice(0, -1), forward.lm_last_hidden_state]; // the oracle's last one lacks the final norm
    const inPicture = (at: number) => prompt.images.some(({ start, end }) => at >= start && at < end);
    const layers = [...states.keys()];
    await keepsTensorCount(async () => {
      for (const layer of [...layers, -1, -2])
        for (const pooling of ["last", "mean", "image", "text"] as const) {
          const { values: all, shape } = oracle.array(states.at(layer)!);
          const [, N, D] = shape;
          const rows = Array.from({ length: N }, (_, at) => at).filter((at) =>
            pooling === "last" ? at === N - 1 : pooling === "mean" || inPicture(at) === (pooling === "image"),
          );
          const want = unit(Array.from({ length: D }, (_, d) => rows.reduce((sum, at) => sum + all[at * D + d], 0)));
          const got = await embedPrompts(model, [prompt], { layer, pooling });
          assert.deepEqual([got.count, got.width], [1, D]);
          expectClose(got.values, want, 2e-5);
        }
    });
    model.dispose();
  });

test("embedPrompts() of a model with an encoder are the encoder's, of many prompts in a row, and stop when asked", async () => {
  const { model, asked, text, picture } = await talker("blip2_t5");
  const two = [asked.prompt, model.prompt(`${text} red`, [picture])];
  const both = await embedPrompts(model, two, { pooling: "mean" });
  const second = await embedPrompts(model, [two[1]], { pooling: "mean" });
  assert.equal(both.count, 2);
  expectClose(both.values.subarray(both.width), second.values, 1e-6);
  expectClose([Math.hypot(...second.values)], [1], 1e-5);
  assert.equal((await embedPrompts(model, two, { signal: AbortSignal.abort() })).count, 0);
  model.dispose();
});

test("embedPrompts() says which layers and poolings there are", async () => {
  const { model, asked } = await talker();
  const L = model.language.layers;
  await messageOf(() => embedPrompts(model, [asked.prompt], { layer: L + 1 }), `expected a whole number from ${-L - 1} to ${L}`);
  await messageOf(
    () => embedPrompts(model, [asked.prompt], { pooling: "max" as never }),
    'pooling is "max", expected last, mean, image, text',
  );
  await messageOf(() => embedPrompts(model, [model.prompt("x", [])], { pooling: "image" }), 'prompts[0] has no tokens for pooling "image"');
  model.dispose();
});
