/** The emoji of one style at one size as pixels: drawn once, kept in one file, read picture by picture. */
import { closeSync, openSync, readSync } from "node:fs";
import { type FileHandle, mkdir, open } from "node:fs/promises";
import { dirname, join } from "node:path";
import { crc32 } from "node:zlib";
import { interruptSignal } from "../engine/interrupt";
import { progress } from "../engine/progress";
import { writeFileAtomic } from "../files/atomic";
import type { Picture } from "../image/picture";
import { plainId } from "./kin";
import { cacheFolder } from "./place";
import { type Drawings, openDrawings, RENDERER, rasterise, type Style, stylePackage } from "./svg";

/** Pictures by emoji id, however it writes U+FE0F. `read` gives a copy that the caller may change. */
export type EmojiPictures = { has(id: string): boolean; read(id: string): Promise<Picture> };

/** Changes when the file's layout or the way of drawing does, so that older files are not read. */
const FORMAT = 1;
/** Above this a file would pass 200 MB; such pictures are drawn when asked for (2 to 5 ms each). */
export const LARGEST_KEPT = 128;
/** Drawn at once: enough for sharp's threads, and short enough to stop soon when interrupted. */
const AT_ONCE = 32;

/** At the end of the file, before its own length in 4 bytes: ids in the order of the pictures, and the CRC-32 of each. */
type Trailer = { ids: string[]; sums: number[] };

/** Opens a style at `size` pixels; the first time it draws all pictures (5 to 10 s), which `signal` stops. */
export async function emojiPictures(style: Style, size: number, signal: AbortSignal = interruptSignal()): Promise<EmojiPictures> {
  const folder = join(cacheFolder(), "emoji");
  if (size > LARGEST_KEPT) return drawnWhenAsked(await openDrawings(style, folder), size);
  const { version } = await stylePackage(style);
  const file = join(folder, `${style}-${version}-${RENDERER}-v${FORMAT}-${size}px.pixels`);
  const trailer = (await readTrailer(file, size)) ?? (await drawOnce(style, size, file, signal));
  return kept(file, size, trailer);
}

/** Files being drawn now: who asks for two splits at once waits for one drawing. */
const underWay = new Map<string, Promise<Trailer>>();

function drawOnce(style: Style, size: number, file: string, signal: AbortSignal): Promise<Trailer> {
  const draw = async () => {
    await mkdir(dirname(file), { recursive: true });
    return drawAll(await openDrawings(style, dirname(file)), size, file, style, signal);
  };
  const drawing = underWay.get(file) ?? draw().finally(() => underWay.delete(file));
  underWay.set(file, drawing);
  return drawing;
}

function drawnWhenAsked(drawings: Drawings, size: number): EmojiPictures {
  const ids = new Set(drawings.ids);
  return { has: (id) => ids.has(plainId(id)), read: async (id) => rasterise(await drawings.svg(id), size) };
}

function kept(file: string, size: number, { ids, sums }: Trailer): EmojiPictures {
  const place = new Map(ids.map((id, i) => [id, i]));
  const bytes = size * size * 3;
  return {
    has: (id) => place.has(plainId(id)),
    async read(id) {
      const i = place.get(plainId(id));
      if (i === undefined) throw new Error(`emoji: ${file} has no picture of ${id}`);
      const data = readAt(file, i * bytes, bytes);
      if (crc32(data) !== sums[i])
        throw new Error(`emoji: the picture of ${id} in ${file} is damaged; delete the file, it will be made again`);
      return { width: size, height: size, data };
    },
  };
}

/** Synchronous: the page is in memory after the first epoch, where a round trip to a thread costs more than the read. */
function readAt(file: string, start: number, length: number): Uint8Array {
  const data = new Uint8Array(length);
  const handle = openSync(file, "r");
  try {
    readSync(handle, data, 0, length, start);
    return data;
  } finally {
    closeSync(handle);
  }
}

/** The trailer, or undefined where there is no file, or one of the wrong length (then it is made again). */
async function readTrailer(path: string, size: number): Promise<Trailer | undefined> {
  const file = await open(path, "r").catch((error: NodeJS.ErrnoException) => {
    if (error.code !== "ENOENT") throw error;
  });
  if (!file) return undefined;
  try {
    const { size: total } = await file.stat();
    if (total < 4) return undefined;
    const length = (await file.read(Buffer.alloc(4), 0, 4, total - 4)).buffer.readUInt32LE();
    if (length > total - 4) return undefined;
    const text = (await file.read(Buffer.alloc(length), 0, length, total - 4 - length)).buffer.toString("utf8");
    const trailer = parseTrailer(text);
    return trailer && total === trailer.ids.length * size * size * 3 + length + 4 ? trailer : undefined;
  } finally {
    await file.close();
  }
}

function parseTrailer(text: string): Trailer | undefined {
  try {
    const { ids, sums } = JSON.parse(text);
    return Array.isArray(ids) && Array.isArray(sums) && ids.length === sums.length ? { ids, sums } : undefined;
  } catch {
    return undefined; // damaged: made again
  }
}

/** Draws every picture of a style into `file`; at most AT_ONCE of them are in memory. */
async function drawAll(drawings: Drawings, size: number, file: string, style: Style, signal: AbortSignal): Promise<Trailer> {
  const sums: number[] = [];
  const bar = progress(drawings.ids.length, `drawing the ${style} emoji at ${size} px (once)`, "pictures");
  const write = async (handle: FileHandle) => {
    for (let i = 0; i < drawings.ids.length; i += AT_ONCE) {
      signal.throwIfAborted();
      const ids = drawings.ids.slice(i, i + AT_ONCE);
      const pictures = await Promise.all(ids.map(async (id) => rasterise(await drawings.svg(id), size)));
      for (const { data } of pictures) sums.push(crc32(data));
      await handle.write(Buffer.concat(pictures.map(({ data }) => data)));
      bar.tick(ids.length);
    }
    const trailer = Buffer.from(JSON.stringify({ ids: drawings.ids, sums }));
    const length = Buffer.alloc(4);
    length.writeUInt32LE(trailer.length);
    await handle.write(Buffer.concat([trailer, length]));
  };
  await writeFileAtomic(file, write).finally(() => bar.done());
  return { ids: drawings.ids, sums };
}
