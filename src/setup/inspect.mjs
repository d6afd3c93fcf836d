// What the doctor looks at. A row: { part, found, needed, version, meaning, fix, warn? }.
import { existsSync, readFileSync, statfsSync } from "node:fs";
import { createRequire } from "node:module";
import { delimiter, join } from "node:path";
import { findCompiler, tryBinding } from "./binding.mjs";
import { nodeProblem } from "./node-version.mjs";
import { npmMisfits } from "./npm.mjs";
import { isCheckout, places, tensorflowFolder } from "./places.mjs";
import { findPython, installedVersion, listGpus, pythonMisfits } from "./python.mjs";
import { size } from "./say.mjs";
import { listFiles } from "./step.mjs";
import { ask } from "./tool.mjs";

/** All rows, in the order in which the parts build on each other. */
export async function inspect(root, env = process.env) {
  const checks = [
    node,
    npmPackages,
    python,
    environment,
    tensorflow,
    compiler,
    binding,
    library,
    kernel,
    jupyter,
    emoji,
    gpu,
    webgpu,
    chromium,
    disk,
  ];
  const rows = await Promise.all(checks.map((check) => check(root, env)));
  return rows.map((row) => ({ ...row, found: Boolean(row.found) }));
}

/** Names of processors that play a GPU; src/engine/webgpu.ts knows the same. */
const SOFTWARE = /swiftshader|llvmpipe|lavapipe|basic render/;

const RUN = "`npm run setup` makes it.";

/** Version of a package as the code in `root` would load it, or undefined. */
function packageVersion(root, name) {
  try {
    const folders = createRequire(join(root, "package.json")).resolve.paths(name) ?? [];
    const path = folders.map((folder) => join(folder, name, "package.json")).find(existsSync);
    return JSON.parse(readFileSync(path, "utf8")).version;
  } catch {
    return undefined;
  }
}

function node() {
  const problem = nodeProblem(process.version);
  return { part: "Node", found: !problem, needed: true, version: process.version, meaning: "runs everything", fix: problem ?? "" };
}

function npmPackages(root) {
  const base = { part: "npm packages", needed: true, meaning: "the libraries the workbench is built on" };
  if (!isCheckout(root)) {
    const version = packageVersion(root, "@tensorflow/tfjs");
    return { ...base, found: version, version: version && `tfjs ${version}`, fix: "`npm install` in this folder." };
  }
  const misfits = npmMisfits(root);
  const fix = `${misfits.slice(0, 3).join("; ")}${misfits.length > 3 ? `; and ${misfits.length - 3} more` : ""}. ${RUN}`;
  return { ...base, found: !misfits.length, version: misfits.length ? "" : "as locked", fix };
}

async function python(root, env) {
  const base = { part: "Python", needed: !existsSync(places(root).python), meaning: "the environment is made with it" };
  return findPython(env).then(
    ({ command, version }) => ({ ...base, found: true, version: `${version} (${command})`, fix: "" }),
    (error) => ({ ...base, found: false, version: "", fix: `${error.message}: ${error.advice}` }),
  );
}

async function environment(root) {
  const { python: path } = places(root);
  const version = existsSync(path) ? await ask(path, ["-c", "import platform; print(platform.python_version())"]) : undefined;
  return {
    part: "environment .venv",
    found: version,
    needed: true,
    version,
    meaning: "holds JupyterLab and TensorFlow, apart from your own Python packages",
    fix: existsSync(path) ? "it does not run: delete the folder .venv, then `npm run setup`." : RUN,
  };
}

function tensorflow(root) {
  const { venv } = places(root);
  const [name, version] =
    ["tensorflow-cpu", "tensorflow"].map((known) => [known, installedVersion(venv, known)]).find(([, found]) => found) ?? [];
  const misfit = name && pythonMisfits(venv, name === "tensorflow" ? "gpu" : "cpu").find((sentence) => sentence.startsWith("tensorflow"));
  return {
    part: "TensorFlow",
    found: name && !misfit && tensorflowFolder(venv),
    needed: false,
    version: name && `${name} ${version}`,
    meaning: "the fast engine; without it tfjs `wasm` computes, several times slower and in float32 only",
    fix: misfit ? `the environment has ${misfit}. \`npm run setup\` puts it right.` : RUN,
  };
}

async function compiler(root, env) {
  const built = existsSync(places(root).binding);
  const base = {
    part: "C++ compiler",
    needed: false,
    meaning: built ? "built the binding; not needed again" : "builds the TensorFlow binding",
  };
  const fix = "`sudo apt install g++` or `xcode-select --install`; set-up fetches zig (100 MB) where there is none.";
  return findCompiler(places(root).python, env).then(
    ({ kind, version }) => ({ ...base, found: built || kind !== "zig", version: kind === "zig" ? "" : version, fix }),
    (error) => ({ ...base, found: false, version: "", fix: error.message }),
  );
}

async function binding(root) {
  const base = { part: "TensorFlow binding", needed: false, meaning: "joins Node and TensorFlow; tried on a small product" };
  if (!existsSync(places(root).binding)) return { ...base, found: false, version: "", fix: RUN };
  return tryBinding(root).then(
    (text) => ({ ...base, found: true, version: /^ok (\S+)/m.exec(text)?.[1] ?? "", fix: "" }),
    (error) => ({
      ...base,
      found: false,
      version: "",
      fix: `it does not load: ${error.lines?.findLast((line) => /Error/.test(line)) ?? error.message}. Delete .cache/setup, then \`npm run setup\`.`,
    }),
  );
}

