/** Talking to a hub: one request with the token sent to the hub only, and one file downloaded so that what arrives is what was published. */
import { createHash, type Hash } from "node:crypto";
import fs from "node:fs";
import { adoptPartial, blobFile, partialFile, type RepoCache } from "./hub-cache";

export type Hub = {
  /** Origin and path of the hub's API, without a slash at the end. */
  endpoint: string;
  token: string | undefined;
  /** Attempts after the first that fails for a reason that may pass. */
  retries: number;
  signal: AbortSignal;
};

/** A file of a model as the hub describes it. */
export type HubFile = { name: string; size: number; hash: { algorithm: "sha256" | "git-sha1"; value: string } };

/** Seconds without a byte after which a connection counts as dead. */
const STALL_SECONDS = 30;
const MAX_REDIRECTS = 5;

/** A failure that another attempt may cure. */
class Passing extends Error {}

/** URL without its query, which may carry a signature. */
const shown = (url: URL): string => `${url.origin}${url.pathname}`;

/**
 * One request; redirects are followed by hand, because the token must not reach another host (or the same one without TLS).
 *
 * @returns the last response, and the headers that the hub itself sent on the way (`x-linked-etag`, `x-linked-size`).
 */
export async function request(
  hub: Hub,
  url: URL,
  init: { method?: string; headers?: Record<string, string>; signal?: AbortSignal },
): Promise<{ response: Response; linked: Headers }> {
  const home = new URL(hub.endpoint).origin;
  const linked = new Headers();
  for (let hop = 0; hop <= MAX_REDIRECTS; hop++) {
    const headers: Record<string, string> = { "user-agent": "vitrine", "accept-encoding": "identity", ...init.headers };
    if (hub.token && url.origin === home) headers.authorization = `Bearer ${hub.token}`;
    const response = await send(url, { method: init.method, headers, redirect: "manual", signal: init.signal ?? hub.signal });
    for (const name of ["x-linked-etag", "x-linked-size", "x-repo-commit", "x-error-code", "x-error-message"]) {
      const value = response.headers.get(name);
      if (value !== null && url.origin === home) linked.set(name, value);
    }
    const location = response.headers.get("location");
    if (response.status < 300 || response.status >= 400 || !location) return { response, linked };
    await response.body?.cancel();
    const next = new URL(location, url);
    if (next.protocol !== "https:" && next.protocol !== "http:")
      throw new Error(`${shown(url)} redirects to a ${next.protocol} address; refused`);
    // A HEAD asks the hub about the file; where the data lies is of no interest to it.
    if (init.method === "HEAD" && next.origin !== home) return { response, linked };
    url = next;
  }
  throw new Error(`${shown(url)}: more than ${MAX_REDIRECTS} redirects`);
}

async function send(url: URL, init: RequestInit): Promise<Response> {
  try {
    return await fetch(url, init);
  } catch (error) {
    init.signal?.throwIfAborted();
    throw new Passing(`${shown(url)} cannot be reached: ${reason(error)}`);
  }
}

/** The innermost reason of a failed fetch, whose own message is always "fetch failed". */
function reason(error: unknown): string {
  const cause = (error as Error).cause as (Error & { code?: string }) | undefined;
  return cause?.message || cause?.code || (error as Error).message;
}

/** Runs `attempt` again while it fails for a passing reason: connection lost, server busy. Waits 1, 2, 4 … seconds. */
export async function withRetries<T>(hub: Hub, attempt: () => Promise<T>): Promise<T> {
  for (let i = 0; ; i++) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof Passing) || i >= hub.retries) throw error;
      await sleep(1000 * 2 ** i, hub.signal);
    }
  }
}

function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal.addEventListener("abort", stop, { once: true });
  });
}

/** The error for an answer that is not the file; passing when the server may recover. */
export function httpError(hub: Hub, what: string, url: URL, response: Response, linked: Headers): Error {
  const { status } = response;
  const says = linked.get("x-error-message") ?? "";
  const text = (advice: string) => `${what}: ${shown(url)} answered ${status}${says ? ` (${clean(hub, says)})` : ""}. ${advice}`;
  if (status === 401 || status === 403) {
    const has = hub.token ? "The token was not accepted for it" : "No token is set (HF_TOKEN)";
    return new Error(text(`It is private, gated or misspelt. ${has}; accept its licence on its page and use a token that may read it.`));
  }
  if (status === 404) return new Error(text("There is no such model, revision or file; check the spelling."));
  if (status === 429 || status >= 500 || status === 408) return new Passing(text("The server is busy or broken; try again later."));
  return new Error(text("That is not an answer this client knows."));
}

