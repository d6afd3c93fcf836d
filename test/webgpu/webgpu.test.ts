/** WebGPU, on this machine's GPU or on SwiftShader: the numbers of CLIP and LoRA, our kernels, every user's path, and what goes wrong. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { describe, test } from "node:test";
import type { Check } from "../parity/check";
import { MODEL, ORACLE } from "../support/clip";
import { expectClose } from "../support/close";
import { environment, noWebgpu, onWebgpu } from "../support/webgpu";
import type { Outcome } from "./kernels";
import { paths } from "./paths";

const run = (file: string, call: string) => `return require(${JSON.stringify(join(__dirname, file))}).${call}`;

describe("WebGPU", { skip: noWebgpu }, () => {
  test("CLIP equals PyTorch: every layer, all gradients, ten steps of LoRA and DoRA", async (t) => {
    const checks: Check[] = await onWebgpu(run("parity", `parity(${JSON.stringify(ORACLE)})`));
    assert.ok(checks.length > 50, JSON.stringify(checks));
    for (const part of [/\.blocks\.\d\.resid_post$/, /attn\.pattern$/, /^gradients \(.*weight$/, /^LoRA \(dora\): losses of 10 steps$/])
      assert.ok(
        checks.some(({ check }) => part.test(check)),
        `no check like ${part}`,
      );
    assert.deepEqual(
      checks.filter(({ ok }) => !ok),
      [],
    );
    const nearest = Math.max(...checks.filter(({ tolerance }) => tolerance).map(({ worst, tolerance }) => worst / tolerance));
    t.diagnostic(`${checks.length} checks; the worst uses ${(100 * nearest).toFixed(1)} % of its tolerance`);
  });

  test("kernels equal their formulas on plain JavaScript, forward and gradients, at awkward sizes, in one program each", async () => {
    const outcomes: Outcome[] = await onWebgpu(run("kernels", "kernels()"));
    assert.ok(outcomes.length > 25, JSON.stringify(outcomes));
    for (const { name, worst, programs } of outcomes) {
      assert.ok(worst <= 2e-6, `${name}: worst error ${worst}`);
      assert.equal(programs, name.includes("x 6]") ? 4 : 1, `programs of ${name}`);
    }
  });

  test("embedding, retrieval, taps, training and files give the numbers of the other backend, and leave no tensor", async () => {
    const [got, want] = await Promise.all([onWebgpu(run("paths", `paths(${JSON.stringify(MODEL)})`)), paths(MODEL)]);
    assert.equal(got.error, undefined);
    assert.deepEqual(Object.keys(got.numbers), Object.keys(want.numbers));
    for (const [path, numbers] of Object.entries(want.numbers)) expectClose(got.numbers[path], numbers, 1e-4, path);
    expectClose(got.numbers.loaded, got.numbers.trained, 0, "saved and loaded again");
    assert.deepEqual([got.left, want.left], [0, 0]);
  });

  test("what the GPU refuses is an error where it is read or used; older and newer tensors go on", async () => {
    const { refused, used, older, newer, sync, sums } = await onWebgpu(`
      const { engine, tf } = require("vitrine/engine");
      const { runWgsl } = require("vitrine/engine/wgsl");
      await engine();
      const messageOf = (work) => Promise.resolve().then(work).then(() => "nothing was thrown", (error) => error.message);
      const old = tf.tensor([1, 2]).mul(3);
      await tf.ones([2]).add(old).data();
      const names = Object.fromEntries(Array.from({ length: 9 }, (_, i) => ["a" + i, 1]));
      const tooMany = { name: "tooMany", inputs: names, uniforms: {}, workgroup: 1, code: "fn main(index : i32) { result[index] = " + Object.keys(names).map((n) => n + "[0]").join("+") + "; }" };
      const lost = runWgsl(tooMany, Object.keys(names).map(() => old), { shape: [1], groups: 1, numbers: {} });
      return {
        refused: await messageOf(() => lost.data()),
        used: await messageOf(() => lost.add(old)),
        older: [...(await old.data())],
        newer: [...(await old.add(1).data())],
        sync: await messageOf(() => old.add(1).dataSync()),
        sums: [...(await tf.addN(Array.from({ length: 60 }, (_, i) => old.mul(i))).data())],
      };`);
    assert.match(refused, /^WebGPU: this tensor was never computed, because the GPU refused a command: The number of storage buffers/);
    assert.equal(used, refused);
    assert.deepEqual(
      [older, newer, sums],
      [
        [3, 6],
        [4, 7],
        [3 * 1770, 6 * 1770],
      ],
    );
    assert.equal(
      sync,
      "WebGPU has no synchronous read in Node: write `await x.data()` for x.dataSync(), `await x.array()` for x.arraySync()",
    );
  });

  test("a lost GPU is said, and what to do", async () => {
    const message = await onWebgpu(`
      const { engine, tf } = require("vitrine/engine");
      await engine();
      const x = tf.ones([70_000]).mul(2);
      await x.data();
      tf.backend().device.destroy();
      await new Promise((resolve) => setTimeout(resolve, 50));
      return x.add(1).data().then(() => "nothing was thrown", (error) => error.message);`);
    assert.match(message.error ?? message, /^WebGPU: the GPU was lost \(destroyed.*Start the kernel or program again.*smaller batches/);
  });

  test("no adapter, and a program that does not fit, say what is missing", async () => {
    const none = await onWebgpu(`return require("vitrine/engine").engine()`, { VK_DRIVER_FILES: "/nonexistent", VK_ICD_FILENAMES: "" });
    if (process.platform === "linux")
      assert.match(
        none.error,
        /webgpu \(no adapter: Dawn finds no Vulkan, Metal or D3D12 driver of a GPU; on Linux it needs libvulkan1 and the GPU's driver/,
      );
    const misfit = await onWebgpu(`
      const { engine, tf } = require("vitrine/engine");
      await engine();
      return require("vitrine/engine/wgsl").runWgsl(
        { name: "odd", inputs: { a: 1, b: 1 }, uniforms: { n: "i32" }, workgroup: 1, code: "" }, [tf.tensor([1], [1], "int32")], { shape: [1], groups: 1, numbers: {} })`);
    assert.equal(
      misfit.error,
      "WGSL program odd: 1 inputs, expected a, b; a is int32, expected float32; n is undefined, expected a number",
    );
  });

  test("doctor names the adapter, and says whether it is a GPU", async () => {
    const { why } = await onWebgpu(`return require("vitrine/engine").engine()`);
    const script = join(__dirname, "..", "..", "src", "setup", "run.mjs");
    const { stdout } = spawnSync(process.execPath, [script, "doctor", "--json"], { env: environment, encoding: "utf8" });
    const row = JSON.parse(stdout).find(({ part }: { part: string }) => part === "WebGPU");
    assert.ok(why.includes(row.version), `${row.version} is not in "${why}"`);
    assert.equal(row.found, !why.includes("software"));
    assert.match(row.fix, /Vulkan driver/);
  });

  test("a software adapter is named as one, and is not taken unless asked for", async (t) => {
    const asked = await onWebgpu(`return require("vitrine/engine").engine()`);
    if (asked.device === "gpu") return t.skip(`this machine has a GPU: ${asked.why}`);
    assert.match(asked.why, /^WebGPU on a software adapter \(.+\), slower than wasm$/);
    const unasked = await onWebgpu(
      `const Module = require("node:module");
       const load = Module._load;
       Module._load = (name, ...rest) => { if (name === "@tensorflow/tfjs-node-gpu") throw new Error("no binding here"); return load(name, ...rest); };
       return require("vitrine/engine").engine()`,
      { VITRINE_BACKEND: "" },
    );
    assert.equal(unasked.backend, "wasm");
    assert.match(unasked.why, /webgpu \(only .+, which is no GPU; VITRINE_BACKEND=webgpu takes it all the same\)/);
  });
});
