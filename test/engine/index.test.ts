/** Which backend computes: the choice is once a process, so each trial is a process of its own. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { MODEL, ORACLE } from "../support/clip";

/** Runs a program with VITRINE_BACKEND set; its last line of output is JSON. */
// biome-ignore lint/suspicious/noExplicitAny: each program has an answer of its own
function under(backend: string | undefined, program: string, env: NodeJS.ProcessEnv = {}): Promise<{ answer?: any; stderr: string }> {
  const wrapped = `(async () => { ${program} })().then((x) => console.log("\\n" + JSON.stringify(x)), (e) => console.log("\\n" + JSON.stringify({ error: e.message })))`;
  const child = spawn(process.execPath, ["--import", "tsx", "-e", wrapped], {
    cwd: join(__dirname, "..", ".."),
    env: { ...process.env, VITRINE_BACKEND: backend, ...env },
  });
  let [stdout, stderr] = ["", ""];
  child.stdout.on("data", (text) => {
    stdout += text;
  });
  child.stderr.on("data", (text) => {
    stderr += text;
  });
  return new Promise((resolve) =>
    child.once("close", () => resolve({ answer: JSON.parse(stdout.trim().split("\n").pop() || "null"), stderr })),
  );
}

/** The oracle's forward pass in float32, the gradients of one LoRA step, and what bfloat16 says. */
const FORWARD = `
  const { engine, tf } = require("vitrine/engine");
  const { load } = require("vitrine/models");
  const { withLora } = require("vitrine/nn/lora");
  const { runOracle } = require("./test/parity/run");
  const chosen = await engine();
  const { mkdtempSync, cpSync, rmSync, readFileSync, writeFileSync } = require("node:fs");
  const { join } = require("node:path");
  const folder = mkdtempSync(join(require("node:os").tmpdir(), "vitrine-backend-"));
  cpSync(${JSON.stringify(join(ORACLE, "clip"))}, join(folder, "clip"), { recursive: true });
  const cases = JSON.parse(readFileSync(join(folder, "clip", "cases.json"), "utf8"));
  writeFileSync(join(folder, "clip", "cases.json"), JSON.stringify({ forward: cases.forward, gradients: cases.gradients, lora: cases.lora.slice(1, 2) }));
  const { checks } = await runOracle(folder);
  rmSync(folder, { recursive: true });
  let refusal = "nothing";
  try { await load(${JSON.stringify(MODEL)}, { dtype: "bfloat16" }); } catch (error) { refusal = error.message; }
  return { chosen, backend: tf.getBackend(), checks, refusal };`;

test("engine() says in one line what computes, once a process", async () => {
  const [first, second] = await Promise.all([engine(), engine()]);
  assert.equal(first, second);
  assert.equal(first.backend, tf.getBackend());
  assert.doesNotMatch(first.why, /\n/);
  assert.match(
    first.why,
    first.backend === "tensorflow" ? /^TensorFlow on the (GPU|CPU, \d+ threads)/ : /passed over tensorflow \(.+\).*`vitrine doctor`/,
  );
  assert.equal(first.bfloat16, first.backend === "tensorflow");
});

const CASES = { wasm: "WebAssembly", cpu: "plain JavaScript" };
const runs = Object.fromEntries(Object.keys(CASES).map((backend) => [backend, under(backend, FORWARD)]));

for (const [backend, title] of Object.entries(CASES))
  test(`VITRINE_BACKEND=${backend}: CLIP equals the oracle in float32, forward, gradients and LoRA; bfloat16 is refused`, async () => {
    const { answer, stderr } = await runs[backend];
    assert.equal(answer?.error, undefined, stderr);
    assert.equal(answer.backend, backend);
    assert.deepEqual({ ...answer.chosen, why: "" }, { backend, device: "cpu", bfloat16: false, why: "" });
    assert.match(answer.chosen.why, new RegExp(`^${title} on the CPU`));
    assert.ok(answer.checks.length > 40);
    const failed = answer.checks.filter((check: { ok: boolean }) => !check.ok);
    assert.deepEqual(failed, []);
    assert.match(
      answer.refusal,
      /dtype "bfloat16" needs the TensorFlow backend, here computes .*\. Use "float32", or see `npm run doctor`/,
    );
    assert.doesNotMatch(stderr, /speed up|tfjs-node/i, "no advertisement");
  });

test("VITRINE_BACKEND=wasm leaves an error that nobody caught to the program", async () => {
  const { answer, stderr } = await under(
    "wasm",
    `const { engine } = require("vitrine/engine");
     const seen = [];
     process.on("uncaughtException", (error) => seen.push(error.message));
     process.on("unhandledRejection", (error) => seen.push(error.message));
     await engine();
     setTimeout(() => { throw new Error("late"); }, 1);
     Promise.reject(new Error("lost"));
     await new Promise((resolve) => setTimeout(resolve, 100));
     return seen.sort();`,
  );
  assert.deepEqual(answer, ["late", "lost"], stderr);
});

test("VITRINE_BACKEND of a wrong name is refused and the right ones are listed", async () => {
  const { answer } = await under("tensorflw", `await require("vitrine/engine").engine()`);
  assert.equal(
    answer.error,
    'VITRINE_BACKEND is "tensorflw"; expected one of tensorflow, webgpu, wasm, cpu (or unset: the best that works)',
  );
});

test("VITRINE_THREADS is taken and said; the thread count is that of the machine otherwise", async () => {
  const { answer } = await under(undefined, `return (await require("vitrine/engine").engine()).why`, { VITRINE_THREADS: "1" });
  assert.match(String(answer), /CPU, 1 threads?|GPU/);
});

test("a named backend that cannot start fails with its reason and where to look", async () => {
  const { answer } = await under(
    "tensorflow",
    `const Module = require("node:module");
     const load = Module._load;
     Module._load = (name, ...rest) => { if (name === "@tensorflow/tfjs-node-gpu") throw new Error("no binding here\\nsecond line"); return load(name, ...rest); };
     return (await require("vitrine/engine").engine()).why`,
  );
  assert.equal(answer.error, "no compute backend could start: tensorflow (no binding here). Run `npm run doctor` for what is missing.");
});
