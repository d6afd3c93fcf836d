import assert from "node:assert/strict";
import { before, test } from "node:test";
import { tf } from "vitrine/engine";
import { answerLogProb } from "vitrine/inside/answer";
import { gradientsAt } from "vitrine/inside/gradients";
import { type Clip, load } from "vitrine/models";
import { edit, type Tap } from "vitrine/nn/tap";
import { inputs, type Inputs, loadClip } from "../support/clip";
import { expectClose, keepsTensorCount, messageOf } from "../support/close";
import { talker } from "./support";

let clip: Clip;
let x: Inputs;
before(async () => {
  clip = await loadClip();
  x = inputs();
});

/** Similarity of the first picture and the first caption, not normalised. */
const similarity =
  (model: Clip) =>
  (tap: Tap): tf.Scalar =>
    tf.tidy(() => {
      const text = model.encodeText(x.ids, x.mask).slice([0, 0], [1, -1]);
      return model
        .encodeImage(x.pixels.slice([0, 0, 0, 0], [1, -1, -1, -1]), tap)
        .mul(text)
        .sum() as tf.Scalar;
    });

/** The slope of `loss` along a direction at one activation, by central differences. */
function slope(name: string, loss: (tap: Tap) => tf.Scalar, direction: tf.Tensor, step: number): number {
  const shifted = (sign: number) => tf.tidy(() => loss(edit(name, (y) => y.add(direction.mul(sign * step))).tap).dataSync()[0]);
  return (shifted(1) - shifted(-1)) / (2 * step);
}

for (const name of ["vision.embed", "vision.blocks.0.attn.pattern", "vision.blocks.1.resid_mid", "vision.blocks.2.mlp.post"])
  test(`gradientsAt() ${name} agrees with finite differences`, () => {
    const loss = similarity(clip);
    const found = gradientsAt(name, loss);
    assert.deepEqual(found.names, [name]);
    const gradient = found.gradient(name);
    assert.deepEqual(gradient.shape, found.activation(name).shape);
    const direction = tf.randomNormal(gradient.shape, 0, 1, "float32", 7);
    const want = slope(name, loss, direction, name.endsWith("pattern") ? 1e-2 : 5e-3);
    const [got] = tf.tidy(() => gradient.mul(direction).sum().dataSync());
    assert.ok(Math.abs(got - want) < 2e-3 * Math.max(1, Math.abs(want)), `${got}, by differences ${want}`);
    assert.ok(Math.abs(got) > 1e-3, "the direction matters");
    expectClose(
      found.value.dataSync(),
      tf.tidy(() => loss(edit("vision.embed", (y) => y.clone()).tap).dataSync()),
      1e-5,
    );
    direction.dispose();
    found.dispose();
  });

test("gradientsAt() gives several activations of one run, and leaves nothing behind", async () => {
  await keepsTensorCount(() => {
    const found = gradientsAt(/attn\.pattern$/, similarity(clip));
    assert.deepEqual(
      found.names,
      [0, 1, 2].map((i) => `vision.blocks.${i}.attn.pattern`),
    );
    for (const name of found.names) {
      const sums = tf.tidy(() => found.activation(name).sum(-1).dataSync());
      expectClose(sums, new Float32Array(sums.length).fill(1), 1e-5);
    }
    found.dispose();
  });
  await messageOf(() => gradientsAt("vision.blocks.9.attn.z", similarity(clip)), "vision.blocks.9.attn.z met none of the 43 activations");
  const found = gradientsAt("resid_post", similarity(clip));
  await messageOf(() => found.gradient("vision.out"), 'nothing is kept of "vision.out"; there are vision.blocks.0.resid_post');
  found.dispose();
});

test("gradientsAt() what the loss does not read is zero", () => {
  const found = gradientsAt(["vision.blocks.1.attn.v", "text.blocks.0.resid_post"], (tap) =>
    tf.tidy(() => {
      clip.encodeText(x.ids, x.mask, tap);
      return clip.encodeImage(x.pixels, tap).sum() as tf.Scalar;
    }),
  );
  assert.equal(
    tf.tidy(() => found.gradient("text.blocks.0.resid_post").abs().max().dataSync()[0]),
    0,
  );
  assert.ok(tf.tidy(() => found.gradient("vision.blocks.1.attn.v").abs().max().dataSync()[0]) > 0);
  found.dispose();
});

test("gradientsAt() with weights in bfloat16 is near that of float32", async () => {
  const half = await load(clip.folder, { dtype: "bfloat16" });
  const name = "vision.blocks.1.resid_mid";
  const [wide, narrow] = [clip, half].map((model) => gradientsAt(name, similarity(model)));
  const [a, b] = [wide, narrow].map((found) => found.gradient(name).dataSync());
  const most = Math.max(...Array.from(a, Math.abs));
  expectClose(b, a, 0.1 * most);
  wide.dispose();
  narrow.dispose();
  half.dispose();
});

test("gradientsAt() of an answer's log-probability agrees with finite differences", async () => {
  const { model, asked } = await talker();
  for (const name of ["language.blocks.0.resid_pre", "language.blocks.1.attn.pattern", "projector"]) {
    const loss = (tap: Tap) => answerLogProb(model, asked, { tap });
    const found = gradientsAt(name, loss);
    const direction = tf.randomNormal(found.gradient(name).shape, 0, 1, "float32", 3);
    const want = slope(name, loss, direction, 2e-3);
    const [got] = tf.tidy(() => found.gradient(name).mul(direction).sum().dataSync());
    assert.ok(Math.abs(got - want) < 1e-2 * Math.max(1, Math.abs(want)), `${name}: ${got}, by differences ${want}`);
    direction.dispose();
    found.dispose();
  }
  model.dispose();
});
