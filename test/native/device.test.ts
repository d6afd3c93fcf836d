/** No kernel is called on a tensor of a GPU: there is none here, so the names of devices and the backend's word for it are what is tested. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { frozenWeight, isPacked } from "vitrine/engine/frozen";
import { hasNative, nativeKernels, nativeProcessor, runNative } from "vitrine/engine/native";
import { gelu, linearProduct } from "vitrine/nn/ops";
import { expectClose, keepsTensorCount, messageOf } from "../support/close";
import { runCheck } from "./build";

before(() => engine().then(() => {}));

test("inHostMemory() knows a device's memory by its name", async (t) => {
  const { skip, runs } = await runCheck({ sources: [join(__dirname, "device.cc")], sanitize: "address,undefined", environments: [{}] });
  if (skip) return t.skip(skip);
  assert.deepEqual(runs, ["all right (0)"]);
});

type Backend = { isUsingGpuDevice: boolean; binding: object };

/** What is expected where kernels cannot be: ops take TensorFlow's, and frozen weights stay plain, which is what these multiply with. */
async function withoutKernels(): Promise<void> {
  await keepsTensorCount(() =>
    tf.tidy(() => {
      assert.deepEqual([hasNative("activation"), nativeKernels().size, nativeProcessor()], [false, 0, undefined]);
      expectClose(gelu(tf.tensor1d([1, -1])).dataSync(), [0.8413447, -0.1586553], 1e-6);
      const weight = frozenWeight(tf.tensor2d([[1, 2], [3, 4], [5, 6]])); // biome-ignore format: one line
      assert.deepEqual([isPacked(weight), weight.dtype, weight.shape], [false, "bfloat16", [3, 2]]);
      expectClose(linearProduct(tf.tensor2d([[1, 10]]), weight).dataSync(), [21, 43, 65], 0.25);
    }),
  );
  await messageOf(() => runNative("activation", []), 'ask hasNative("activation") first');
}

test("where the backend says that a GPU computes, no kernel is called", async () => {
  const backend = tf.backend() as unknown as Backend;
  assert.ok(hasNative("activation"));
  const { binding } = backend;
  backend.binding = Object.create(binding, { runKernel: { value: () => assert.fail("a kernel ran") } });
  backend.isUsingGpuDevice = true;
  try {
    await withoutKernels();
  } finally {
    backend.isUsingGpuDevice = false;
    backend.binding = binding;
  }
  assert.ok(hasNative("activation"));
});

test("with a stock binding TensorFlow's ops compute", async () => {
  const backend = tf.backend() as unknown as Backend;
  const { binding } = backend;
  backend.binding = Object.create(binding, { runKernel: { value: undefined } });
  try {
    await withoutKernels();
  } finally {
    backend.binding = binding;
  }
});

test("on a processor without bfloat16 instructions a bfloat16 model runs, its products TensorFlow's", () => {
  const program = `
    const { tf } = require("vitrine/engine"), { isPacked } = require("vitrine/engine/frozen"), native = require("vitrine/engine/native");
    const { load } = require("vitrine/models"), { cosine } = require("./test/support/close.ts");
    const run = async (dtype) => {
      const clip = await load("emoji-clip", { dtype });
      const packed = isPacked(clip.params.vision.blocks[0].mlp.fc1.weight);
      const [width] = [clip.config.vision_config.image_size];
      return { packed, y: clip.encodeImage(tf.linspace(-2, 2, 3 * width * width).sin().reshape([1, width, width, 3])).dataSync() };
    };
    Promise.all(["float32", "bfloat16"].map(run)).then(([wide, narrow]) =>
      console.log(JSON.stringify([native.nativeProcessor().level, native.hasNative("linear"), narrow.packed, cosine(wide.y, narrow.y)])));`;
  const { stdout, stderr } = spawnSync(process.execPath, ["--import", "tsx", "-e", program], {
    cwd: join(__dirname, "..", ".."),
    env: { ...process.env, VITRINE_LEVEL: "base" },
    encoding: "utf8",
  });
  const [level, linear, packed, likeness] = JSON.parse(stdout || `["${stderr.slice(-500)}"]`);
  assert.deepEqual([level, linear, packed], ["base", false, false]);
  assert.ok(likeness > 0.9999, `cosine ${likeness}`);
});
