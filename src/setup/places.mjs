// Where things stand in a checkout. Every step takes `root`, so that a test can point it at an empty folder.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** This folder: src/setup in a checkout, setup in the installed package. */
export const HERE = dirname(fileURLToPath(import.meta.url));

/** Whether `folder` is a checkout of the workbench (and not somebody's project that uses the package). */
export function isCheckout(folder) {
  try {
    return JSON.parse(readFileSync(join(folder, "package.json"), "utf8")).name === "vitrine-workbench";
  } catch {
    return false;
  }
}

const above = join(HERE, "..", ".."); // of src/setup and of dist/setup alike

/** The checkout this file is part of; for the installed package the folder it is used in. */
export const ROOT = isCheckout(above) ? above : process.cwd();

/** Absolute paths of the parts that the steps read and write. */
export function places(root) {
  const venv = join(root, ".venv");
  const tfjs = join(root, "node_modules", "@tensorflow", "tfjs-node-gpu");
  return {
    root,
    cache: join(root, ".cache"),
    stamps: join(root, ".cache", "setup"),
    modules: join(root, "node_modules"),
    dist: join(root, "dist"),
    venv,
    python: join(venv, "bin", "python"),
    tfjs,
    binding: join(tfjs, "lib", "napi-v8", "tfjs_binding.node"),
  };
}

/** site-packages of the environment, or undefined where there is none. */
export function sitePackages(venv) {
  const lib = join(venv, "lib");
  const version = existsSync(lib) && readdirSync(lib).find((name) => /^python3\.\d+$/.test(name));
  const site = version && join(lib, version, "site-packages");
  return site && existsSync(site) ? site : undefined;
}

/** Folder of the TensorFlow wheel in the environment, or undefined. */
export function tensorflowFolder(venv) {
  const site = sitePackages(venv);
  const folder = site && join(site, "tensorflow");
  return folder && existsSync(join(folder, "include")) ? folder : undefined;
}
