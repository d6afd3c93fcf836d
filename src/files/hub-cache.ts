/**
 * The hub's cache folder, in the layout that Python's huggingface_hub uses, so that both share what is downloaded:
 * `models--ORG--NAME/{blobs/HASH, refs/REVISION, snapshots/COMMIT/FILE -> ../../blobs/HASH}` and `.locks/`.
 */
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { breathe } from "../engine/interrupt";
import { syncFolder, writeFileAtomic } from "./atomic";

export type RepoCache = { root: string; id: string; folder: string; blobs: string; locks: string };

type Environment = Readonly<Record<string, string | undefined>>;

/** `$HF_HOME`, else `$XDG_CACHE_HOME/huggingface`, else `~/.cache/huggingface`. */
export const hubHome = (env: Environment = process.env): string =>
  env.HF_HOME || path.join(env.XDG_CACHE_HOME || path.join(os.homedir(), ".cache"), "huggingface");

/** Where models are kept: `$HF_HUB_CACHE`, else `$HUGGINGFACE_HUB_CACHE`, else `hub` in `hubHome`. */
export const hubCache = (env: Environment = process.env): string =>
  env.HF_HUB_CACHE || env.HUGGINGFACE_HUB_CACHE || path.join(hubHome(env), "hub");

/** The cache of one model. id: `org/name` or `name`, already checked. */
export function repoCache(id: string, root = hubCache()): RepoCache {
  const name = `models--${id.replace("/", "--")}`;
  const folder = path.join(root, name);
  return { root, id, folder, blobs: path.join(folder, "blobs"), locks: path.join(root, ".locks", name) };
}

export const snapshotFolder = (cache: RepoCache, commit: string): string => path.join(cache.folder, "snapshots", commit);
export const blobFile = (cache: RepoCache, hash: string): string => path.join(cache.blobs, hash);
export const isCommit = (revision: string): boolean => /^[0-9a-f]{40}$/.test(revision);

/** Whether a name from outside stays below the folder it is joined to: plain parts, no `..`, no drive, no control characters. */
export const isSafeName = (name: string): boolean =>
  name.length > 0 &&
  name.length <= 1024 &&
  !/[\\\0-\x1f\x7f]/.test(name) &&
  !/^[A-Za-z]:/.test(name) &&
  name.split("/").every((part) => part !== "" && part !== "." && part !== "..");

/** The commit that a branch or tag pointed at when it was last downloaded completely; a commit is its own. */
export function cachedCommit(cache: RepoCache, revision: string): string | undefined {
  if (isCommit(revision)) return revision;
  try {
    const commit = fs.readFileSync(path.join(cache.folder, "refs", ...revision.split("/")), "utf8").trim();
    return isCommit(commit) ? commit : undefined;
  } catch {
    return undefined;
  }
}

/** Notes which commit a branch or tag points at. Done last: a ref must not lead to a half snapshot. */
export async function writeRef(cache: RepoCache, revision: string, commit: string): Promise<void> {
  if (isCommit(revision) || cachedCommit(cache, revision) === commit) return;
  const file = path.join(cache.folder, "refs", ...revision.split("/"));
  fs.mkdirSync(path.dirname(file), { recursive: true });
  await writeFileAtomic(file, commit);
}

/** Puts a blob into a snapshot, as a relative link (a copy where links are not allowed). Replaces what points elsewhere. */
export async function linkSnapshot(cache: RepoCache, commit: string, name: string, hash: string): Promise<void> {
  const file = path.join(snapshotFolder(cache, commit), ...name.split("/"));
  fs.mkdirSync(path.dirname(file), { recursive: true });
  checkInside(cache, path.dirname(file));
  const blob = blobFile(cache, hash);
  checkInside(cache, blob);
  const target = path.relative(path.dirname(file), blob);
  if (readLink(file) === target) return;
  const temporary = `${file}.${process.pid}.tmp`;
  fs.rmSync(temporary, { force: true });
  try {
    fs.symlinkSync(target, temporary);
  } catch {
    fs.copyFileSync(blob, temporary);
  }
  fs.renameSync(temporary, file);
  await syncFolder(path.dirname(file));
}