/** A server's text for an error message: one line, short, without the token. */
function clean(hub: Hub, text: string): string {
  const line = text.replace(/[\0-\x1f\x7f]+/g, " ").slice(0, 200);
  return hub.token ? line.replaceAll(hub.token, "***") : line;
}

type Part = { file: string; handle: fs.promises.FileHandle; size: number; hash: Hash; tick: (bytes: number) => void };

/**
 * Downloads one file into the cache's blobs, resuming what an earlier attempt left. Published (renamed) only when size and hash are right.
 * `tick` gets the bytes as they are there, negative when a download starts again.
 *
 * @throws Error naming model and file: unreachable, cut off, wrong content, disk full.
 */
export async function download(hub: Hub, cache: RepoCache, commit: string, file: HubFile, tick: (bytes: number) => void): Promise<void> {
  adoptPartial(cache, file.hash.value);
  const partial = partialFile(cache, file.hash.value);
  const url = fileUrl(hub, cache.id, commit, file.name);
  await withRetries(hub, async () => {
    const handle = await fs.promises.open(partial, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o644);
    const part: Part = { file: partial, handle, size: 0, hash: newHash(file), tick };
    try {
      await takeUp(part, file);
      const resumed = part.size > 0;
      try {
        if (part.size < file.size || file.size === 0) await transfer(hub, url, cache.id, file, part);
        await check(cache.id, file, part);
      } catch (error) {
        if (!(error instanceof WrongContent)) throw error;
        await restart(part, file);
        if (!resumed) throw error;
        await transfer(hub, url, cache.id, file, part); // the part from before was of something else: once more, from the start
        await check(cache.id, file, part).catch((again) => restart(part, file).then(() => Promise.reject(again)));
      }
      await handle.sync();
    } catch (error) {
      part.tick(-part.size); // the next attempt counts again what is there
      throw explain(cache, file, part, error as NodeJS.ErrnoException);
    } finally {
      await handle.close();
      if (part.size === 0 && file.size > 0) removePartial(partial);
    }
  });
  fs.renameSync(partial, blobFile(cache, file.hash.value));
  removePartial(partial);
}

class WrongContent extends Error {}

export const fileUrl = (hub: Hub, id: string, commit: string, name: string): URL =>
  new URL(`${hub.endpoint}/${id}/resolve/${commit}/${name.split("/").map(encodeURIComponent).join("/")}`);

function removePartial(partial: string): void {
  fs.rmSync(partial, { force: true });
  fs.rmSync(`${partial}.etag`, { force: true });
}

/** git hashes a header before the content. */
function newHash({ size, hash }: HubFile): Hash {
  return hash.algorithm === "sha256" ? createHash("sha256") : createHash("sha1").update(`blob ${size}\0`);
}

/** Counts and hashes what an earlier attempt left. */
async function takeUp(part: Part, file: HubFile): Promise<void> {
  const { size } = await part.handle.stat();
  if (size > file.size) return restart(part, file);
  const buffer = Buffer.allocUnsafe(Math.min(size, 2 ** 22));
  while (part.size < size) {
    const { bytesRead } = await part.handle.read(buffer, 0, Math.min(buffer.length, size - part.size), part.size);
    if (bytesRead === 0) break;
    part.hash.update(buffer.subarray(0, bytesRead));
    part.size += bytesRead;
  }
  part.tick(part.size);
}

async function restart(part: Part, file: HubFile): Promise<void> {
  await part.handle.truncate(0);
  part.tick(-part.size);
  part.size = 0;
  part.hash = newHash(file);
}

