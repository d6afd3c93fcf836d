// The N-API binding of @tensorflow/tfjs-node-gpu with our kernels, compiled against the TensorFlow wheel. src/native/binding.cc includes the
// sources in the npm package. (The package's own install script would fetch a libtensorflow of 2022 instead, and is not run.)
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { arch, availableParallelism, platform } from "node:os";
import { basename, join } from "node:path";
import { HERE, places, tensorflowFolder } from "./places.mjs";
import { ask, tool } from "./tool.mjs";

/** The two libraries of the wheel by the names they have on this system. */
export function tensorflowLibraries(folder, system = platform()) {
  const name = (stem) => (system === "darwin" ? `lib${stem}.2.dylib` : `lib${stem}.so.2`);
  return ["tensorflow_cc", "tensorflow_framework"].map((stem) => join(folder, name(stem)));
}

/** Our C++: src/native in a checkout, native in the installed package. */
const NATIVE = join(HERE, "..", "native");

/** Sources that run on any processor as they are; every other one holds kernels, and is compiled for each level. */
const GENERAL = ["binding.cc", "file.cc", "interrupt.cc", "kernel.cc", "pages.cc", "pool.cc", "processor.cc"];

/**
 * The instruction sets that kernels are compiled for beyond the architecture's baseline, lowest first; kernel.h numbers them, processor.cc asks
 * the processor which it may run.
 */
function levels(machine) {
  if (machine !== "x64") return [];
  const avx512 = ["f", "bw", "vl", "dq", "bf16"].map((part) => `-mavx512${part}`);
  return [
    { name: "avx2", flags: ["-mavx2", "-mfma"] },
    { name: "avx512bf16", flags: ["-mavx2", "-mfma", ...avx512, "-mprefer-vector-width=512"] },
  ];
}

/** Fast, but NaN and infinity stay what they are: no -ffast-math. */
const KERNEL_FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"];

/**
 * What is compiled and how: the one place to change.
 * Gives { units: [{ source, object, flags, optional? }], includes, defines, flags, libraries, exports, rpath, output, inputs }.
 */
export function bindingPlan(root, tensorflow, system = platform(), machine = arch()) {
  const { tfjs, modules, binding } = places(root);
  const files = existsSync(NATIVE) ? readdirSync(NATIVE).sort() : [];
  const unit = (file, level, flags) => ({ source: join(NATIVE, file), object: `${file}.${level}.o`, flags });
  const kernels = files.filter((file) => file.endsWith(".cc") && !GENERAL.includes(file));
  return {
    // The order matters: of a C++ library function that several objects hold, the linker takes the first, which must run on every processor.
    units: [
      unit("binding.cc", "base", ["-O2", "-w"]), // -w: the package's warnings are not the user's to mend
      ...GENERAL.slice(1).map((file) => unit(file, "base", ["-O2"])),
      ...[{ name: "base", flags: [] }, ...levels(machine)].flatMap(({ name, flags }) =>
        kernels.map((file) => ({ ...unit(file, name, [...KERNEL_FLAGS, ...flags]), optional: flags.length > 0 })),
      ),
    ],
    includes: [join(modules, "node-api-headers", "include"), join(tensorflow, "include"), tfjs, join(tfjs, "binding")],
    defines: ["NAPI_VERSION=8"],
    flags: ["-std=c++17", "-fPIC", "-fvisibility=hidden"],
    libraries: tensorflowLibraries(tensorflow, system),
    exports: join(NATIVE, "exports.lds"),
    rpath: tensorflow,
    output: binding,
    inputs: [
      ...files.map((file) => join(NATIVE, file)),
      ...["tfjs_backend.cc", "tfjs_binding.cc", "tfjs_backend.h", "utils.h"].map((file) => join(tfjs, "binding", file)),
    ],
  };
}

/** Arguments that compile one unit to one object file. */
export function compileArguments(plan, unit, object) {
  return [
    ...plan.flags,
    ...unit.flags,
    ...plan.defines.map((define) => `-D${define}`),
    ...plan.includes.flatMap((folder) => ["-I", folder]),
    ...["-c", unit.source, "-o", object],
  ];
}

/** Arguments that link the objects to a loadable module. -Xlinker, not -Wl: a comma in a path would split it. */
export function linkArguments(plan, objects, output, system = platform()) {
  const script = plan.exports ? ["-Xlinker", "--version-script", "-Xlinker", plan.exports] : [];
  const shared = system === "darwin" ? ["-bundle", "-undefined", "dynamic_lookup"] : ["-shared", ...script];
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
  const object = (unit) => join(work, unit.object);
  const units = await known(plan.units, { cc, work, signal, onLine });
  const waiting = [...units];
  const worker = async () => {
    for (let unit = waiting.shift(); unit; unit = waiting.shift()) await cc(compileArguments(plan, unit, object(unit)));
  };
  await Promise.all(Array.from({ length: Math.min(availableParallelism(), waiting.length) }, worker));
  const linked = join(work, basename(plan.output));
  await cc(linkArguments(plan, units.map(object), linked));
  mkdirSync(join(plan.output, ".."), { recursive: true });
  const next = `${plan.output}.${process.pid}.new`;
  renameSync(linked, next); // same disk: .cache and node_modules stand side by side
  renameSync(next, plan.output);
  rmSync(work, { recursive: true, force: true });
  return statSync(plan.output).size;
}

/** The units without those optional ones whose flags an old compiler does not know: kernels for newer processors. */
async function known(units, { cc, work, signal, onLine = () => {} }) {
  const empty = join(work, "empty.cc");
  writeFileSync(empty, "");
  const refused = new Set();
  for (const flags of new Set(units.filter((unit) => unit.optional).map((unit) => unit.flags.join(" "))))
    await cc([...flags.split(" "), "-c", empty, "-o", `${empty}.o`]).catch((error) => {
      if (signal?.aborted) throw error;
      refused.add(flags);
      onLine(`the compiler does not know ${flags}: going without`);
    });
  return units.filter((unit) => !unit.optional || !refused.has(unit.flags.join(" ")));
}

/** Hash of what the binding is made from: sources, wheel version and place, plan, machine. */
export function bindingKey(root) {
  const tensorflow = tensorflowFolder(places(root).venv);
  if (!tensorflow) return undefined;
  const plan = bindingPlan(root, tensorflow);
  const hash = createHash("sha256").update(JSON.stringify([plan, platform(), arch()]));
  for (const file of plan.inputs) if (existsSync(file)) hash.update(readFileSync(file));
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