function readLink(file: string): string | undefined {
  try {
    return fs.readlinkSync(file);
  } catch {
    return undefined;
  }
}

/**
 * Refuses a path that leads out of the model's cache folder through a link somebody planted there.
 * @throws Error naming the link and where it leads.
 */
export function checkInside(cache: RepoCache, file: string): void {
  const [real, root] = [fs.realpathSync(file), fs.realpathSync(cache.folder)];
  if (real !== root && !real.startsWith(root + path.sep))
    throw new Error(`${file} leads out of the cache, to ${real}; remove that link and download again`);
}

/** Seconds without a sign of life after which a lock counts as left behind. Downloads give one every five seconds. */
const STALE_SECONDS = 60;
const HOST = os.hostname().replace(/[^A-Za-z0-9-]/g, "_") || "host";

export const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
};

/** Partial downloads carry their owner's host and process, since only the owner knows that nobody else writes to them. */
export const partialFile = (cache: RepoCache, hash: string): string => `${blobFile(cache, hash)}.${HOST}-${process.pid}.incomplete`;

/** Takes over the largest partial download that a dead process of this machine left behind. Renaming is atomic: one taker wins. */
export function adoptPartial(cache: RepoCache, hash: string): void {
  const own = partialFile(cache, hash);
  const pattern = new RegExp(`^${hash}\\.${HOST}-(\\d+)\\.incomplete$`);
  const left = fs
    .readdirSync(cache.blobs)
    .filter((name) => pattern.test(name) && !isAlive(Number(pattern.exec(name)?.[1])))
    .map((name) => path.join(cache.blobs, name));
  const sizeOf = (file: string) => fs.statSync(file, { throwIfNoEntry: false })?.size ?? -1;
  left.sort((a, b) => sizeOf(b) - sizeOf(a));
  for (const file of left) {
    try {
      if (fs.existsSync(own)) fs.rmSync(file);
      else fs.renameSync(file, own);
      if (fs.existsSync(`${file}.etag`)) fs.renameSync(`${file}.etag`, `${own}.etag`);
    } catch {} // another process was faster
  }
}

/**
 * Runs `work` while no other process downloads the same blob. A lock whose process is dead, or that gave no sign of life for a minute,
 * is taken over; what keeps a blob right is not the lock but its hash, so a wrong guess costs only traffic.
 * Not flock, which lies on network file systems, and which Node.js does not have.
 */
export async function withLock<T>(cache: RepoCache, hash: string, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
  fs.mkdirSync(cache.locks, { recursive: true });
  const file = path.join(cache.locks, `${hash}.vitrine.lock`);
  while (!tryLock(file)) {
    signal.throwIfAborted();
    if (isStale(file)) takeAway(file);
    else await new Promise((resolve) => setTimeout(resolve, 200));
    await breathe();
  }
  const beat = setInterval(() => touch(file), 5000);
  try {
    return await work();
  } finally {
    clearInterval(beat);
    if (ownerOf(file) === owner()) fs.rmSync(file, { force: true });
  }
}

const owner = (): string => `${HOST} ${process.pid}`;

function ownerOf(file: string): string | undefined {
  try {
    return fs.readFileSync(file, "utf8");
  } catch {
    return undefined;
  }
}

function tryLock(file: string): boolean {
  try {
    fs.writeFileSync(file, owner(), { flag: "wx" });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

function touch(file: string): void {
  try {
    fs.utimesSync(file, new Date(), new Date());
  } catch {} // taken away: harmless, see withLock
}

function isStale(file: string): boolean {
  const stat = fs.statSync(file, { throwIfNoEntry: false });
  if (!stat) return false;
  if (Date.now() - stat.mtimeMs > STALE_SECONDS * 1000) return true;
  const [host, pid] = (ownerOf(file) ?? "").split(" ");
  return host === HOST && Number(pid) > 0 && Number(pid) !== process.pid && !isAlive(Number(pid));
}

/** Renamed first, so that of two takers only one removes it. */
function takeAway(file: string): void {
  const aside = `${file}.${process.pid}.stale`;
  try {
    fs.renameSync(file, aside);
    fs.rmSync(aside, { force: true });
  } catch {} // another process was faster
}
