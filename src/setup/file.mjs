// node src/setup/run.mjs file PATH [ARGUMENTS]: sets up, then runs a TypeScript or JavaScript file of this checkout with ours.
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { ROOT } from "./places.mjs";
import { SetupError } from "./say.mjs";
import { setup } from "./setup.mjs";

export async function main([path, ...args], { signal }) {
  await setup(ROOT, { signal });
  if (!path || !existsSync(join(ROOT, path))) throw new SetupError(`there is no file ${path ?? ""} in ${ROOT}`);
  return runNode([...(path.endsWith(".ts") ? ["--import", "tsx"] : []), join(ROOT, path), ...args], { cwd: ROOT });
}

/** Runs Node on our terminal and gives its exit code. Ctrl-C reaches the child by itself; we wait for its own ending. */
export function runNode(args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, args, { stdio: "inherit", ...options });
    const pass = (name) => child.kill(name);
    process.on("SIGTERM", pass);
    child.on("error", reject);
    child.on("close", (code, name) => {
      process.off("SIGTERM", pass);
      resolve(code ?? (name === "SIGINT" ? 130 : 1));
    });
  });
}
