// The N-API binding of @tensorflow/tfjs-node-gpu, compiled from the sources in the npm package against the TensorFlow wheel.
// (The package's own install script would fetch a libtensorflow of 2022 instead, and is not run.)
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync } from "node:fs";
import { arch, platform } from "node:os";
import { basename, join } from "node:path";
import { places, tensorflowFolder } from "./places.mjs";
import { ask, tool } from "./tool.mjs";

/** The two libraries of the wheel by the names they have on this system. */
export function tensorflowLibraries(folder, system = platform()) {
  const name = (stem) => (system === "darwin" ? `lib${stem}.2.dylib` : `lib${stem}.so.2`);
  return ["tensorflow_cc", "tensorflow_framework"].map((stem) => join(folder, name(stem)));
}

/**
 * What is compiled and how: the one place to change when the binding becomes a translation unit of ours.
 * Gives { sources, includes, defines, flags, libraries, rpath, output }.
 */
export function bindingPlan(root, tensorflow, system = platform()) {
  const { tfjs, modules, binding } = places(root);
  return {
    sources: ["tfjs_backend.cc", "tfjs_binding.cc"].map((file) => join(tfjs, "binding", file)),
    includes: [join(modules, "node-api-headers", "include"), join(tensorflow, "include"), tfjs],
    defines: ["NAPI_VERSION=8"],
    flags: ["-O2", "-std=c++17", "-fPIC", "-w"], // -w: the warnings of these sources are not the user's to mend
    libraries: tensorflowLibraries(tensorflow, system),
    rpath: tensorflow,
    output: binding,
  };
}

/** Arguments that compile one source to one object file. */
export function compileArguments(plan, source, object) {
  return [
    ...plan.flags,
    ...plan.defines.map((define) => `-D${define}`),
    ...plan.includes.flatMap((folder) => ["-I", folder]),
    ...["-c", source, "-o", object],
  ];
}

/** Arguments that link the objects to a loadable module. -Xlinker, not -Wl: a comma in a path would split it. */
export function linkArguments(plan, objects, output, system = platform()) {
  const shared = system === "darwin" ? ["-bundle", "-undefined", "dynamic_lookup"] : ["-shared"];
  return [...shared, ...objects, ...plan.libraries, "-Xlinker", "-rpath", "-Xlinker", plan.rpath, "-o", output];
}

/**
 * The compiler to use as { command, first, kind }: $CXX, g++, clang++, c++, else zig from the environment (kind "zig",
 * to be installed there first). $CXX must work when it is set: a wish is not passed over in silence.
 */
export async function findCompiler(python, env = process.env) {
  const wish = env.CXX?.trim();
  if (wish) {
    const [command, ...first] = wish.split(/\s+/);
    const version = await ask(command, [...first, "--version"], { env });
    if (version === undefined) throw new Error(`CXX is set to "${wish}", which does not run. Unset CXX or point it at a C++17 compiler.`);
    return { command, first, kind: "CXX", version: version.split("\n")[0] };
  }
  for (const command of ["g++", "clang++", "c++"]) {
    const version = await ask(command, ["--version"], { env });
    if (version !== undefined) return { command, first: [], kind: command, version: version.split("\n")[0] };
  }
  return { command: python, first: ["-m", "ziglang", "c++"], kind: "zig", version: "zig (from PyPI)" };
}

/** Compiles and links; the new file takes the old one's place only when it is whole. onLine sees the compiler's output. */
export async function compileBinding(plan, compiler, { work, signal, onLine, env } = {}) {
  rmSync(work, { recursive: true, force: true });
  mkdirSync(work, { recursive: true });
  const cc = (args) => tool(compiler.command, [...compiler.first, ...args], { signal, onLine, env, cwd: work });
  const object = (source) => join(work, `${basename(source)}.o`);
  await Promise.all(plan.sources.map((source) => cc(compileArguments(plan, source, object(source)))));
  const linked = join(work, basename(plan.output));
  await cc(linkArguments(plan, plan.sources.map(object), linked));
  mkdirSync(join(plan.output, ".."), { recursive: true });
  const next = `${plan.output}.${process.pid}.new`;
  renameSync(linked, next); // same disk: .cache and node_modules stand side by side
  renameSync(next, plan.output);
  rmSync(work, { recursive: true, force: true });
  return statSync(plan.output).size;
}

/** Hash of what the binding is made from: sources, wheel version and place, plan, machine. */
export function bindingKey(root) {
  const tensorflow = tensorflowFolder(places(root).venv);
  if (!tensorflow) return undefined;
  const plan = bindingPlan(root, tensorflow);
  const hash = createHash("sha256").update(JSON.stringify([plan, platform(), arch()]));
  for (const file of plan.sources) if (existsSync(file)) hash.update(readFileSync(file));
  for (const file of plan.libraries) if (existsSync(file)) hash.update(String(statSync(file).size));
  return hash.digest("hex");
}

const TRIAL = `
const tf = require(process.argv[1]);
const sum = tf.matMul(tf.tensor2d([[1, 2], [3, 4]]), tf.ones([2, 2])).dataSync();
if (sum.join() !== "3,3,7,7") throw new Error("a 2x2 product gave " + sum.join() + " instead of 3,3,7,7");
console.log("ok " + tf.version["tfjs-node"] + " " + tf.getBackend());`;

/** Loads the binding in a child process and multiplies with it; throws ToolError with what it printed when that fails. */
export function tryBinding(root, { signal } = {}) {
  const polyfill = new URL("./polyfill.cjs", import.meta.url).pathname;
  const args = ["-r", decodeURIComponent(polyfill), "-e", TRIAL, places(root).tfjs];
  return tool(process.execPath, args, { env: { TF_CPP_MIN_LOG_LEVEL: "2" }, timeout: 120_000, signal, cwd: root });
}
