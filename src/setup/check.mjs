// npm run check: biome and the compiler over sources and tests.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { typescript } from "./library.mjs";
import { readOptions } from "./options.mjs";
import { places, ROOT } from "./places.mjs";
import { failureParagraph, SetupError } from "./say.mjs";
import { setup } from "./setup.mjs";
import { tool } from "./tool.mjs";

const FIX = "`npm run check -- --fix` formats and mends what is safe to mend; the rest is named above.";

export async function main(args, { signal }) {
  const { fix } = readOptions(args, { "--fix": "flag" }, "npm run check -- [--fix]");
  await setup(ROOT, { signal });
  return (await check(ROOT, { fix, signal })) ? 0 : 1;
}

/** Prints what biome and tsc find; true when neither finds anything. The library itself was compiled by set-up. */
export async function check(root, { fix = false, signal } = {}) {
  const found = await Promise.all([lint(root, fix, signal), testTypes(root, signal)]);
  for (const error of found) if (error) console.error(failureParagraph(error));
  if (found.every((error) => !error)) console.log("biome and tsc: nothing to report.");
  return found.every((error) => !error);
}

async function lint(root, fix, signal) {
  const biome = join(places(root).modules, "@biomejs", "biome", "bin", "biome");
  const args = [biome, "check", ...(fix ? ["--write"] : []), "--error-on-warnings", "--colors=off", "--max-diagnostics=20"];
  return tool(process.execPath, args, { cwd: root, signal }).then(
    () => undefined,
    (error) => Object.assign(new SetupError("biome has complaints", { lines: error.lines, advice: FIX }), { keep: 120 }),
  );
}

/** The tests are run without type checks (tsx), so they are checked here, against the declarations that others get. */
async function testTypes(root, signal) {
  if (!existsSync(join(root, "test", "tsconfig.json"))) return undefined;
  return typescript(root, "test/tsconfig.json", { signal }).then(
    () => undefined,
    (error) => error,
  );
}
