import assert from "node:assert/strict";
import { before, test } from "node:test";
import { tf } from "vitrine/engine";
import { isBfloat16 } from "vitrine/engine/bfloat16";
import { type Clip, load } from "vitrine/models";
import { type Adapter, linearPaths, type LoraOptions, mergeLora, scaleOf, withLora } from "vitrine/nn/lora";
import { withTrainable } from "vitrine/nn/trainable";
import { inputs, type Inputs, loadClip, logits, lossOf, MODEL } from "../support/clip";
import { expectClose, expectSame, farthest, keepsTensorCount, messageOf } from "../support/close";
import { stir } from "../support/lora";

let clip: Clip;
let x: Inputs;
before(async () => {
  clip = await loadClip();
  x = inputs();
});

/** The modules that options reach, by name. */
function names(options: LoraOptions): string[] {
  const { adapter } = withLora(clip, options);
  const found = adapter.modules.map((m) => m.name);
  adapter.dispose();
  return found;
}

/** One of each: a list, rsLoRA, DoRA, a regular expression with the patch convolution, DoRA on that too. */
const KINDS: { [title: string]: LoraOptions } = {
  LoRA: { targetModules: ["q_proj", "v_proj"], r: 4, loraAlpha: 8 },
  rsLoRA: { targetModules: ["k_proj", "fc2"], r: 4, useRslora: true },
  DoRA: { targetModules: ["q_proj", "fc1", "visual_projection"], r: 3, useDora: true },
  "a convolution": { targetModules: "vision_model\\.(.*\\.fc1|embeddings\\.patch_embedding)", r: 2 },
  "DoRA of a convolution": { targetModules: ["patch_embedding", "text_projection"], r: 2, useDora: true },
};

for (const [title, options] of Object.entries(KINDS)) {
  test(`withLora() computes the base model's numbers to the bit while B is 0 (${title})`, () => {
    const { model, adapter } = withLora(clip, options);
    // DoRA divides the row norms by themselves, in one precision: 1 to the bit as well.
    expectSame(logits(model, x), logits(clip, x));
    adapter.dispose();
  });

  test(`mergeLora() computes what the attached adapter does (${title})`, () => {
    const { model, adapter } = withLora(clip, options);
    stir(adapter);
    const attached = logits(model, x);
    assert.ok(farthest(attached, logits(clip, x)) > 0.05, "the adapter says something");
    const { model: merged, disposeMerged } = mergeLora(model);
    expectClose(logits(merged, x), attached, 1e-5 * Math.max(...attached.map(Math.abs)));
    disposeMerged();
    adapter.dispose();
  });
}

test("mergeLora() of a bfloat16 model stays bfloat16, and near the attached adapter", async () => {
  const narrow = await load(MODEL, { dtype: "bfloat16" });
  const { model, adapter } = withLora(narrow, KINDS.LoRA);
  stir(adapter);
  const { model: merged, disposeMerged } = mergeLora(model);
  const weight = merged.params.vision.blocks[0].attn.q.weight;
  assert.ok(isBfloat16(weight));
  expectClose(logits(merged, x), logits(model, x), 0.1);
  disposeMerged();
  adapter.dispose();
  narrow.dispose();
});

test("mergeLora() frees what it made and nothing else, and refuses a model without an adapter", async () => {
  const { model, adapter } = withLora(clip, KINDS.LoRA);
  await keepsTensorCount(() => mergeLora(model).disposeMerged());
  const { model: merged, disposeMerged } = mergeLora(model);
  assert.equal(merged.params.vision.blocks[0].attn.k.weight, clip.params.vision.blocks[0].attn.k.weight, "untouched weights are shared");
  await messageOf(() => mergeLora(merged), "carries no adapter; attach one with withLora or loadAdapter");
  disposeMerged();
  adapter.dispose();
  await messageOf(() => mergeLora(clip), "carries no adapter");
});

