// JupyterLab as a child process: started, awaited, shown, and ended with us.
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { closeSync, mkdirSync, openSync, readFileSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { places } from "./places.mjs";
import { SetupError } from "./say.mjs";

/** Environment in which Jupyter finds our kernel, and the kernel the Node that runs us. */
export function jupyterEnvironment(root, env = process.env) {
  const path = (...parts) => parts.filter(Boolean).join(delimiter);
  return { ...env, JUPYTER_PATH: path(root, env.JUPYTER_PATH), PATH: path(dirname(process.execPath), env.PATH), TF_CPP_MIN_LOG_LEVEL: "2" };
}

/** Arguments of `python` that serve the notebooks; the token goes through the environment, where no process list shows it. */
export function labArguments(root, port) {
  const settings = { ip: "127.0.0.1", port, port_retries: 0, open_browser: false, root_dir: join(root, "notebooks") };
  const server = Object.entries(settings).map(([name, value]) => `--ServerApp.${name}=${pythonValue(value)}`);
  return ["-m", "jupyterlab", ...server, ...(process.getuid?.() === 0 ? ["--allow-root"] : [])];
}

const pythonValue = (value) => (value === false ? "False" : String(value));

/** Serves the notebooks until Ctrl-C; gives the exit code. */
export async function openLab(root, { notebook, port, browser, signal }) {
  const token = randomBytes(24).toString("hex");
  const { cache, python } = places(root);
  mkdirSync(cache, { recursive: true });
  const log = join(cache, "jupyter.log");
  const handle = openSync(log, "w");
  // A process group of its own: Ctrl-C must not reach Jupyter, which would ask on a terminal that it does not have.
  const lab = spawn(python, labArguments(root, port), {
    cwd: root,
    env: { ...jupyterEnvironment(root), JUPYTER_TOKEN: token },
    stdio: ["ignore", handle, handle],
    detached: true,
  });
  closeSync(handle);
  const ended = new Promise((resolve) => lab.once("close", resolve).once("error", resolve));
  try {
    const address = `http://127.0.0.1:${port}`;
    await untilReady(`${address}/api/status?token=${token}`, ended, log, signal);
    announce(`${address}/lab/tree/${encodeURIComponent(notebook)}?token=${token}`, browser, log);
    await Promise.race([ended, new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }))]);
    if (signal.aborted) return 0;
    throw new SetupError("JupyterLab ended by itself", { lines: lastLines(log), advice: `the whole log is ${log}.` });
  } finally {
    await end(lab, ended);
  }
}

function announce(url, browser, log) {
  console.log(`\nVitrine is open at\n\n  ${url}\n\nCtrl-C ends it. (Log: ${log})`);
  if (browser) openBrowser(url);
}

/** Waits until the server answers, at most two minutes (the first start on a slow disk compiles Python's files). */
async function untilReady(url, ended, log, signal) {
  const failed = (what) =>
    new SetupError(what, { lines: lastLines(log), advice: `the whole log is ${log}; \`npm run doctor\` checks the parts.` });
  let over = false;
  ended.then(() => (over = true));
  for (const limit = Date.now() + 120_000; Date.now() < limit; ) {
    signal.throwIfAborted();
    if (over) throw failed("JupyterLab did not start");
    const answer = await fetch(url, { signal: AbortSignal.timeout(5000) }).catch(() => undefined);
    if (answer?.ok) return;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  throw failed("JupyterLab did not answer within two minutes");
}

/** SIGTERM lets Jupyter end its kernels; after ten seconds the group is killed. */
async function end(lab, ended) {
  if (lab.pid === undefined || lab.exitCode !== null || lab.signalCode !== null) return;
  lab.kill("SIGTERM");
  const timer = setTimeout(() => process.kill(-lab.pid, "SIGKILL"), 10_000);
  await ended;
  clearTimeout(timer);
}

const lastLines = (path) => readFileSync(path, "utf8").trim().split("\n").slice(-12);

/** The program that opens a page on this system, or undefined where there is no display. */
export function browserCommand(env = process.env, system = process.platform) {
  if (system === "darwin") return "open";
  return env.DISPLAY || env.WAYLAND_DISPLAY ? "xdg-open" : undefined;
}

function openBrowser(url) {
  const command = browserCommand();
  if (!command) return;
  const child = spawn(command, [url], { stdio: "ignore", detached: true });
  child.on("error", () => {}); // the address is printed: a person can open it
  child.unref();
}
