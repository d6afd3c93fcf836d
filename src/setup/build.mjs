// npm run build: compile src/ and assemble dist/, for who edits the library.
import { readOptions } from "./options.mjs";
import { places, ROOT } from "./places.mjs";
import { librarySteps } from "./setup.mjs";
import { runSteps, withLock } from "./step.mjs";

export async function main(args, { signal }) {
  readOptions(args, {}, "`npm run build` takes no options.");
  const { stamps } = places(ROOT);
  const ran = await withLock(stamps, () => runSteps(librarySteps(ROOT), stamps, { signal }), { signal });
  if (!ran.length) console.log("dist/ is up to date.");
}
