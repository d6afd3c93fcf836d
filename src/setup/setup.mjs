// npm run setup: everything that a notebook, a test or the command needs, each part only when it is not there yet.
import { bindingStep } from "./binding-step.mjs";
import { compileStep, packageStep, picturesStep } from "./library.mjs";
import { npmStep } from "./npm.mjs";
import { isCheckout, places, ROOT } from "./places.mjs";
import { chooseDevice, pythonPackagesStep, venvStep } from "./python.mjs";
import { readOptions } from "./options.mjs";
import { duration } from "./say.mjs";
import { runSteps, withLock } from "./step.mjs";

/** All steps in their order. In somebody's own project (the installed package) npm and the compile of src/ are not ours to do. */
export async function setupSteps(root, env = process.env) {
  const engine = [venvStep(root), pythonPackagesStep(root, await chooseDevice(env)), bindingStep(root)];
  if (!isCheckout(root)) return engine;
  return [npmStep(root), ...engine, ...librarySteps(root)];
}

/** What follows an edit under src/. */
export function librarySteps(root) {
  return [compileStep(root), packageStep(root), picturesStep(root)];
}

/** Brings everything up to date; quiet when it is. */
export async function setup(root = ROOT, { signal } = {}) {
  const { stamps } = places(root);
  return withLock(stamps, async () => runSteps(await setupSteps(root), stamps, { signal }), { signal });
}

/** npm run setup */
export async function main(args, { signal }) {
  readOptions(args, {}, "`npm run setup` takes no options.");
  const started = Date.now();
  const ran = await setup(ROOT, { signal });
  console.log(ran.length ? `Set up in ${duration(Date.now() - started)}.` : "Everything is up to date.");
}
