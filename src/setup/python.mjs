// The Python environment .venv: JupyterLab, and the TensorFlow wheel whose library the engine is linked with.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { folderSize } from "./npm.mjs";
import { HERE, places, sitePackages } from "./places.mjs";
import { SetupError, size, withAdvice } from "./say.mjs";
import { fileInput } from "./step.mjs";
import { ask, tool } from "./tool.mjs";

const MINORS = [13, 12, 11, 10]; // those that TensorFlow 2.21 has wheels for
const PROBE = "import sys; print('%d.%d.%d' % sys.version_info[:3]); import venv, ensurepip; print('venv')";

/** The hash-locked requirements file of this name: uv, cpu, gpu, zig, peer. */
export const lockFile = (name) => join(HERE, `requirements-${name}.txt`);

/**
 * The Python to make the environment with: VITRINE_PYTHON, else the first of python3, python3.13 … python3.10 that is 3.10 to 3.13
 * and has the venv module. Gives { command, version }; throws SetupError that lists what was found instead.
 */
export async function findPython(env = process.env) {
  const wish = env.VITRINE_PYTHON;
  const seen = [];
  for (const command of wish ? [wish] : ["python3", ...MINORS.map((minor) => `python3.${minor}`)]) {
    const answer = await probe(command, env);
    if (!answer) continue;
    if (fits(answer.version) && answer.venv) return { command, version: answer.version };
    seen.push({ command, ...answer });
  }
  throw noPython(seen, wish);
}

async function probe(command, env) {
  try {
    const [version, venv] = (await tool(command, ["-c", PROBE], { env, timeout: 20_000 })).split("\n");
    return { version, venv: venv === "venv" };
  } catch (error) {
    const version = error.lines?.find((line) => /^\d+\.\d+\.\d+$/.test(line));
    return version ? { version, venv: false } : undefined; // printed its version, then failed to import
  }
}

function fits(version) {
  const [major, minor] = version.split(".").map(Number);
  return major === 3 && MINORS.includes(minor);
}

function noPython(seen, wish) {
  const bare = seen.find(({ version }) => fits(version));
  if (bare) {
    const minor = bare.version.split(".").slice(0, 2).join(".");
    return new SetupError(`${bare.command} is Python ${bare.version}, but its "venv" module is missing (Debian and Ubuntu pack it apart)`, {
      advice: `install it (\`sudo apt install python3-venv\`, or python${minor}-venv), or set VITRINE_PYTHON to another Python 3.10 to 3.13; then run the same command again.`,
    });
  }
  const found =
    seen.map(({ command, version }) => `${command} is ${version}`).join(", ") || (wish ? `${wish} does not run` : "none was found");
  return new SetupError(`Vitrine needs Python 3.10 to 3.13 for JupyterLab and TensorFlow, and ${found}`, {
    advice:
      "install one (`sudo apt install python3 python3-venv`, `brew install python@3.12`, or from python.org), or set VITRINE_PYTHON to its path; then run the same command again.",
  });
}

/** "gpu" where VITRINE_DEVICE says so or nvidia-smi lists a GPU within 2 s, else "cpu". */
export async function chooseDevice(env = process.env) {
  const wish = env.VITRINE_DEVICE;
  if (wish === "cpu" || wish === "gpu") return wish;
  if (wish) throw new SetupError(`VITRINE_DEVICE is "${wish}"`, { advice: "set it to cpu or gpu, or unset it: then nvidia-smi decides." });
  return (await listGpus(env)).length ? "gpu" : "cpu";
}

/** Names of the NVIDIA GPUs that nvidia-smi lists within 2 s. */
export async function listGpus(env = process.env) {
  const answer = await ask("nvidia-smi", ["--query-gpu=name,memory.total", "--format=csv,noheader"], { env, timeout: 2000 });
  return (answer ?? "").split("\n").filter((line) => /MiB|GiB/.test(line));
}

