import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { nodeProblem } from "../../src/setup/node-version.mjs";
import { nearest, readOptions } from "../../src/setup/options.mjs";
import { ROOT } from "./support";

const KNOWN = { "--headless": "flag", "--no-browser": "flag", "--port": "number" };

test("readOptions() reads flags and numbers in both spellings", () => {
  assert.deepEqual(readOptions(["--headless", "--port", "9000"], KNOWN), { headless: true, port: 9000 });
  assert.deepEqual(readOptions(["--port=9000", "--no-browser"], KNOWN), { port: 9000, noBrowser: true });
  assert.deepEqual(readOptions([], KNOWN), {});
});

test("readOptions() names the argument that is wrong and the nearest known one", () => {
  assert.throws(() => readOptions(["--headles"], KNOWN), /Unknown option "--headles"; did you mean --headless\?/);
  assert.throws(() => readOptions(["--prot", "1"], KNOWN), /did you mean --port\?/);
  assert.throws(() => readOptions(["--zzzzzzzzzzzz"], KNOWN), /known are --headless, --no-browser, --port/);
  assert.throws(() => readOptions(["--port"], KNOWN), /--port takes a whole number from 1 to 65535, got nothing/);
  assert.throws(() => readOptions(["--port", "80.5"], KNOWN), /got "80\.5"/);
  assert.throws(() => readOptions(["--port=70000"], KNOWN), /got "70000"/);
  assert.throws(() => readOptions(["--headless=yes"], KNOWN), /--headless takes no value, got "yes"/);
});

test("nearest() finds the fewest changes and gives up on strangers", () => {
  assert.equal(nearest("strat", ["test", "start", "doctor"]), "start");
  assert.equal(nearest("xyzxyzxyz", ["test", "start"]), undefined);
});

test("nodeProblem() refuses Node below 20.19 and says what to do", () => {
  for (const version of ["v20.19.0", "v20.20.2", "v22.1.0", "v24.19.0"]) assert.equal(nodeProblem(version), undefined, version);
  for (const version of ["v16.20.2", "v18.20.8", "v20.18.3"]) {
    const said = nodeProblem(version);
    assert.match(
      said ?? "",
      new RegExp(`This is Node ${version.replaceAll(".", "\\.")}, and Vitrine needs Node 20\\.19 or newer\\. Install`),
    );
  }
});

test("run.mjs ends a wrong command line with code 1, a sentence and no stack", () => {
  const run = (...args: string[]) =>
    spawnSync(process.execPath, [join(ROOT, "src/setup/run.mjs"), ...args], { encoding: "utf8", cwd: ROOT });
  for (const [args, said] of [
    [["strat"], /Unknown command "strat"; did you mean start\?/],
    [["start", "--headles"], /did you mean --headless\?/],
    [["doctor", "--jsn"], /did you mean --json\?/],
  ] as const) {
    const { status, stderr } = run(...args);
    assert.equal(status, 1);
    assert.match(stderr, said);
    assert.doesNotMatch(stderr, /^\s+at /m);
  }
});
