// npm test: set-up, biome and tsc, then node:test over test/**/*.test.ts.
// npm test -- safetensors image/ --test-name-pattern=crop   only the files whose path holds one of the words
import { join } from "node:path";
import { check } from "./check.mjs";
import { runNode } from "./file.mjs";
import { nearest } from "./options.mjs";
import { ROOT } from "./places.mjs";
import { SetupError } from "./say.mjs";
import { setup } from "./setup.mjs";
import { listFiles } from "./step.mjs";

const LONG = /jupyter|notebook|browser|kernel|package|pack\b/; // start a Jupyter or an npm: last, so that quick failures show first

/** Test files of this checkout in the order in which they run; `words` choose by path. (Node 20 has no globs.) */
export function chooseTests(root, words = []) {
  const all = listFiles(join(root, "test"))
    .filter((path) => path.endsWith(".test.ts") && !path.startsWith("oracle/"))
    .map((path) => `test/${path}`);
  const stray = words.find((word) => !all.some((path) => path.includes(word)));
  if (stray !== undefined) {
    const names = all.map((path) => path.replace(/^test\/(.*\/)?|\.test\.ts$/g, ""));
    const near = nearest(stray, names);
    throw new SetupError(`no test file has "${stray}" in its path${near ? `; did you mean ${near}?` : ""}`, {
      advice: "npm test -- WORD runs the files under test/ whose path holds WORD.",
    });
  }
  const chosen = words.length ? all.filter((path) => words.some((word) => path.includes(word))) : all;
  return [...chosen.filter((path) => !LONG.test(path)), ...chosen.filter((path) => LONG.test(path))];
}

export async function main(args, { signal }) {
  const flags = args.filter((arg) => arg.startsWith("--test-"));
  const odd = args.find((arg) => arg.startsWith("-") && !flags.includes(arg));
  if (odd)
    throw new SetupError(`Unknown option "${odd}"`, {
      advice: "npm test -- [WORD …] [--test-name-pattern=…]; options of node:test start with --test-.",
    });
  await setup(ROOT, { signal });
  const files = chooseTests(
    ROOT,
    args.filter((arg) => !arg.startsWith("-")),
  );
  const clean = await check(ROOT, { signal });
  // Each file computes with two threads or more by itself: two at a time fill a small machine and do not crowd a large one.
  const concurrency = flags.some((flag) => flag.startsWith("--test-concurrency")) ? [] : ["--test-concurrency=2"];
  const env = { ...process.env, TF_CPP_MIN_LOG_LEVEL: "2" };
  const code = await runNode(["--import", "tsx", "--test", ...concurrency, "--test-reporter=spec", ...flags, ...files], { cwd: ROOT, env });
  if (!clean) console.error("biome or tsc has complaints: see above the tests.");
  return code || (clean ? 0 : 1);
}
