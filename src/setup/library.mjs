// The library: src/ compiled into dist/, which is the package `vitrine`, linked as node_modules/vitrine.
import { cpSync, existsSync, lstatSync, mkdirSync, readFileSync, readlinkSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { places } from "./places.mjs";
import { SetupError } from "./say.mjs";
import { fileInput, folderInputs, listFiles } from "./step.mjs";
import { tool } from "./tool.mjs";

const isSource = (path) => path.endsWith(".ts");

/** tsc by its path: tslab brings an older compiler under the same command name. */
const compiler = (root) => join(places(root).modules, "typescript", "bin", "tsc");

/** Compiles src/ to dist/. Fails with the compiler's own list of errors. */
export function compileStep(root) {
  const { dist } = places(root);
  return {
    name: "TypeScript library",
    inputs: () => [
      fileInput(join(root, "tsconfig.json")),
      fileInput(join(dirname(compiler(root)), "..", "package.json")),
      ...folderInputs(join(root, "src"), isSource),
    ],
    done: () =>
      listFiles(join(root, "src"))
        .filter(isSource)
        .every((path) => existsSync(join(dist, path.replace(/\.ts$/, ".js")))),
    advice: "mend the lines named above; the numbers in brackets are line and column.",
    async run(report, signal) {
      await typescript(root, "tsconfig.json", { signal, onLine: report });
      const gone = removeStale(join(root, "src"), dist);
      const count = listFiles(dist).filter((path) => path.endsWith(".js")).length;
      return `${count} modules${gone ? `, ${gone} old files removed` : ""}`;
    },
  };
}

/** Runs the compiler on a project file; throws SetupError with every error it lists. */
export async function typescript(root, project, options) {
  const args = [compiler(root), "-p", join(root, project), "--pretty", "false"];
  await tool(process.execPath, args, { cwd: root, ...options }).catch((error) => {
    const errors = (error.lines ?? []).filter((line) => /error TS\d+/.test(line)).length;
    const message = errors ? `the compiler found ${errors} error${errors === 1 ? "" : "s"}` : error.message;
    throw Object.assign(new SetupError(message, { lines: error.lines }), { keep: 200 });
  });
}

/** Removes what was compiled from sources that are no longer there; what else lies in dist/ is left alone. */
export function removeStale(src, dist) {
  const compiled = /(\.d\.ts|\.js\.map|\.js)$/;
  const stale = listFiles(dist).filter((path) => {
    const top = path.split("/")[0];
    if (!compiled.test(path) || COPIED_CODE.has(top)) return false;
    return !existsSync(join(src, path.replace(compiled, ".ts")));
  });
  for (const path of stale) rmSync(join(dist, path));
  return stale.length;
}

const COPIED_CODE = new Set(["kernels", "native", "setup"]); // copied as they are, not compiled

/** What dist/ needs besides compiled code to be the package that others install. */
export function packageStep(root) {
  const { dist, modules } = places(root);
  return {
    name: "package vitrine",
    inputs: () => [
      ...["package.json", "package-lock.json", "README.md", "LICENSE"].map((name) => fileInput(join(root, name))),
      ...["data", "kernels", "src/native", "src/setup"].flatMap((folder) => folderInputs(join(root, folder))),
      String(existsSync(join(dist, "cli", "index.js"))),
    ],
    done: () => existsSync(join(dist, "package.json")) && linked(join(modules, "vitrine")),
    async run() {
      mkdirSync(dist, { recursive: true });
      writeFileSync(join(dist, "package.json"), `${JSON.stringify(packageManifest(root), null, 2)}\n`);
      for (const name of ["README.md", "LICENSE"]) if (existsSync(join(root, name))) cpSync(join(root, name), join(dist, name));
      mirror(join(root, "data"), join(dist, "data"), (path) => !/\.(js|d\.ts|js\.map)$/.test(path));
      mirror(join(root, "kernels"), join(dist, "kernels"));
      mirror(join(root, "src", "native"), join(dist, "native"));
      mirror(join(root, "src", "setup"), join(dist, "setup"));
      link(join(modules, "vitrine"));
      return "node_modules/vitrine -> dist";
    },
  };
}

/** Copies all files of `from` to `to` and removes those files of `to` that `owns(path)` and `from` no longer has. */
export function mirror(from, to, owns = (_path) => true) {
  const wanted = new Set(listFiles(from));
  for (const path of listFiles(to)) if (owns(path) && !wanted.has(path)) rmSync(join(to, path));
  for (const path of wanted) {
    mkdirSync(dirname(join(to, path)), { recursive: true });
    cpSync(join(from, path), join(to, path));
  }
}

const TARGET = join("..", "dist");

function linked(path) {
  return lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() === true && readlinkSync(path) === TARGET;
}

function link(path) {
  if (linked(path)) return;
  rmSync(path, { recursive: true, force: true });
  symlinkSync(TARGET, path);
}

/** package.json of the published package: the run-time dependencies at the versions that the lockfile holds. */
export function packageManifest(root) {
  const read = (name) => JSON.parse(readFileSync(join(root, name), "utf8"));
  const [workbench, lock] = [read("package.json"), read("package-lock.json").packages];
  const pinned = Object.keys(workbench.dependencies).map((name) => {
    const version = lock[`node_modules/${name}`]?.version;
    if (!version)
      throw new SetupError(`${name} is in package.json but not in package-lock.json`, {
        advice: "run `npm install` once and commit the lockfile.",
      });
    return [name, version];
  });
  const hasCommand = existsSync(join(places(root).dist, "cli", "index.js"));
  return {
    name: "vitrine",
    version: workbench.version,
    description: workbench.description,
    license: workbench.license,
    type: "commonjs",
    engines: workbench.engines,
    ...(hasCommand ? { bin: { vitrine: "./cli/index.js" } } : {}),
    files: ["**/*", "!**/*.map"],
    dependencies: Object.fromEntries(pinned.filter(([name]) => name !== BINDING)),
    // Its own install script fetches an old libtensorflow; where that fails the rest must still install.
    optionalDependencies: Object.fromEntries(pinned.filter(([name]) => name === BINDING)),
  };
}

const BINDING = "@tensorflow/tfjs-node-gpu";

/** The emoji pictures need no step of their own unless the data part brings one: dist/data/prepare.js. */
export function picturesStep(root) {
  const script = join(places(root).dist, "data", "prepare.js");
  return {
    name: "pictures",
    inputs: () => [fileInput(script), fileInput(join(root, "package-lock.json"))],
    async run(report, signal) {
      if (!existsSync(script)) return "none to prepare";
      await tool(process.execPath, [script], { cwd: root, signal, onLine: report });
    },
  };
}