/** The empty environment with uv in it (uv installs the rest, in parallel and from a cache that several checkouts share). */
export function venvStep(root) {
  const { venv, python } = places(root);
  return {
    name: "Python environment",
    inputs: () => [venv, fileInput(lockFile("uv"))],
    done: () => existsSync(python) && existsSync(join(venv, "bin", "uv")),
    async run(report, signal) {
      const usable = existsSync(python) && fits((await ask(python, ["-c", "import platform; print(platform.python_version())"])) ?? "");
      if (!usable) {
        const { command, version } = await findPython();
        report(`Python ${version}`);
        await tool(command, ["-m", "venv", "--clear", venv], { signal, onLine: report });
      }
      const install = ["-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--require-hashes", "-r", lockFile("uv")];
      await tool(python, install, { signal, onLine: report }).catch(retry);
      return (await ask(python, ["--version"])) ?? "";
    },
  };
}

/** JupyterLab and TensorFlow from the locked file of this machine's device. */
export function pythonPackagesStep(root, device) {
  const { venv, python } = places(root);
  return {
    name: device === "gpu" ? "Python packages (with CUDA, about 7 GB)" : "Python packages (about 2 GB)",
    inputs: () => [venv, device, fileInput(lockFile(device)), sitePackages(venv) ?? "none"],
    done: () => pythonMisfits(venv, device).length === 0,
    async run(report, signal) {
      await removeOtherTensorflow(root, device, { signal, onLine: report });
      await uvInstall(root, device, { signal, onLine: report });
      quietLab(venv);
      return size(folderSize(sitePackages(venv)));
    },
    advice: `see whether ${python} runs; deleting the folder .venv makes the next run build it anew.`,
  };
}

/** Installs a locked file into the environment. A broken-off download is taken up again by the next run. */
export async function uvInstall(root, name, options = {}) {
  const { venv, python } = places(root);
  const args = ["pip", "install", "--python", python, "--require-hashes", "-r", lockFile(name)];
  const env = { UV_HTTP_TIMEOUT: process.env.UV_HTTP_TIMEOUT ?? "180", ...options.env };
  await tool(join(venv, "bin", "uv"), args, { ...options, env }).catch(retry);
}

function retry(error) {
  throw withAdvice(
    error,
    "if it speaks of the network, a time-out or a proxy, run the same command again (what was downloaded is kept); " +
      "if it says that no space is left, free some (the whole takes about 4 GB, with CUDA 9 GB); " +
      "if it says that a hash differs, the download was damaged or altered: do not go on with it.",
  );
}

const tensorflowName = (device, arch = process.arch) => (device === "gpu" || arch !== "x64" ? "tensorflow" : "tensorflow-cpu");

/** tensorflow and tensorflow-cpu fill the same folder: the one goes before the other comes. */
async function removeOtherTensorflow(root, device, options) {
  const { venv, python } = places(root);
  const wanted = tensorflowName(device);
  const other = wanted === "tensorflow" ? "tensorflow-cpu" : "tensorflow";
  if (!installedVersion(venv, other)) return;
  await tool(join(venv, "bin", "uv"), ["pip", "uninstall", "--python", python, wanted, other], options);
}

/** Version of a Python package in the environment by its dist-info folder, or undefined. */
export function installedVersion(venv, name) {
  const site = sitePackages(venv);
  const pattern = new RegExp(`^${name.replace(/[-_.]/g, "[-_.]")}-(\\d.*)\\.dist-info$`, "i");
  const found = site ? readdirSync(site).map((entry) => pattern.exec(entry)?.[1]) : [];
  return found.find(Boolean);
}

/** Where the environment differs from the locked file in the packages that matter most, as sentences; empty when it does not. */
export function pythonMisfits(venv, device, arch = process.arch) {
  const locked = readFileSync(lockFile(device), "utf8");
  return [tensorflowName(device, arch), "jupyterlab", "nbclient", "nbconvert", "plotly"].flatMap((name) => {
    const wanted = new RegExp(`^${name}==([^ ;]+)`, "m").exec(locked)[1];
    const version = installedVersion(venv, name);
    return version === wanted ? [] : [`${name} ${version ?? "is missing"}, wanted ${wanted}`];
  });
}

/** Our own JupyterLab does not ask a newcomer whether it may fetch news. */
function quietLab(venv) {
  const folder = join(venv, "etc", "jupyter", "labconfig");
  mkdirSync(folder, { recursive: true });
  const config = { disabledExtensions: { "@jupyterlab/apputils-extension:announcements": true } };
  writeFileSync(join(folder, "page_config.json"), JSON.stringify(config));
}
