// Steps: { name, inputs(), done?(), run(report, signal), advice?, soft? }. A step runs when the hash of its inputs is another than
// at its last success, or when its result is gone. Its stamp is removed before it runs: what was interrupted is not done.
import { createHash } from "node:crypto";
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { failureParagraph, SetupError, stepLine } from "./say.mjs";

/**
 * @typedef {{
 *   name: string, advice?: string, soft?: boolean,
 *   inputs(): unknown[] | Promise<unknown[]>, done?(): unknown,
 *   run(report: (text: string) => unknown, signal?: AbortSignal): Promise<unknown>,
 * }} Step
 */

/** SHA-256 of a list of strings; the bounds between them count. */
export function hashOf(inputs) {
  const hash = createHash("sha256");
  for (const input of inputs) hash.update(`${Buffer.byteLength(String(input))}:${input}`);
  return hash.digest("hex");
}

/** A file as an input: its path and the hash of its bytes, or the note that it is not there. */
export function fileInput(path) {
  try {
    return `${path} ${createHash("sha256").update(readFileSync(path)).digest("hex")}`;
  } catch (error) {
    if (error.code === "ENOENT") return `${path} absent`;
    throw error;
  }
}

/** All files of a folder as inputs, sorted by path; `keep(path relative to the folder)` chooses, dotfiles are left out. */
export function folderInputs(folder, keep = (_path) => true) {
  return listFiles(folder)
    .filter(keep)
    .map((path) => fileInput(join(folder, path)));
}

/** Paths of all files under `folder`, relative to it, sorted; dotfiles and what does not exist are left out. */
export function listFiles(folder, prefix = "") {
  let entries;
  try {
    entries = readdirSync(join(folder, prefix), { withFileTypes: true });
  } catch (error) {
    if (error.code === "ENOENT") return [];
    throw error;
  }
  const found = entries
    .filter((entry) => !entry.name.startsWith("."))
    .flatMap((entry) => {
      const path = prefix ? `${prefix}/${entry.name}` : entry.name;
      return entry.isDirectory() ? listFiles(folder, path) : [path];
    });
  return found.sort();
}

/** The stamp of a step: { key, failed? } or undefined. */
export function readStamp(stamps, name) {
  try {
    return JSON.parse(readFileSync(stampPath(stamps, name), "utf8"));
  } catch {
    return undefined; // absent or cut off: the step runs
  }
}

export function writeStamp(stamps, name, stamp) {
  mkdirSync(stamps, { recursive: true });
  writeFileSync(stampPath(stamps, name), JSON.stringify(stamp));
}

const stampPath = (stamps, name) => join(stamps, `${name.replace(/[^a-z0-9]+/gi, "-")}.json`);

/**
 * Runs the steps in order and gives the names of those that ran. A failing step throws SetupError with its paragraph as message,
 * a failing `soft` step prints it, once for the same inputs, and the next one follows.
 *
 * @param {Step[]} steps
 * @param {string} stamps folder of the stamps
 * @param {{ signal?: AbortSignal, out?: import("./say.mjs").Out }} [options]
 */
export async function runSteps(steps, stamps, { signal, out = process.stderr } = {}) {
  /** @type {string[]} */
  const ran = [];
  for (const step of steps) {
    signal?.throwIfAborted();
    const key = hashOf([step.name, ...(await step.inputs())]);
    const stamp = readStamp(stamps, step.name);
    if (stamp?.key === key && (stamp.failed || (await step.done?.()) !== false)) continue;
    rmSync(stampPath(stamps, step.name), { force: true });
    if (await runStep(step, key, stamps, { signal, out })) ran.push(step.name);
  }
  return ran;
}

async function runStep(step, key, stamps, { signal, out }) {
  const line = stepLine(step.name, out);
  try {
    const note = await step.run((text) => line.word(text), signal);
    line.done(note);
    // The inputs are hashed again: a step may make its own inputs (the environment's folder, for one).
    writeStamp(stamps, step.name, { key: hashOf([step.name, ...(await step.inputs())]) });
    return true;
  } catch (error) {
    line.failed(signal?.aborted ? "stopped" : "failed");
    if (signal?.aborted) throw signal.reason;
    const paragraph = failureParagraph(error, { step: step.name, advice: step.advice });
    if (!step.soft) throw Object.assign(new SetupError(paragraph), { told: true });
    out.write(`${paragraph}\n`);
    writeStamp(stamps, step.name, { key, failed: error.message });
    return false;
  }
}

/**
 * Runs `work` while this process holds the folder's lock; waits for another that lives, takes over from one that does not.
 *
 * @template T
 * @param {string} folder
 * @param {() => Promise<T>} work
 * @param {{ signal?: AbortSignal, out?: import("./say.mjs").Out }} [options]
 * @returns {Promise<T>}
 */
export async function withLock(folder, work, { out = process.stderr, signal } = {}) {
  mkdirSync(folder, { recursive: true });
  const path = join(folder, "lock");
  let told = false;
  while (!takeLock(path)) {
    if (!told) out.write("Another set-up is at work in this folder; waiting for it to end …\n");
    told = true;
    signal?.throwIfAborted();
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
  try {
    return await work();
  } finally {
    rmSync(path, { force: true });
  }
}

function takeLock(path) {
  try {
    const handle = openSync(path, "wx");
    writeFileSync(handle, String(process.pid));
    closeSync(handle);
    return true;
  } catch (error) {
    if (error.code !== "EEXIST") throw error;
    if (!isAbandoned(path)) return false;
    rmSync(path, { force: true });
    return takeLock(path);
  }
}

function isAbandoned(path) {
  try {
    const holder = Number(readFileSync(path, "utf8"));
    if (!holder) return Date.now() - statSync(path).mtimeMs > 5000; // made a moment ago, its number not yet written
    process.kill(holder, 0);
    return false;
  } catch (error) {
    return error.code === "ESRCH" || error.code === "ENOENT";
  }
}
