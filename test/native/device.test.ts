/** No kernel is called on a tensor of a GPU: there is none here, so the names of devices and the backend's word for it are what is tested. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { frozenWeight, isPacked } from "vitrine/engine/frozen";
import { hasNative, nativeKernels, nativeProcessor, runNative } from "vitrine/engine/native";
import { gelu } from "vitrine/nn/ops";
import { keepsTensorCount, messageOf } from "../support/close";
import { runCheck } from "./build";

before(() => engine().then(() => {}));

test("inHostMemory() knows a device's memory by its name", async (t) => {
  const { skip, runs } = await runCheck({ sources: [join(__dirname, "device.cc")], sanitize: "address,undefined", environments: [{}] });
  if (skip) return t.skip(skip);
  assert.deepEqual(runs, ["all right (0)"]);
});

test("where the backend says that a GPU computes, hasNative() is false, ops take TensorFlow's, weights stay plain, a kernel is refused", async () => {
  const backend = tf.backend() as unknown as { isUsingGpuDevice: boolean; binding: object };
  assert.ok(hasNative("activation"));
  const calls = () => assert.fail("a kernel ran");
  const { binding } = backend;
  backend.binding = Object.create(binding, { runKernel: { value: calls } });
  backend.isUsingGpuDevice = true;
  try {
    await keepsTensorCount(() =>
      tf.tidy(() => {
        assert.deepEqual([hasNative("activation"), nativeKernels().size, nativeProcessor()], [false, 0, undefined]);
        gelu(tf.tensor1d([1, 2]));
        const weight = frozenWeight(tf.ones([3, 4]));
        assert.deepEqual([isPacked(weight), weight.dtype, weight.shape], [false, "bfloat16", [3, 4]]);
      }),
    );
    await messageOf(() => runNative("activation", []), 'ask hasNative("activation") first');
  } finally {
    backend.isUsingGpuDevice = false;
    backend.binding = binding;
  }
  assert.ok(hasNative("activation"));
});
