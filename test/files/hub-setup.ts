/** What the tests of the hub share: a fresh hub and cache for each test, and looks into that cache. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { afterEach, beforeEach, mock } from "node:test";
import { resolveModel } from "vitrine/files/hub";
import { scratch } from "./helpers";
import { type FakeHub, sha256, startHub } from "./hub-server";

export const weights = randomBytes(100_000);
export const config = Buffer.from('{"model_type":"clip"}');
export const model = () => ({
  "config.json": config,
  "tokenizer.json": Buffer.from("{}"),
  "model.safetensors": weights,
  "README.md": Buffer.from("#"),
  "modeling_x.py": Buffer.from(""),
});
const VARIABLES = [
  "HF_HOME",
  "HF_ENDPOINT",
  "HF_HUB_CACHE",
  "HUGGINGFACE_HUB_CACHE",
  "HF_TOKEN",
  "HF_TOKEN_PATH",
  "HF_HUB_OFFLINE",
  "XDG_CACHE_HOME",
];

/** The hub of the running test; `start()` replaces it. */
export let hub: FakeHub;
/** HF_HOME of the running test. */
export let home: string;
const saved = new Map(VARIABLES.map((name) => [name, process.env[name]]));

/** Starts a hub with these files in place of the running one. */
export async function start(files: Record<string, Buffer> = model(), options: Parameters<typeof startHub>[1] = {}): Promise<void> {
  await hub?.close();
  hub = await startHub(files, options);
  process.env.HF_ENDPOINT = hub.url;
}

beforeEach(async () => {
  for (const name of VARIABLES) delete process.env[name];
  home = fs.mkdtempSync(path.join(scratch, "home-"));
  process.env.HF_HOME = home;
  await start();
});
afterEach(async () => {
  mock.restoreAll();
  await hub.close();
  for (const [name, value] of saved) value === undefined ? delete process.env[name] : (process.env[name] = value);
});

export const repo = () => path.join(home, "hub", "models--org--m");
export const blobs = () => (fs.existsSync(path.join(repo(), "blobs")) ? fs.readdirSync(path.join(repo(), "blobs")).sort() : []);
export const partials = () => blobs().filter((name) => name.includes("incomplete"));
export const published = () => fs.existsSync(path.join(repo(), "blobs", sha256(weights)));
export const gets = (name: string) =>
  hub.log.filter(({ line, cdn }) => line.startsWith("GET") && line.includes(name) && (cdn || !hub.large.has(name)));
export const get = (options = {}) => resolveModel("org/m", { retries: 0, ...options });

/** The model is there, complete, and nothing is left over. */
export function expectComplete(folder: string): void {
  assert.deepEqual(fs.readFileSync(path.join(folder, "model.safetensors")), weights);
  assert.deepEqual(partials(), []);
  assert.equal(fs.readFileSync(path.join(repo(), "refs", "main"), "utf8"), hub.commit);
}