function library(root) {
  const version = packageVersion(root, "vitrine");
  const code = listFiles(join(root, "node_modules", "vitrine")).some((path) => path.endsWith(".js"));
  return {
    part: "library vitrine",
    found: version && code,
    needed: true,
    version,
    meaning: "what a notebook imports: node_modules/vitrine",
    fix: isCheckout(root) ? "`npm run build` compiles it." : "`npm install vitrine` in this folder.",
  };
}

/** The folder that holds kernels/vitrine: the checkout, or the installed package. */
function kernelHome(root) {
  return isCheckout(root) ? root : join(root, "node_modules", "vitrine");
}

function kernel(root) {
  const folder = join(kernelHome(root), "kernels", "vitrine");
  const whole = ["kernel.json", "launch.cjs"].every((name) => existsSync(join(folder, name)));
  const tslab = packageVersion(root, "tslab");
  return {
    part: "kernel",
    found: whole && tslab,
    needed: true,
    version: tslab ? `tslab ${tslab}` : "",
    meaning: "runs the TypeScript cells",
    fix: whole ? RUN : `${folder} is not whole: \`git checkout kernels\`.`,
  };
}

function jupyter(root) {
  const version = installedVersion(places(root).venv, "jupyterlab");
  return { part: "JupyterLab", found: version, needed: true, version, meaning: "shows and runs the notebooks", fix: RUN };
}

function emoji(root) {
  const versions = ["@twemoji/svg", "@svgmoji/noto", "emojibase-data"].map((name) => packageVersion(root, name));
  return {
    part: "emoji data",
    found: versions.every(Boolean),
    needed: true,
    version: versions.filter(Boolean).join(", "),
    meaning: "the pictures and captions of the tutorial (three npm packages)",
    fix: RUN,
  };
}

async function gpu(_root, env) {
  const names = await listGpus(env);
  const wish = env.VITRINE_DEVICE ? `; VITRINE_DEVICE is "${env.VITRINE_DEVICE}"` : "";
  return {
    part: "NVIDIA GPU",
    found: names.length,
    needed: false,
    version: names[0],
    meaning: `${names.length ? "TensorFlow with CUDA is installed for it" : "nvidia-smi lists none: everything runs on the processor"}${wish}`,
    fix: "nothing to do on a machine without one; with one, install NVIDIA's driver and see that `nvidia-smi` lists it.",
  };
}

/** Asks Dawn in a process of its own: it writes to the terminal, and a driver may end the process. */
const ADAPTER = `require("webgpu").create([]).requestAdapter({ powerPreference: "high-performance" }).then((adapter) => {
  const { vendor, architecture, device, description, isFallbackAdapter } = adapter?.info ?? {};
  const words = [vendor, architecture, device, description].filter(Boolean).join(" ");
  console.log("\\n" + JSON.stringify(adapter ? { name: description || words, software: isFallbackAdapter || /${SOFTWARE.source}/i.test(words) } : {}));
})`;

async function webgpu(root, env) {
  const answer = await ask(process.execPath, ["-e", ADAPTER], { cwd: root, env });
  const line = answer?.split("\n").findLast((one) => one.startsWith("{"));
  const { name, software } = line ? JSON.parse(line) : {};
  const driver =
    "`sudo apt install libvulkan1` and the GPU's Vulkan driver (mesa-vulkan-drivers for AMD and Intel); macOS and Windows bring theirs.";
  return {
    part: "WebGPU",
    found: name && !software,
    needed: false,
    version: name,
    meaning: software
      ? "a software adapter: right numbers for tests, slower than wasm"
      : "computes on AMD, Intel and Apple GPUs: taken where TensorFlow is not there, or with VITRINE_BACKEND=webgpu",
    fix: software
      ? `VITRINE_BACKEND=webgpu takes it all the same; for a GPU: ${driver}`
      : `nothing to do without such a GPU; with one: ${driver}`,
  };
}

async function chromium(_root, env) {
  const names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
  const command = [env.VITRINE_CHROMIUM, ...names].find((name) => name && onPath(name, env));
  const answer = command && (await ask(command, ["--version", "--no-sandbox"], { env }));
  const version = answer?.split("\n").findLast((line) => /Chrom/.test(line)); // some start scripts print warnings first
  return {
    part: "Chromium",
    found: version,
    needed: false,
    version,
    meaning: "only for the tests that open JupyterLab in a browser",
    fix: "`sudo apt install chromium` to run those tests too; nothing else needs it.",
  };
}

function onPath(name, env) {
  return name.includes("/") ? existsSync(name) : (env.PATH ?? "").split(delimiter).some((folder) => existsSync(join(folder, name)));
}

const WANTED = 5e9; // a first set-up takes about 4 GB

function disk(root) {
  const { bavail, bsize } = statfsSync(root);
  const free = bavail * bsize;
  const ready = existsSync(places(root).binding);
  return {
    part: "disk space",
    found: free > (ready ? 1e9 : WANTED),
    needed: false,
    version: `${size(free)} free`,
    meaning: "a first set-up takes about 4 GB, with CUDA 9 GB",
    fix: "free some space on this disk, or move the checkout to a larger one.",
  };
}
