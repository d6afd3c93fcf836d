import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { SetupError } from "../../src/setup/say.mjs";
import { folderInputs, hashOf, readStamp, runSteps, withLock } from "../../src/setup/step.mjs";
import { oddFolder, sink, write } from "./support";

test("hashOf() tells lists apart that join to the same text", () => {
  assert.notEqual(hashOf(["ab", "c"]), hashOf(["a", "bc"]));
  assert.equal(hashOf(["ab", "c"]), hashOf(["ab", "c"]));
});

test("folderInputs() changes with an edit, a new file and a renamed one, and not with a dotfile", (t) => {
  const folder = oddFolder(t);
  write(folder, { "a.ts": "1", "deep/b.ts": "2" });
  const seen = new Set([hashOf(folderInputs(folder))]);
  write(folder, { ".swap": "x" });
  assert.ok(seen.has(hashOf(folderInputs(folder))));
  for (const change of [
    () => write(folder, { "deep/b.ts": "3" }),
    () => write(folder, { "c.ts": "" }),
    () => renameSync(join(folder, "c.ts"), join(folder, "d.ts")),
  ]) {
    change();
    const hash = hashOf(folderInputs(folder));
    assert.ok(!seen.has(hash));
    seen.add(hash);
  }
  assert.deepEqual(folderInputs(join(folder, "nowhere")), []);
});

test("runSteps() runs a step once, and again when an input changes or its result is gone", async (t) => {
  const folder = oddFolder(t);
  const made = join(folder, "made");
  let input = "1";
  const step = { name: "make", inputs: () => [input], done: () => existsSync(made), run: async () => writeFileSync(made, input) };
  const run = () => runSteps([step], join(folder, "stamps"), { out: sink() });
  assert.deepEqual(await run(), ["make"]);
  assert.deepEqual(await run(), []);
  input = "2";
  assert.deepEqual(await run(), ["make"]);
  assert.equal(readFileSync(made, "utf8"), "2");
  rmSync(made);
  assert.deepEqual(await run(), ["make"]);
});

test("runSteps() stops at a failing step with one paragraph and goes on from it the next time", async (t) => {
  const folder = oddFolder(t);
  const ran: string[] = [];
  let broken = true;
  const steps = ["one", "two", "three"].map((name) => ({
    name,
    inputs: () => [],
    advice: "plug the cable in.",
    async run() {
      ran.push(name);
      if (name === "two" && broken) throw new SetupError("npm ended with code 1", { lines: ["npm error network"] });
    },
  }));
  const run = () => runSteps(steps, join(folder, "stamps"), { out: sink() });
  await assert.rejects(run(), (error: Error) => {
    assert.equal(
      error.message,
      'Set-up stopped at "two": npm ended with code 1. It said:\n  npm error network\nWhat to do: plug the cable in.',
    );
    return true;
  });
  broken = false;
  assert.deepEqual(await run(), ["two", "three"]);
  assert.deepEqual(ran, ["one", "two", "two", "three"]);
});

test("runSteps() tells of a failing soft step once for the same inputs, and the next step runs", async (t) => {
  const folder = oddFolder(t);
  let input = "no compiler";
  const soft = { name: "extra", soft: true, advice: "install g++.", inputs: () => [input], run: () => Promise.reject(new Error("no")) };
  const next = { name: "next", inputs: () => [], run: async () => undefined };
  const told = async () => {
    const out = sink();
    await runSteps([soft, next], join(folder, "stamps"), { out });
    return out.text;
  };
  const first = await told();
  assert.match(first, /stopped at "extra": no\.\nWhat to do: install g\+\+\./);
  assert.match(first, /next: done/);
  assert.equal(await told(), "");
  input = "another compiler";
  assert.match(await told(), /install g\+\+/);
});

test("runSteps() leaves an interrupted step undone", async (t) => {
  const stamps = join(oddFolder(t), "stamps");
  const stop = new AbortController();
  const hang = (_report: unknown, signal?: AbortSignal) =>
    new Promise((_, reject) => signal?.addEventListener("abort", () => reject(new Error("killed")), { once: true }));
  const step = { name: "long", inputs: () => [], run: hang };
  setTimeout(() => stop.abort(new Error("ended by SIGINT")), 20);
  await assert.rejects(runSteps([step], stamps, { signal: stop.signal, out: sink() }), /ended by SIGINT/);
  assert.equal(readStamp(stamps, "long"), undefined);
});

test("readStamp() takes a stamp that was cut off for none", async (t) => {
  const folder = oddFolder(t);
  const step = { name: "a", inputs: () => [], run: async () => undefined };
  await runSteps([step], folder, { out: sink() });
  const [file] = readdirSync(folder);
  writeFileSync(join(folder, file), '{"key": "12');
  assert.deepEqual(await runSteps([step], folder, { out: sink() }), ["a"]);
});

test("withLock() lets one at a time work and takes over from a process that is gone", async (t) => {
  const folder = oddFolder(t);
  let inside = 0;
  const work = async () => {
    assert.equal(++inside, 1);
    await new Promise((resolve) => setTimeout(resolve, 30));
    inside--;
  };
  const out = sink();
  await Promise.all([withLock(folder, work, { out }), withLock(folder, work, { out })]);
  assert.match(out.text, /waiting for it/);
  const gone = spawnSync(process.execPath, ["-e", ""]).pid;
  writeFileSync(join(folder, "lock"), String(gone));
  assert.equal(await withLock(folder, async () => "ran"), "ran");
  assert.equal(existsSync(join(folder, "lock")), false);
});
