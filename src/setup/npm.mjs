// The npm packages, exactly as the lockfile says.
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { places } from "./places.mjs";
import { size } from "./say.mjs";
import { fileInput } from "./step.mjs";
import { tool } from "./tool.mjs";

/** Differences between what the lockfile asks for and what npm noted as installed, as sentences; empty when they agree. */
export function npmMisfits(root) {
  const noted = join(places(root).modules, ".package-lock.json");
  if (!existsSync(noted)) return ["nothing is installed"];
  const read = (path) => JSON.parse(readFileSync(path, "utf8")).packages;
  const [wanted, installed] = [read(join(root, "package-lock.json")), read(noted)];
  const misfits = [];
  for (const [path, { version, optional, devOptional, peer, link }] of Object.entries(wanted)) {
    if (!path || link || peer) continue;
    const there = installed[path];
    if (there && there.version !== version) misfits.push(`${path}: ${there.version} installed, ${version} wanted`);
    else if (!there && !optional && !devOptional) misfits.push(`${path}: missing`);
    else if (there && !existsSync(join(root, path))) misfits.push(`${path}: its folder is gone`);
  }
  return misfits;
}

/** How to start npm without a shell: the npm that runs us, else the one on PATH. */
export function npmCommand(env = process.env) {
  const script = env.npm_execpath;
  return script && /npm-cli\.c?js$/.test(script) && existsSync(script) ? [process.execPath, [script]] : ["npm", []];
}

/** Whether a checked tree still fits the lockfile is asked each time: somebody may have run npm by hand. */
export function npmStep(root) {
  return {
    name: "npm packages",
    inputs: () => [fileInput(join(root, "package-lock.json"))],
    done: () => npmMisfits(root).length === 0,
    advice:
      "if it speaks of the network or a time-out, run the same command again (what was downloaded is kept); " +
      "if it says EACCES or EROFS, make this folder writable for you; if it says that package.json and the lockfile differ, run `git checkout package-lock.json`.",
    async run(report, signal) {
      if (npmMisfits(root).length === 0) return "as the lockfile says";
      const [command, first] = npmCommand();
      const args = [...first, "ci", "--ignore-scripts", "--no-audit", "--no-fund"];
      await tool(command, args, { cwd: root, signal, onLine: report });
      const names = readdirSync(places(root).modules).length;
      return `${names} folders, ${size(folderSize(places(root).modules))}`;
    },
  };
}

/** Bytes of all files in a folder; links are not followed. */
export function folderSize(folder) {
  let total = 0;
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) total += folderSize(path);
    else if (entry.isFile()) total += statSync(path).size;
  }
  return total;
}
