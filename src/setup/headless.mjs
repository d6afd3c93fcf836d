// The first notebook without a screen: run through the real kernel, results on the terminal, an HTML page as the keepsake.
import { spawn } from "node:child_process";
import { mkdirSync } from "node:fs";
import { basename, join } from "node:path";
import { jupyterEnvironment } from "./lab.mjs";
import { HERE, places } from "./places.mjs";

/** Runs notebooks/<notebook> and writes outputs/<its name>.html; gives the exit code (1 when a cell failed). */
export function headless(root, notebook, { signal } = {}) {
  const outputs = join(root, "outputs");
  mkdirSync(outputs, { recursive: true });
  const page = join(outputs, `${basename(notebook, ".ipynb")}.html`);
  const plotly = join(places(root).modules, "plotly.js-dist-min", "plotly.min.js");
  const args = [join(HERE, "headless.py"), join(root, "notebooks", notebook), page, plotly, join(root, "kernels")];
  return new Promise((resolve, reject) => {
    // A group of its own, so that one Ctrl-C ends the kernel through nbclient and not behind its back.
    const child = spawn(places(root).python, args, { env: jupyterEnvironment(root), stdio: "inherit", detached: true });
    const stop = () => child.kill("SIGINT");
    signal?.addEventListener("abort", stop, { once: true });
    child.on("error", reject);
    child.on("close", (code) => (signal?.aborted ? reject(signal.reason) : resolve(code ?? 1)));
  });
}
