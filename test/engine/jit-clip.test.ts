/** The oracle's CLIP recorded and replayed: the same numbers as TensorFlow's ops one by one, in both dtypes, gradients included. */
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { isBfloat16 } from "vitrine/engine/bfloat16";
import { isPacked } from "vitrine/engine/frozen";
import { jit } from "vitrine/engine/jit";
import { hasNative, withoutNative } from "vitrine/engine/native";
import { type Clip, load } from "vitrine/models";
import { type Adapter, withLora } from "vitrine/nn/lora";
import { adamW } from "vitrine/train/adamw";
import { type Inputs, inputs, lossOf, MODEL } from "../support/clip";
import { expectClose, keepsTensorCount } from "../support/close";
import { stir } from "../support/lora";

before(() => engine().then(() => {}));

/** Loss and every gradient of an adapter. */
function gradients(model: Clip, adapter: Adapter, x: Inputs): { value: tf.Scalar; list: tf.Tensor[] } {
  const { value, grads } = tf.variableGrads(() => lossOf(model, x), adapter.variables);
  return { value, list: adapter.variables.map((v) => grads[v.name]!) };
}

const scale = (x: tf.Tensor): number => tf.tidy(() => x.abs().max().dataSync()[0]!);

/** Replayed numbers against the plain function's, on the scale of the largest. */
function expectReplay(got: tf.Tensor, want: tf.Tensor, tolerance: number, what: string): void {
  assert.deepEqual(got.shape, want.shape, what);
  expectClose(got.dataSync(), want.dataSync(), tolerance * Math.max(scale(want), 1e-6), what);
}

/**
 * Of the largest number. TensorFlow may add in another order inside of a function; where numbers are rounded to bfloat16 on the way, one that lies between
 * two of them may then go the other way: a unit in the last of 8 bits.
 */
const TOLERANCE = { float32: 3e-6, bfloat16: 2 ** -7 } as const;

for (const dtype of ["float32", "bfloat16"] as const)
  test(`CLIP in ${dtype}: encodeImage, encodeText, loss and the LoRA gradient are replayed as they run`, async (t) => {
    const before = tf.memory();
    const clip = await load(MODEL, { dtype });
    const x = inputs();
    const { model, adapter } = withLora(clip, {
      targetModules: ["q_proj", "v_proj", "fc1"],
      r: 3,
      loraAlpha: 6,
      useDora: dtype === "float32",
    });
    stir(adapter);
    const weight = clip.params.vision.blocks[0]!.mlp.fc1.weight;
    assert.deepEqual([isBfloat16(weight), isPacked(weight)], [dtype === "bfloat16", dtype === "bfloat16" && hasNative("linear")]);
    const tolerance = TOLERANCE[dtype];

    const image = jit((pixels: tf.Tensor4D) => clip.encodeImage(pixels), { name: "encodeImage" });
    const text = jit((ids: tf.Tensor2D, mask: tf.Tensor2D) => clip.encodeText(ids, mask), { name: "encodeText" });
    const step = jit((batch: Inputs) => gradients(model, adapter, batch), { name: "step" });
    const compiled = jit((pixels: tf.Tensor4D) => clip.encodeImage(pixels), { name: "encodeImage", xla: true });
    const recorded: { dispose(): void }[] = [image, text, step, compiled];

    await t.test("forward", () =>
      tf.tidy(() => {
        const images = withoutNative(() => clip.encodeImage(x.pixels));
        expectReplay(image(x.pixels), images, tolerance, "images");
        expectReplay(compiled(x.pixels), images, tolerance, "images, compiled by XLA");
        expectReplay(text(x.ids, x.mask), withoutNative(() => clip.encodeText(x.ids, x.mask)), tolerance, "texts"); // biome-ignore format: one line
      }),
    );
    await t.test("gradients, while an optimiser changes the adapter; no tensor stays", async () => {
      const optimiser = adamW(adapter.variables);
      tf.dispose(step(x) as never);
      await keepsTensorCount(() => {
        for (let i = 0; i < 3; i++)
          tf.tidy(() => {
            const [got, want] = [step(x), withoutNative(() => gradients(model, adapter, x))];
            expectReplay(got.value, want.value, tolerance, `loss ${i}`);
            const most = Math.max(...want.list.map(scale));
            got.list.forEach((g, k) => expectClose(g.dataSync(), want.list[k]!.dataSync(), tolerance * most, `gradient ${k} of step ${i}`));
            optimiser.step(got.list, 0.01);
          });
      });
      optimiser.dispose();
    });
    await t.test("speed", () => {
      const [replayed, eager] = [() => step(x), () => gradients(model, adapter, x)].map((run) => () => tf.dispose(run() as never));
      const best = (run: () => void) => Math.min(...Array.from({ length: 5 }, () => time(run)));
      const { recorded: ops, nodes, captured } = step.recordings()[0]!;
      t.diagnostic(
        `${ops} ops, ${nodes} needed, ${captured} captured: eager ${best(eager).toFixed(0)} ms, TensorFlow's ops alone ` +
          `${best(() => withoutNative(eager)).toFixed(0)} ms, replayed ${best(replayed).toFixed(0)} ms`,
      );
      assert.ok(nodes <= ops);
    });
    recorded.forEach((one) => one.dispose());
    adapter.dispose();
    clip.dispose();
    tf.dispose(x as never);
    assert.deepEqual([tf.memory().numTensors, tf.memory().numBytes], [before.numTensors, before.numBytes]);
  });

function time(run: () => void): number {
  const start = performance.now();
  run();
  return performance.now() - start;
}

test("recordings share the plain form of a packed weight, and keep it while one lives", async (t) => {
  if (!hasNative("linear")) return t.skip("this processor has no bfloat16 instructions: no weight is packed");
  const clip = await load(MODEL, { dtype: "bfloat16" });
  const { pixels, ids, mask } = inputs();
  const [first, second] = [1, 2].map((n) => jit((x: tf.Tensor4D) => clip.encodeImage(x).mul(n)));
  const bytes = () => tf.memory().numBytes;
  const buffers = () => tf.memory().numDataBuffers;
  const start = [bytes(), buffers()];
  first!(pixels).dispose();
  const one = buffers() - start[1]!;
  assert.ok(one > 0, "the plain forms are held");
  second!(pixels).dispose();
  assert.equal(buffers() - start[1]!, one, "and shared");
  first!.dispose();
  assert.equal(buffers() - start[1]!, one);
  second!(pixels).dispose();
  second!.dispose();
  assert.deepEqual([bytes(), buffers()], start);
  clip.dispose();
  tf.dispose([pixels, ids, mask]);
});
