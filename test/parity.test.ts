/** Our numbers against PyTorch's: every check of test/oracle, and what `npm run oracle` says of a damaged or empty folder. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { openSafetensors } from "vitrine/files/safetensors";
import { oracleTable, runOracle } from "./parity/run";
import { ORACLE, scratch } from "./support/clip";

/** Folders of test/oracle that stand in the layout and whose models do not exist here yet. */
const NOT_FAMILIES = ["rope", "language", "generation", "nf4", "checkpoints", "processor", "resize"];

const whole = runOracle(ORACLE);

test("runOracle() equals PyTorch in every check", async (t) => {
  const { checks, unknown } = await whole;
  t.diagnostic(`families not checked here: ${unknown.join(", ") || "none"}`);
  assert.deepEqual(
    unknown.filter((family) => !NOT_FAMILIES.includes(family)),
    [],
    "a family of the oracle that nothing checks",
  );
  assert.equal(new Set(checks.map((c) => `${c.family} ${c.check}`)).size, checks.length, "two checks of one name");
  for (const c of checks)
    await t.test(`${c.family}: ${c.check}`, () =>
      assert.ok(c.ok, `worst error ${c.worst}, tolerance ${c.tolerance}${c.note ? `; ${c.note}` : ""}`),
    );
});

test("runOracle() checks the chat templates of every family that the oracle has conversations of", async () => {
  const { checks } = await whole;
  const having = readdirSync(ORACLE).filter((family) => {
    const path = join(ORACLE, family, "cases.json");
    return existsSync(path) && "chat" in JSON.parse(readFileSync(path, "utf8"));
  });
  assert.ok(having.length > 8);
  for (const family of having) {
    const rows = checks.filter((c) => c.family === family && c.check.startsWith("templates: ")).map(({ check }) => check);
    assert.ok(rows.includes("templates: rendered to be answered") && rows.includes("templates: ids"), `${family}: ${rows}`);
  }
});

test("runOracle() checks every part of CLIP that the oracle holds", async () => {
  const { checks } = await whole;
  const cases = JSON.parse(readFileSync(join(ORACLE, "clip", "cases.json"), "utf8"));
  const names = checks.filter((c) => c.family === "clip").map((c) => c.check);
  const count = (pattern: RegExp) => names.filter((name) => pattern.test(name)).length;
  const [forward] = cases.forward;
  assert.equal(count(/^(vision|text)\.blocks\.\d+\.attn\.pattern$/), forward.vision_attention.length + forward.text_attention.length);
  assert.equal(count(/^(vision|text)\.blocks\.\d+\.resid_/), forward.vision_hidden.length + forward.text_hidden.length);
  assert.equal(
    count(/^gradients \(\w+\): [\w.]+\.(weight|bias)$|class_embedding$|logit_scale$/),
    Object.keys(cases.gradients[0].gradients).length,
  );
  for (const { name, first_step_gradients } of cases.lora) {
    const start = `LoRA (${name}): `;
    assert.equal(names.filter((n) => n.startsWith(`${start}first gradient`)).length, Object.keys(first_step_gradients).length);
    for (const part of [
      "logits before",
      "losses of 10 steps",
      "loss after",
      "gradient norms",
      "learning rates",
      "PEFT's trained adapter",
      "merged",
    ])
      assert.ok(names.includes(start + part), `no check "${start}${part}"`);
  }
});

test("the oracle's command ends with 0 when all hold, with 1 and the check's name when one number is wrong", async () => {
  const [good, bad] = [forwardOnly(), forwardOnly()];
  damage(join(bad, "clip", "arrays.safetensors"), "image_embeds");
  const [fine, failed] = await Promise.all([oracleCommand(good), oracleCommand(bad)]);
  assert.equal(fine.code, 0, fine.stdout + fine.stderr);
  assert.equal(failed.code, 1, failed.stdout + failed.stderr);
  const wrong = failed.stdout.split("\n").filter((line) => line.includes("FAIL"));
  assert.equal(wrong.length, 1, failed.stdout);
  assert.match(wrong[0], /^clip\s+image embeddings\s+\d/);
  assert.match(failed.stdout, /\d+ of \d+ checks hold; families not known here: new_family/);
});

test("the oracle's command ends with 1 and a reason where there is nothing to check", async () => {
  const stranger = scratch();
  addFamily(stranger);
  const [empty, unnamed, unknown] = await Promise.all([oracleCommand(scratch()), oracleCommand(), oracleCommand(stranger)]);
  assert.deepEqual([empty.code, unnamed.code, unknown.code], [1, 1, 1]);
  assert.match(empty.stderr, /holds no family \(a folder with cases\.json\)/);
  assert.match(unnamed.stderr, /name the oracle's folder: npm run oracle -- DIR/);
  assert.match(unknown.stdout, /0 of 0 checks hold; families not known here: new_family/);
});

test("oracleTable() lines up its columns and marks what fails", () => {
  const table = oracleTable([
    { family: "clip", check: "loss", worst: 2e-7, tolerance: 1e-5, ok: true },
    { family: "clip", check: "a longer name", worst: 0.5, tolerance: 1e-5, ok: false, note: "mean error" },
  ]).split("\n");
  assert.equal(table.length, 3);
  const starts = (line: string, words: string[]) => words.map((word) => line.indexOf(word));
  assert.deepEqual(
    starts(table[1], ["loss", "2.0e-7", "1.0e-5", "ok"]),
    starts(table[0], ["check", "worst error", "tolerance", "verdict"]),
  );
  assert.deepEqual(starts(table[2], ["a longer name", "5.0e-1", "FAIL"]), starts(table[0], ["check", "worst error", "verdict"]));
  assert.match(table[2], /mean error$/);
});

/** A folder with the oracle's CLIP, only its forward cases so that it is quick, and a family that nobody knows. */
function forwardOnly(): string {
  const folder = scratch();
  cpSync(join(ORACLE, "clip"), join(folder, "clip"), { recursive: true });
  const { forward } = JSON.parse(readFileSync(join(ORACLE, "clip", "cases.json"), "utf8"));
  writeFileSync(join(folder, "clip", "cases.json"), JSON.stringify({ forward }));
  addFamily(folder);
  return folder;
}

function addFamily(folder: string): void {
  mkdirSync(join(folder, "new_family"));
  writeFileSync(join(folder, "new_family", "cases.json"), "{}");
}

/** Adds 1 to the first number of an array in a safetensors file. */
function damage(path: string, name: string): void {
  const file = openSafetensors(path);
  const wanted = Buffer.from(file.tensors.get(name)!.read());
  file.close();
  const bytes = readFileSync(path);
  const at = bytes.indexOf(wanted);
  assert.ok(at > 0);
  bytes.writeFloatLE(bytes.readFloatLE(at) + 1, at);
  writeFileSync(path, bytes);
}

function oracleCommand(...args: string[]): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const child = spawn(process.execPath, ["--import", "tsx", join(__dirname, "parity", "run.ts"), ...args], { cwd: join(__dirname, "..") });
  let [stdout, stderr] = ["", ""];
  child.stdout.on("data", (text) => {
    stdout += text;
  });
  child.stderr.on("data", (text) => {
    stderr += text;
  });
  return new Promise((resolve) => child.once("close", (code) => resolve({ code, stdout, stderr })));
}