/** Gets what is missing: the rest if the server gives exactly that, everything otherwise. */
async function transfer(hub: Hub, url: URL, id: string, file: HubFile, part: Part): Promise<void> {
  const stall = new AbortController();
  const signal = AbortSignal.any([hub.signal, stall.signal]);
  let timer: NodeJS.Timeout | undefined;
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(() => stall.abort(), STALL_SECONDS * 1000);
  };
  try {
    alive();
    const { response, linked } = await request(hub, url, { headers: resumeHeaders(part), signal });
    await accept(hub, url, `${id}, file ${file.name}`, file, part, response, linked);
    for await (const chunk of body(response)) {
      alive();
      await append(id, file, part, chunk);
    }
  } catch (error) {
    hub.signal.throwIfAborted();
    const { code, syscall } = error as NodeJS.ErrnoException;
    if (error instanceof Passing || error instanceof WrongContent || (code && syscall)) throw error;
    if (stall.signal.aborted) throw new Passing(`${id}, file ${file.name}: no data for ${STALL_SECONDS} s`);
    if (error instanceof TypeError)
      throw new Passing(`${id}, file ${file.name}: the connection broke after ${part.size} of ${file.size} bytes (${reason(error)})`);
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

async function* body(response: Response): AsyncGenerator<Uint8Array> {
  const reader = response.body?.getReader();
  try {
    for (;;) {
      const next = await reader?.read();
      if (!next || next.done) return;
      yield next.value;
    }
  } finally {
    await reader?.cancel().catch(() => {});
  }
}

/** If-Range: should the file behind the address be another one now, the server sends all of it instead of the rest. */
function resumeHeaders(part: Part): Record<string, string> {
  if (part.size === 0) return {};
  const etag = fs.existsSync(`${part.file}.etag`) ? fs.readFileSync(`${part.file}.etag`, "latin1") : "";
  return { range: `bytes=${part.size}-`, ...(/^"[\x21\x23-\x7e]*"$/.test(etag) && { "if-range": etag }) };
}

/** Decides what the answer means for the bytes that are there already. */
async function accept(hub: Hub, url: URL, what: string, file: HubFile, part: Part, response: Response, linked: Headers): Promise<void> {
  const { status, headers } = response;
  if (status === 206 && new RegExp(`^bytes ${part.size}-\\d+/(${file.size}|\\*)$`).test(headers.get("content-range") ?? "")) return;
  if (status === 206 || status === 416) {
    await response.body?.cancel();
    await restart(part, file);
    throw new WrongContent(`${what}: the server does not continue where the download stopped (${status})`);
  }
  if (status !== 200) {
    await response.body?.cancel();
    throw httpError(hub, what, url, response, linked);
  }
  if (part.size > 0) await restart(part, file);
  fs.writeFileSync(`${part.file}.etag`, headers.get("etag") ?? "", "latin1");
}

async function append(id: string, file: HubFile, part: Part, chunk: Uint8Array): Promise<void> {
  if (part.size + chunk.length > file.size)
    throw new WrongContent(`${id}, file ${file.name}: more than the ${file.size} bytes that were announced`);
  for (let done = 0; done < chunk.length; ) {
    const { bytesWritten } = await part.handle.write(chunk, done, chunk.length - done, part.size);
    part.hash.update(chunk.subarray(done, done + bytesWritten));
    part.size += bytesWritten;
    done += bytesWritten;
    part.tick(bytesWritten);
  }
}

async function check(id: string, file: HubFile, part: Part): Promise<void> {
  if (part.size < file.size)
    throw new Passing(
      `${id}, file ${file.name}: cut off after ${part.size} of ${file.size} bytes; what is there is kept, the next call goes on from it`,
    );
  const value = part.hash.copy().digest("hex");
  if (value !== file.hash.value)
    throw new WrongContent(
      `${id}, file ${file.name}: what arrived is not what was published (${file.hash.algorithm} ${value}, expected ${file.hash.value}); it was deleted`,
    );
}

function explain(cache: RepoCache, file: HubFile, part: Part, error: NodeJS.ErrnoException): Error {
  if (error.code !== "ENOSPC" && error.code !== "EDQUOT") return error;
  const text =
    `${cache.id}, file ${file.name}: the disk is full (${error.code}) at ${part.size} of ${file.size} bytes in ${cache.root}. ` +
    "Free some space and call again (it goes on from there), or set HF_HOME to a larger disk.";
  return Object.assign(new Error(text, { cause: error }), { code: error.code });
}
