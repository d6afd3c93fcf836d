// A real JupyterLab and a real Chromium, for jupyterlab.test.ts and screenshot.mjs.
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

export const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), "..", "..");
const PYTHON = join(ROOT, ".venv", "bin", "python");

const CANDIDATES = [
  process.env.VITRINE_CHROMIUM,
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
  "/snap/bin/chromium",
];
/** Path of the browser, or undefined. */
export const browserPath = CANDIDATES.find((path) => path && existsSync(path));
/** What to say where it is missing. */
export const NO_BROWSER = "no Chromium found: install it (`sudo apt-get install chromium`) or set VITRINE_CHROMIUM to its path";

/** Opens the browser with nothing of the user's in it. */
export const openBrowser = () =>
  chromium.launch({
    executablePath: browserPath,
    args: [
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });

/** Serves `folder` in JupyterLab on a free port of 127.0.0.1, with a token and without the user's settings. -> { url, token, api, close } */
export async function startLab(folder) {
  const state = mkdtempSync(join(tmpdir(), "vitrine-lab-"));
  const [port, token] = [await freePort(), randomBytes(16).toString("hex")];
  setting(state, "apputils-extension/notification", { fetchNews: "false", checkForUpdates: false });
  setting(state, "notebook-extension/tracker", { windowingMode: "none" }); // cells out of view are drawn too
  const child = spawn(
    PYTHON,
    [
      "-m",
      "jupyterlab",
      "--no-browser",
      "--allow-root",
      "--ServerApp.ip=127.0.0.1",
      `--ServerApp.port=${port}`,
      "--ServerApp.port_retries=0",
      `--ServerApp.root_dir=${folder}`,
      `--IdentityProvider.token=${token}`,
    ],
    { env: environment(state), stdio: ["ignore", "ignore", "pipe"] },
  );
  let log = "";
  child.stderr.on("data", (chunk) => (log += chunk));
  const url = `http://127.0.0.1:${port}`;
  const api = (path, options) => fetch(`${url}/api/${path}`, { ...options, headers: { Authorization: `token ${token}` } });
  const close = async () => {
    if (child.exitCode === null) {
      const ended = new Promise((done) => child.once("close", done));
      child.kill("SIGTERM");
      await ended;
    }
    rmSync(state, { recursive: true, force: true });
  };
  for (let i = 0; ; i++) {
    if (
      await api("status").then(
        (answer) => answer.ok,
        () => false,
      )
    )
      return { url, token, api, close };
    if (child.exitCode !== null || i > 300) {
      await close();
      throw new Error(`JupyterLab did not start:\n${log.slice(-2000)}`);
    }
    await sleep(200);
  }
}

const environment = (state) => ({
  ...process.env,
  NODE_OPTIONS: "", // the loader of the tests is not for the kernel
  JUPYTER_PATH: ROOT,
  JUPYTER_NO_CONFIG: "1",
  JUPYTER_RUNTIME_DIR: join(state, "runtime"),
  JUPYTER_DATA_DIR: join(state, "data"),
  JUPYTERLAB_SETTINGS_DIR: join(state, "settings"),
  JUPYTERLAB_WORKSPACES_DIR: join(state, "workspaces"),
});

function setting(state, name, value) {
  const file = join(state, "settings", "@jupyterlab", `${name}.jupyterlab-settings`);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, JSON.stringify(value));
}

const freePort = () =>
  new Promise((done) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** Opens a notebook in a page and waits for its kernel. */
export async function openNotebook(browser, lab, name, viewport = { width: 1400, height: 1000 }) {
  const page = await browser.newPage({ viewport });
  await page.goto(`${lab.url}/lab/tree/${encodeURIComponent(name)}?token=${lab.token}&reset`);
  await page.waitForSelector(".jp-Notebook .jp-Cell", { timeout: 60_000 });
  // A cell that is run before the kernel is there makes JupyterLab ask which kernel it should be.
  await page.waitForFunction(() => /\| Idle/.test(document.querySelector("#jp-main-statusbar")?.textContent ?? ""), undefined, {
    timeout: 60_000,
  });
  return page;
}

/** Whether the kernel computes, as the status bar says it. */
export const kernelIsBusy = (page) => page.evaluate(() => /\| Busy/.test(document.querySelector("#jp-main-statusbar").textContent));

/** A command of the menu bar: menu("Run", "Run All Cells"). */
export async function menu(page, name, item) {
  await page.click(`.lm-MenuBar-itemLabel:text-is("${name}")`);
  await page.click(`.lm-Menu-itemLabel:text-is("${item}")`);
}

/** Waits until no cell has a star; every cell that was run has a number then. */
export async function waitForCells(page, timeout = 600_000) {
  await page.waitForFunction(
    () => ![...document.querySelectorAll(".jp-InputPrompt")].some((prompt) => prompt.textContent.includes("*")),
    undefined,
    { timeout, polling: 200 },
  );
}
