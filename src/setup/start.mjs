// npm start: JupyterLab on the notebooks; npm start -- --headless: the first notebook without a screen.
import { existsSync, readdirSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { headless } from "./headless.mjs";
import { openLab } from "./lab.mjs";
import { readOptions } from "./options.mjs";
import { ROOT } from "./places.mjs";
import { SetupError } from "./say.mjs";
import { setup } from "./setup.mjs";

const OPTIONS = { "--headless": "flag", "--no-browser": "flag", "--port": "number" };
const USAGE = "npm start -- [--headless] [--no-browser] [--port NUMBER]";

export async function main(args, { signal }) {
  const options = readOptions(args, OPTIONS, USAGE);
  await setup(ROOT, { signal });
  const notebook = firstNotebook(ROOT);
  if (options.headless) return headless(ROOT, notebook, { signal });
  const port = await freePort(options.port);
  return openLab(ROOT, { notebook, port, browser: !options.noBrowser, signal });
}

/** Name of the first notebook of the tutorial (notebooks/01-….ipynb). */
export function firstNotebook(root) {
  const folder = join(root, "notebooks");
  const names = existsSync(folder) ? readdirSync(folder).filter((name) => /^01-.*\.ipynb$/.test(name)) : [];
  if (!names.length) throw new SetupError(`there is no notebook 01-….ipynb in ${folder}`, { advice: "run `git checkout notebooks`." });
  return names.sort()[0];
}

/** The port asked for when it is free; without a wish 8888 or one of the next 20. On 127.0.0.1 alone. */
export async function freePort(wish) {
  const candidates = wish ? [wish] : Array.from({ length: 20 }, (_, i) => 8888 + i);
  for (const port of candidates) if (await isFree(port)) return port;
  throw new SetupError(wish ? `port ${wish} is in use` : "ports 8888 to 8907 are all in use", {
    advice: "end what listens there, or name another port: npm start -- --port 9000",
  });
}

function isFree(port) {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(false));
    server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
  });
}
