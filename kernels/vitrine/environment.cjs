// What must stand before anything else loads.
const { dirname, join } = require("node:path");
const fs = require("node:fs");
const Module = require("node:module");
const util = require("node:util");

// TensorFlow writes its start-up notes to the terminal of Jupyter; errors still appear.
process.env.TF_CPP_MIN_LOG_LEVEL ??= "2";
process.env.TF_CPP_MAX_VLOG_LEVEL ??= "0";

// tfjs calls itself through a dozen functions; the cell is below them.
Error.stackTraceLimit = 50;

// tfjs-node 4.22 calls two functions that Node 23 removed from `util`.
util.isNullOrUndefined = (value) => value === null || value === undefined;
util.isArray = Array.isArray;

const modules = nearestModules(__dirname);
if (modules) {
  lastResortAtRunTime(modules);
  lastResortForTypes(modules);
}

/** The folder of packages that this kernel belongs to: the nearest `node_modules` that holds `vitrine`. */
function nearestModules(folder) {
  for (let at = folder; ; at = dirname(at)) {
    const candidate = join(at, "node_modules");
    if (fs.existsSync(join(candidate, "vitrine"))) return candidate;
    if (at === dirname(at)) return undefined;
  }
}

/** A notebook in a folder without packages of its own (a desktop, say) finds those of the kernel. */
function lastResortAtRunTime(folder) {
  const before = process.env.NODE_PATH;
  process.env.NODE_PATH = before ? `${before}:${folder}` : folder;
  Module._initPaths();
  // Programs that a cell starts keep their own search path.
  if (before === undefined) delete process.env.NODE_PATH;
  else process.env.NODE_PATH = before;
}

/**
 * The same for the compiler. Its search for a package ends at `/node_modules`, so that folder is made to mean the kernel's.
 * Packages are not watched for changes either: the running code would not change with them, and there are hundreds of files.
 */
function lastResortForTypes(folder) {
  const { sys } = require(require.resolve("@tslab/typescript-for-tslab", { paths: [dirname(require.resolve("tslab/package.json"))] }));
  const real = (path) => (/^\/node_modules(\/|$)/.test(path) ? folder + path.slice("/node_modules".length) : path);
  for (const name of ["fileExists", "directoryExists", "readFile", "realpath", "getDirectories", "readDirectory", "getModifiedTime"]) {
    const plain = sys[name];
    sys[name] = (path, ...rest) => plain.call(sys, real(path), ...rest);
  }
  const watchFile = sys.watchFile;
  const installed = fs.realpathSync(join(folder, "vitrine"));
  sys.watchFile = (path, ...rest) =>
    path.includes("/node_modules/") || path.startsWith(installed) ? { close() {} } : watchFile.call(sys, path, ...rest);
}

module.exports = { modules };
