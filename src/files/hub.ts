/**
 * From a model's name to a folder: a folder as it is, a model that this package ships, or a model of the Hugging Face hub, downloaded into
 * the cache that Python uses too (HTTP API: huggingface.co/docs/hub/api). HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN and
 * HF_HUB_OFFLINE mean what they mean there.
 */
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { interruptSignal } from "../engine/interrupt";
import { progress } from "../engine/progress";
import { readIndex, WEIGHT_FILES } from "./checkpoint";
import {
  blobFile,
  cachedCommit,
  checkInside,
  hubHome,
  isCommit,
  isSafeName,
  linkSnapshot,
  type RepoCache,
  repoCache,
  snapshotFolder,
  withLock,
  writeRef,
} from "./hub-cache";
import { download, fileUrl, httpError, type Hub, type HubFile, request, withRetries } from "./hub-http";
import { nearest } from "./nearest";

export type ResolveOptions = {
  /** Branch, tag or commit. */
  revision?: string;
  /** Access token; default: HF_TOKEN, or the file `token` in HF_HOME that `hf auth login` writes. */
  token?: string;
  signal?: AbortSignal;
  /** Use only what is in the cache and open no connection; default: HF_HUB_OFFLINE. */
  offline?: boolean;
  /** Attempts after the first that fails because of the connection or a busy server. */
  retries?: number;
};

/** Part of a hub id: no `..`, no `--` (the cache's separator), no dot or dash at the ends. */
const ID_PART = /^(?!.*(\.\.|--))[A-Za-z0-9_]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?$/;
const SHIPPED = path.join(__dirname, "../data/models");

/**
 * The folder of a model.
 * name: a folder; the name of a model that comes with this package (`emoji-clip`); or an id of the hub (`org/name`).
 *
 * @throws Error saying what was looked for and where; never with the token in it.
 */
export async function resolveModel(name: string, options: ResolveOptions = {}): Promise<string> {
  if (name === "")
    throw new Error("a model's name is empty; expected a folder, the name of a model of this package, or an id of the hub (org/name)");
  const folder = path.resolve(name.replace(/^~(?=\/)/, os.homedir()));
  if (isFolder(folder)) return folder;
  const shipped = shippedModels();
  if (shipped.includes(name)) return path.join(SHIPPED, name);
  const isPath = path.isAbsolute(name) || /^\.{1,2}([/\\]|$)|^~|\\/.test(name) || fs.existsSync(name);
  const parts = name.split("/");
  if (isPath || parts.length > 2 || !parts.every((part) => ID_PART.test(part))) throw new Error(notFound(name, folder, isPath, shipped));
  // A word without a slash close to a shipped name is a slip of the pen, not one of the few ids without an organisation.
  const meant = parts.length === 1 ? nearest(name, shipped) : undefined;
  if (meant) throw new Error(`there is no model "${name}"; did you mean "${meant}"? Models of the hub are called org/name.`);
  return fromHub(name, options);
}

