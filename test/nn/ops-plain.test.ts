/** The formulas' own gradients, which native kernels stand in for elsewhere: the decoders' trials of ops.test.ts again, in plain JavaScript. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { decoderTrials } from "./decoder-trials";

test("formulas and gradients of the decoders' ops hold on the plain JavaScript backend", () => {
  const names = Object.keys(decoderTrials(() => assert.fail("no case is made")));
  const program = ["--import", "tsx", "--test", "--test-reporter=tap", `--test-name-pattern=^(${names.join("|")}): `];
  const { NODE_TEST_CONTEXT, ...env } = process.env; // would make the child report to this runner
  const { stdout } = spawnSync(process.execPath, [...program, join(__dirname, "ops.test.ts")], {
    cwd: join(__dirname, "..", ".."),
    env: { ...env, VITRINE_BACKEND: "cpu" },
    encoding: "utf8",
  });
  assert.match(stdout, /^# fail 0$/m, stdout);
  assert.match(stdout, new RegExp(`^# pass ${2 * names.length}$`, "m"), "two tests for each op");
});
