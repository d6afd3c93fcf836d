// The set-up step that compiles the binding; `binding.mjs` knows how.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { bindingKey, bindingPlan, compileBinding, findCompiler, tryBinding } from "./binding.mjs";
import { places, tensorflowFolder } from "./places.mjs";
import { uvInstall } from "./python.mjs";
import { SetupError, size, withAdvice } from "./say.mjs";

const WITHOUT =
  "The workbench goes on with tfjs `wasm`: float32 only, several times slower, no GPU. For the fast engine install a C++ compiler " +
  "(`sudo apt install g++`, `xcode-select --install`) and run the same command again; `npm run doctor` shows what is missing.";

/** Compile and link the binding, then multiply with it. Soft: without it the engine takes a slower backend and says so. */
export function bindingStep(root) {
  const { python, binding, cache } = places(root);
  return {
    name: "TensorFlow binding",
    soft: true,
    advice: WITHOUT,
    inputs: async () => [bindingKey(root), process.env.CXX ?? "", await compilerName(python)],
    done: () => existsSync(binding),
    async run(report, signal) {
      const tensorflow = tensorflowFolder(places(root).venv);
      if (!tensorflow) throw new SetupError("there is no TensorFlow in .venv to link with", { advice: WITHOUT });
      const compiler = await findCompiler(python);
      report(compiler.version);
      if (compiler.kind === "zig") await installZig(root, { signal, onLine: report });
      const options = { work: join(cache, "binding"), signal, onLine: report, env: zigFolders(cache) };
      const bytes = await compileBinding(bindingPlan(root, tensorflow), compiler, options).catch((error) => {
        throw withAdvice(error, WITHOUT);
      });
      report("trying it");
      await tryBinding(root, { signal });
      return `${size(bytes)}, with ${compiler.kind}`;
    },
  };
}

/** What the choice of compiler depends on, so that a failed step is tried again when one was installed. */
async function compilerName(python) {
  return findCompiler(python).then(
    ({ command, version }) => `${command} ${version}`,
    (error) => error.message,
  );
}

async function installZig(root, options) {
  options.onLine("no C++ compiler here: getting zig (100 MB)");
  await uvInstall(root, "zig", options);
}

/** zig keeps what it compiled for the next run; beside our other caches, for a home folder may be read-only. */
function zigFolders(cache) {
  return { ZIG_GLOBAL_CACHE_DIR: join(cache, "zig"), ZIG_LOCAL_CACHE_DIR: join(cache, "zig") };
}