/** Names of the models that come with this package. */
export function shippedModels(): string[] {
  if (!fs.existsSync(SHIPPED)) return [];
  return fs
    .readdirSync(SHIPPED, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map((entry) => entry.name);
}

/** False also for names that no file can have (NUL, too long). */
function isFolder(name: string): boolean {
  try {
    return fs.statSync(name).isDirectory();
  } catch {
    return false;
  }
}

function notFound(name: string, folder: string, isPath: boolean, shipped: string[]): string {
  const full = JSON.stringify(folder).slice(1, -1).slice(0, 300);
  const what = fs.existsSync(folder) ? `${full} is a file; expected the folder that holds config.json` : `there is no folder ${full}`;
  const other = isPath
    ? ""
    : `, and ${JSON.stringify(name.slice(0, 100))} is no id of the hub (org/name, of letters, digits, ".", "_" and "-")`;
  return `${what}${other}. Models that come with this package: ${shipped.join(", ") || "none"}.`;
}

async function fromHub(id: string, options: ResolveOptions): Promise<string> {
  const { revision = "main", signal = interruptSignal(), offline = isOn(process.env.HF_HUB_OFFLINE), retries = 3 } = options;
  if (!isSafeName(revision) || revision.length > 255)
    throw new Error(`${id}: ${JSON.stringify(revision.slice(0, 80))} is no name of a branch, tag or commit`);
  const cache = repoCache(id);
  if (offline) return fromCache(cache, revision) ?? fail(missingOffline(cache, revision));
  const hub: Hub = { endpoint: endpoint(), token: findToken(options.token), retries, signal };
  let listing: Listing;
  try {
    listing = await withRetries(hub, () => list(hub, id, revision));
  } catch (error) {
    signal.throwIfAborted();
    const cached = isUnreachable(error) ? fromCache(cache, revision) : undefined;
    if (cached === undefined) throw error;
    console.warn(`${(error as Error).message}\nUsing the copy of ${id} that was downloaded before: ${cached}`);
    return cached;
  }
  return fetchFiles(hub, cache, revision, listing);
}

const isOn = (value: string | undefined): boolean => /^(1|true|yes|on)$/i.test(value ?? "");
const fail = (message: string): never => {
  throw new Error(message);
};
const isUnreachable = (error: unknown): boolean => /cannot be reached|answered (408|429|5\d\d)/.test((error as Error).message);

/** HF_ENDPOINT, a mirror of the hub with the same API. */
function endpoint(): string {
  const text = process.env.HF_ENDPOINT || "https://huggingface.co";
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (!url || !/^https?:$/.test(url.protocol) || url.username || url.password || url.search || url.hash)
    throw new Error("HF_ENDPOINT is not the address of a hub: expected http(s)://host[/path], without name, password or query");
  return text.replace(/\/+$/, "");
}

/** The token is never part of a message: not even of that which says that it is malformed. */
function findToken(given: string | undefined): string | undefined {
  const file = process.env.HF_TOKEN_PATH || path.join(hubHome(), "token");
  const token = (given ?? process.env.HF_TOKEN ?? (fs.existsSync(file) ? fs.readFileSync(file, "utf8") : "")).trim();
  if (!/^[\x21-\x7e]*$/.test(token))
    throw new Error("the hub token holds characters that no token has (spaces or control characters); check HF_TOKEN");
  return token || undefined;
}

/** The snapshot in the cache, if it has a configuration and all weights. */
function fromCache(cache: RepoCache, revision: string): string | undefined {
  const commit = cachedCommit(cache, revision);
  const folder = commit && snapshotFolder(cache, commit);
  if (!folder || !fs.existsSync(folder)) return undefined;
  return missingFiles(cache, folder).length === 0 ? folder : undefined;
}

/** What a cached snapshot lacks to be loadable. */
function missingFiles(cache: RepoCache, folder: string): string[] {
  const has = (name: string) => fs.existsSync(path.join(folder, name));
  for (const name of fs.readdirSync(folder)) if (has(name)) checkInside(cache, path.join(folder, name));
  if (has("adapter_config.json")) return ["adapter_model.safetensors", "adapter_model.bin"].some(has) ? [] : ["adapter_model.safetensors"];
  const missing = has("config.json") ? [] : ["config.json"];
  const weights = WEIGHT_FILES.find(has);
  if (!weights) return [...missing, WEIGHT_FILES.join(" or ")];
  const shards = weights.endsWith(".json") ? [...new Set(readIndex(path.join(folder, weights)).values())] : [];
  return [...missing, ...shards.filter((shard) => !has(shard))];
}

function missingOffline(cache: RepoCache, revision: string): string {
  const commit = cachedCommit(cache, revision);
  const folder = commit && snapshotFolder(cache, commit);
  const lacks =
    folder && fs.existsSync(folder) ? `lacks ${missingFiles(cache, folder).join(", ")}` : `does not have revision "${revision}"`;
  return `${cache.id}: offline (HF_HUB_OFFLINE), and the cache ${cache.folder} ${lacks}. Load it once with a connection, or give the path of a folder.`;
}

type Listing = { commit: string; files: (Omit<HubFile, "hash"> & { hash?: HubFile["hash"] })[] };

/** The commit and the files of a revision. Names that lead out of a folder make the whole model unacceptable, before anything is written. */
async function list(hub: Hub, id: string, revision: string): Promise<Listing> {
  const url = new URL(`${hub.endpoint}/api/models/${id}/revision/${encodeURIComponent(revision)}?blobs=true`);
  const { response, linked } = await request(hub, url, {});
  if (response.status !== 200) {
    await response.body?.cancel();
    throw httpError(hub, `${id}, revision ${revision}`, url, response, linked);
  }
  const info = await response
    .json()
    .catch(() => fail(`${id}: ${url.origin}${url.pathname} answered with something that is not JSON; is it a hub?`));
  const siblings = info?.siblings;
  if (!isCommit(String(info?.sha)) || !Array.isArray(siblings))
    throw new Error(`${id}: ${url.origin}${url.pathname} did not name a commit and files; is it a hub?`);
  const unsafe = siblings.map((s) => String(s?.rfilename)).filter((name) => !isSafeName(name));
  if (unsafe.length)
    throw new Error(
      `${id} holds file names that lead out of its folder: ${unsafe
        .slice(0, 5)
        .map((name) => JSON.stringify(name.slice(0, 100)))
        .join(", ")}; nothing was downloaded`,
    );
  if (isCommit(revision) && info.sha !== revision) throw new Error(`${id}: commit ${revision} was asked for, the hub gave ${info.sha}`);
  return {
    commit: info.sha,
    files: siblings.map((s) => ({
      name: s.rfilename,
      size: s.lfs?.size ?? s.size,
      hash: hashOf(s.lfs?.sha256 ?? s.lfs?.oid) ?? (s.lfs ? undefined : hashOf(s.blobId)),
    })),
  };
}

/** Large files are named by their sha256, small ones by git's sha1. */
function hashOf(value: unknown): HubFile["hash"] | undefined {
  if (typeof value !== "string") return undefined;
  if (/^[0-9a-f]{64}$/.test(value)) return { algorithm: "sha256", value };
  return /^[0-9a-f]{40}$/.test(value) ? { algorithm: "git-sha1", value } : undefined;
}

/**
 * The files that a model needs: configuration, tokenizer, preprocessor, templates; safetensors weights, or PyTorch's where there are none.
 * Other formats, other precisions, code and subfolders stay where they are.
 */
export function neededFiles(names: readonly string[]): string[] {
  const top = names.filter((name) => !name.includes("/"));
  const small = top.filter((name) => /\.(json|txt|model|jinja)$/.test(name));
  const templates = names.filter((name) => /^additional_chat_templates\/[^/]+\.jinja$/.test(name));
  const weights = (pattern: RegExp) => top.filter((name) => pattern.test(name));
  const standard = weights(/^(model(-\d+-of-\d+)?|adapter_model)\.safetensors$/);
  const pickles = weights(/^(pytorch_model(-\d+-of-\d+)?|adapter_model)\.bin$/);
  const other = weights(/\.safetensors$/);
  return [...small, ...templates, ...(standard.length ? standard : pickles.length && !other.length ? pickles : other)];
}

async function fetchFiles(hub: Hub, cache: RepoCache, revision: string, { commit, files }: Listing): Promise<string> {
  const needed = new Set(neededFiles(files.map(({ name }) => name)));
  if (!needed.has("config.json") && !needed.has("adapter_config.json"))
    throw new Error(
      `${cache.id} is no model that can be loaded: it has no config.json. It holds ${files
        .slice(0, 20)
        .map(({ name }) => name)
        .join(", ")}.`,
    );
  const described: HubFile[] = [];
  for (const file of files) if (needed.has(file.name)) described.push(await describe(hub, cache.id, commit, file));
  fs.mkdirSync(cache.blobs, { recursive: true });
  fs.mkdirSync(snapshotFolder(cache, commit), { recursive: true });
  for (const folder of [cache.blobs, snapshotFolder(cache, commit)]) checkInside(cache, folder);
  const absent = described.filter((file) => !isThere(cache, file));
  checkSpace(cache, absent);
  const bar = progress(
    absent.reduce((sum, { size }) => sum + size, 0),
    cache.id,
    "B",
  );
  try {
    for (const file of described) {
      hub.signal.throwIfAborted();
      if (!isThere(cache, file))
        await withLock(
          cache,
          file.hash.value,
          hub.signal,
          async () => void (isThere(cache, file) || (await download(hub, cache, commit, file, bar.tick))),
        );
      await linkSnapshot(cache, commit, file.name, file.hash.value);
    }
  } finally {
    bar.done();
  }
  await writeRef(cache, revision, commit);
  return snapshotFolder(cache, commit);
}

const isThere = (cache: RepoCache, { size, hash }: HubFile): boolean =>
  fs.statSync(blobFile(cache, hash.value), { throwIfNoEntry: false })?.size === size;

/** Size and hash of a file; asked for one by one where the listing does not have them (mirrors). */
async function describe(hub: Hub, id: string, commit: string, file: Listing["files"][number]): Promise<HubFile> {
  const { name, size, hash } = file;
  if (hash && Number.isSafeInteger(size) && size >= 0) return { name, size, hash };
  return withRetries(hub, async () => {
    const url = fileUrl(hub, id, commit, name);
    const { response, linked } = await request(hub, url, { method: "HEAD" });
    if (response.status >= 400) throw httpError(hub, `${id}, file ${name}`, url, response, linked);
    const own = response.status === 200 ? response.headers : new Headers(); // a redirect's length is that of the redirect
    const etag = (linked.get("x-linked-etag") ?? own.get("etag") ?? "").replace(/^W\//, "").replaceAll('"', "");
    const length = linked.get("x-linked-size") ?? own.get("content-length");
    const found = hashOf(etag);
    if (!found || length === null || !/^\d+$/.test(length))
      throw new Error(
        `${id}, file ${name}: the hub tells neither its hash nor its size, so what arrives could not be checked; not downloaded`,
      );
    return { name, size: Number(length), hash: found };
  });
}

/** Better to say it now than after an hour. */
function checkSpace(cache: RepoCache, files: HubFile[]): void {
  const wanted = files.reduce((sum, { size }) => sum + size, 0);
  const { bavail, bsize } = fs.statfsSync(cache.blobs);
  const gb = (bytes: number) => `${(bytes / 1e9).toFixed(2)} GB`;
  if (wanted > bavail * bsize)
    throw new Error(
      `${cache.id} needs ${gb(wanted)} in ${cache.root}, where ${gb(bavail * bsize)} are free. Free some space, or set HF_HOME to a larger disk.`,
    );
}
