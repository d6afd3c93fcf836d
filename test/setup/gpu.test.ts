/**
 * TensorFlow's CUDA wheel without a GPU. Where VITRINE_GPU_WHEEL names a Python environment that holds it (its package `tensorflow` is enough, without the
 * CUDA libraries), the binding is linked to it, loads, and computes as PyTorch does on its CPU device.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { bindingKey, bindingPlan, compileBinding, findCompiler } from "../../src/setup/binding.mjs";
import { places, tensorflowFolder } from "../../src/setup/places.mjs";
import { installedVersion, lockFile } from "../../src/setup/python.mjs";
import { ORACLE } from "../support/clip";
import { oddFolder, ROOT, write } from "./support";

test("the binding is linked with the wheel of the environment, and anew when the other wheel takes its place", (t) => {
  const root = oddFolder(t);
  const tensorflow = join(places(root).venv, "lib", "python3.12", "site-packages", "tensorflow");
  const wheel = (bytes: number) =>
    ["libtensorflow_cc.so.2", "libtensorflow_framework.so.2"].forEach((name) => writeFileSync(join(tensorflow, name), Buffer.alloc(bytes)));
  assert.equal(bindingKey(root), undefined);
  write(tensorflow, { "include/tensorflow/c/c_api.h": "" });
  wheel(788);
  assert.equal(tensorflowFolder(places(root).venv), tensorflow);
  const plan = bindingPlan(root, tensorflow, "linux");
  assert.deepEqual(plan.libraries, [join(tensorflow, "libtensorflow_cc.so.2"), join(tensorflow, "libtensorflow_framework.so.2")]);
  // Beside the libraries' own $ORIGIN/../nvidia/*/lib, which finds CUDA where pip puts it: the binding asks for no CUDA library itself.
  assert.equal(plan.rpath, tensorflow);
  assert.ok(plan.includes.includes(join(tensorflow, "include")));
  const cpu = bindingKey(root);
  wheel(1096);
  assert.notEqual(bindingKey(root), cpu);
  wheel(788);
  assert.equal(bindingKey(root), cpu);
});

const venv = process.env.VITRINE_GPU_WHEEL;
const skip = venv
  ? false
  : "set VITRINE_GPU_WHEEL to a Python environment with the package tensorflow of src/setup/requirements-gpu.txt (570 MB, --no-deps)";

test("the binding linked with the CUDA wheel computes as PyTorch does on the CPU of a machine without a GPU", { skip }, async (t) => {
  const locked = /^tensorflow==(\S+)/m.exec(readFileSync(lockFile("gpu"), "utf8"))![1];
  assert.equal(installedVersion(venv, "tensorflow"), locked, `tensorflow in ${venv}`);
  const tensorflow = tensorflowFolder(venv);
  const folder = mkdtempSync(join(tmpdir(), "vitrine-gpu-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  mkdirSync(join(folder, "lib"));
  const binding = join(folder, "lib", "tfjs_binding.node");
  const plan = { ...bindingPlan(ROOT, tensorflow), output: binding };
  await compileBinding(plan, await findCompiler(places(ROOT).python), { work: join(folder, "work") });

  const run = (args: string[], env: NodeJS.ProcessEnv = {}) => {
    const preload = ["-r", join(ROOT, "test", "support", "binding.cjs"), "--import", "tsx"];
    const { status, stdout, stderr } = spawnSync(process.execPath, [...preload, ...args], {
      cwd: ROOT,
      env: { ...process.env, VITRINE_TEST_BINDING: binding, ...env },
      encoding: "utf8",
      maxBuffer: 1 << 26,
    });
    assert.equal(status, 0, stdout.slice(-4000) + stderr.slice(-4000));
    return stdout;
  };
  await t.test("it loads, on the CPU, with the CUDA wheel's libraries, and runs kernels and recordings", () => {
    const [loaded, device, kernels, sum] = JSON.parse(
      run([
        "-e",
        `const { engine, tf } = require("vitrine/engine"), { nativeKernels } = require("vitrine/engine/native"), { jit } = require("vitrine/engine/jit");
         engine().then(({ device }) => {
           const maps = require("node:fs").readFileSync("/proc/self/maps", "utf8");
           const twice = jit((x) => tf.matMul(x, x).sum());
           console.log(JSON.stringify([maps.includes(${JSON.stringify(tensorflow)}), device, nativeKernels().size, twice(tf.ones([3, 3])).dataSync()[0]]));
         });`,
      ]),
    );
    assert.deepEqual([loaded, device, sum], [true, "cpu", 27]);
    assert.ok(kernels > 0);
  });
  for (const VITRINE_NATIVE of [undefined, "off"])
    await t.test(`every check of the oracle holds${VITRINE_NATIVE ? ", with TensorFlow's ops alone" : ""}`, () => {
      assert.match(run(["test/parity/run.ts", ORACLE], { VITRINE_NATIVE }), /(\d+) of \1 checks hold/);
    });
});