test("withLora() matches a list by the last parts of a path, a string as a regular expression for all of it", () => {
  assert.deepEqual(names({ targetModules: ["q_proj"] }), [
    ...[0, 1].map((i) => `text_model.encoder.layers.${i}.self_attn.q_proj`),
    ...[0, 1, 2].map((i) => `vision_model.encoder.layers.${i}.self_attn.q_proj`),
  ]);
  assert.deepEqual(names({ targetModules: ["layers.1.self_attn.q_proj"] }).length, 2);
  assert.deepEqual(names({ targetModules: "vision_model\\..*\\.[qv]_proj" }).length, 6);
  assert.deepEqual(names({ targetModules: "text_projection" }), ["text_projection"]);
});

test("withLora() of all-linear takes every linear layer and no convolution, as PEFT does", () => {
  const all = linearPaths(clip).map((m) => m.name);
  const patch = "vision_model.embeddings.patch_embedding";
  assert.ok(all.includes(patch));
  const found = names({ targetModules: "all-linear" });
  assert.deepEqual(
    found,
    all.filter((name) => name !== patch && !name.endsWith("token_embedding")),
  );
  assert.equal(found.length, (2 + 3) * 6 + 2);
});

test("withLora() leaves out excludeModules, in either form", () => {
  const some = names({ targetModules: ["q_proj", "k_proj"], excludeModules: ["layers.0.self_attn.q_proj"] });
  assert.equal(some.length, 8);
  assert.ok(!some.some((name) => name.endsWith("layers.0.self_attn.q_proj")));
  assert.ok(names({ targetModules: "all-linear", excludeModules: "text_.*" }).every((name) => !name.startsWith("text_")));
});

test("withLora() refuses names that match nothing, every one of them, and says what there is", async () => {
  await messageOf(
    () => withLora(clip, { targetModules: ["q_proj", "query", "value"] }),
    '"query", "value" matches no module',
    "q_proj, k_proj, v_proj",
    "fc1, fc2",
    "a string is a regular expression for the whole path, such as",
  );
  await messageOf(
    () => withLora(clip, { targetModules: "q_proj" }),
    '"q_proj" matches no module',
    "a string is a regular expression for the whole path",
  );
  await messageOf(() => withLora(clip, { targetModules: "(q_proj" }), 'targetModules "(q_proj" is not a regular expression');
  await messageOf(() => withLora(clip, { targetModules: ["q_proj"], excludeModules: ["q_proj"] }), "matches no module");
});

test("withLora() refuses embeddings, norms and tables by name", async () => {
  for (const target of ["token_embedding", "position_embedding", "layer_norm1"])
    await messageOf(
      () => withLora(clip, { targetModules: [target, "q_proj"] }),
      "only linear layers and patch convolutions can be adapted, not",
      target,
    );
});

test("withLora() names the nearest option to an unknown one, and lists options that make no sense", async () => {
  await messageOf(
    () => withLora(clip, { targetModules: ["q_proj"], loraAlfa: 8 } as never),
    'unknown option "loraAlfa"; did you mean "loraAlpha"?',
  );
  await messageOf(() => withLora(clip, { targetModules: ["q_proj"], rank: 8 } as never), 'unknown option "rank"');
  await messageOf(
    () => withLora(clip, { targetModules: [], r: 0, loraAlpha: Number.NaN, loraDropout: 1 }),
    "targetModules is empty",
    "r is 0, expected a whole number of at least 1",
    "loraAlpha is NaN",
    "loraDropout is 1, expected 0 <= loraDropout < 1",
  );
});

test("withLora() draws the same A from the same seed, another from another, within PEFT's bound", () => {
  const values = (seed: number) => {
    const { adapter } = withLora(clip, { targetModules: ["q_proj", "patch_embedding"], r: 4, seed });
    const all = adapter.modules.map(({ A }) => Float32Array.from(A.dataSync()));
    for (const { A, B } of adapter.modules) {
      // kaiming_uniform_(a=sqrt(5)) draws from ±1/sqrt(inputs) (peft/tuners/lora/layer.py, reset_lora_parameters).
      const bound = 1 / Math.sqrt(A.shape[1]);
      const largest = Math.max(...A.dataSync().map(Math.abs));
      assert.ok(largest <= bound && largest > 0.8 * bound, `${largest} of ${bound}`);
      assert.ok(B.dataSync().every((b) => b === 0));
    }
    adapter.dispose();
    return all;
  };
  const [first, again, other] = [values(5), values(5), values(6)];
  first.forEach((A, i) => expectSame(A, again[i]));
  first.forEach((A, i) => assert.notDeepEqual(A, other[i]));
  assert.notDeepEqual(first[0], first[1], "two modules have their own numbers");
});

test("scaleOf() is alpha / r, or alpha / sqrt(r) with rsLoRA", () => {
  assert.equal(scaleOf({ loraAlpha: 16, r: 64, useRslora: false }), 0.25);
  assert.equal(scaleOf({ loraAlpha: 16, r: 64, useRslora: true }), 2);
});

test("dropout acts while training alone, with the same draws from the same seed", () => {
  const options = { ...KINDS.LoRA, loraDropout: 0.5, seed: 3 };
  const run = () => {
    const { model, adapter } = withLora(clip, options);
    stir(adapter);
    const still = logits(model, x);
    adapter.training(true);
    const moved = [logits(model, x), logits(model, x)];
    adapter.training(false);
    expectSame(logits(model, x), still);
    adapter.dispose();
    return [still, ...moved];
  };
  const [still, first, second] = run();
  assert.ok(farthest(still, first) > 1e-3, "some inputs are dropped");
  assert.ok(farthest(first, second) > 1e-3, "others the next time");
  run().forEach((again, i) => expectSame(again, [still, first, second][i]));
});

test("gradients reach A, B and the magnitudes, and no frozen weight", () => {
  const { model, adapter } = withLora(clip, KINDS["DoRA of a convolution"]);
  stir(adapter);
  const { grads } = tf.variableGrads(() => lossOf(model, x), adapter.variables);
  assert.equal(Object.keys(grads).length, adapter.variables.length);
  for (const gradient of Object.values(grads)) assert.ok(gradient.dataSync().some((g) => g !== 0));
  tf.dispose(grads);
  adapter.dispose();
});

test("tensors before = tensors after", async () => {
  const adapt = (options: LoraOptions, work: (model: Clip, adapter: Adapter) => void) => () => {
    const { model, adapter } = withLora(clip, options);
    work(model, adapter);
    adapter.dispose();
  };
  for (const options of Object.values(KINDS)) {
    await keepsTensorCount(adapt(options, () => {}));
    await keepsTensorCount(adapt(options, (model) => logits(model, x)));
    await keepsTensorCount(adapt(options, (model) => mergeLora(model).disposeMerged()));
  }
  await keepsTensorCount(() => clip.encodeImage(x.pixels).dispose());
  await keepsTensorCount(() => clip.encodeText(x.ids, x.mask).dispose());
  await keepsTensorCount(() => withTrainable(clip).dispose());
});

test("withTrainable() makes variables of the chosen weights and shares the others", async () => {
  const { model, variables, dispose } = withTrainable(clip, (name) => name.startsWith("text_projection"));
  assert.equal(variables.length, 1);
  assert.equal(model.params.text.project.weight, variables[0] as unknown as tf.Tensor2D);
  assert.equal(model.params.logitScale, clip.params.logitScale);
  expectSame(logits(model, x), logits(clip, x));
  dispose();
  await messageOf(
    () => withTrainable(clip, () => false),
    "no weight was chosen; names look like text_model.embeddings.token_embedding.weight",
  );
  const narrow = await load(MODEL, { dtype: "bfloat16" });
  await keepsTensorCount(() =>
    messageOf(
      () => withTrainable(narrow, (name) => name.startsWith("vision")),
      'is kept in bfloat16, which is frozen; load with { dtype: "float32" }',
    ),
  );
  narrow.dispose();
});
