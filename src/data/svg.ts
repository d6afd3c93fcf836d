/** Where the emoji drawings stand in their npm packages, and a drawing as pixels. */
import { mkdir, open, readdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import sharp from "sharp";
import { writeFileAtomic } from "../files/atomic";
import type { Picture } from "../image/picture";
import { plainId } from "./kin";

export type Style = "twemoji" | "noto";
/** ids: of every drawing, in `plainId` form; svg: its source text. */
export type Drawings = { version: string; ids: string[]; svg(id: string): Promise<string> };

/** The program that turns drawings into pixels; other versions draw edges slightly differently. */
export const RENDERER = `rsvg${sharp.versions.rsvg}`;

const PACKAGES = { twemoji: "@twemoji/svg", noto: "@svgmoji/noto" };

/** Folder of a style's npm package, found from this module as Node finds it, and its version. */
export async function stylePackage(style: Style): Promise<{ folder: string; version: string }> {
  const manifest = require.resolve(`${PACKAGES[style]}/package.json`);
  return { folder: dirname(manifest), version: JSON.parse(await readFile(manifest, "utf8")).version };
}

/** The drawings of a style. cache: folder for the sprite's index. */
export const openDrawings = (style: Style, cache: string): Promise<Drawings> => (style === "twemoji" ? openTwemoji() : openNoto(cache));

async function openTwemoji(): Promise<Drawings> {
  const { folder, version } = await stylePackage("twemoji");
  const names = (await readdir(folder)).filter((name) => name.endsWith(".svg")).sort();
  const files = new Map(names.map((name) => [plainId(name.slice(0, -4)), join(folder, name)]));
  return { version, ids: [...files.keys()], svg: (id) => readFile(drawing(files, id, "twemoji"), "utf8") };
}

async function openNoto(cache: string): Promise<Drawings> {
  const { folder, version } = await stylePackage("noto");
  const sprite = join(folder, "sprites", "all.svg");
  const index = await spriteIndex(sprite, join(cache, `noto-${version}.index.json`));
  return {
    version,
    ids: [...index.keys()],
    svg: async (id) => {
      const { start, end } = drawing(index, id, "noto");
      const file = await open(sprite);
      try {
        const { buffer } = await file.read(Buffer.alloc(end - start), 0, end - start, start);
        return buffer.toString("utf8");
      } finally {
        await file.close();
      }
    },
  };
}

function drawing<T>(drawings: Map<string, T>, id: string, style: Style): T {
  const found = drawings.get(plainId(id));
  if (!found) throw new Error(`emoji: the style ${style} has no picture of ${id}`);
  return found;
}

type Place = { start: number; end: number };

/** Where each drawing lies in the sprite, in bytes; found once (the sprite is 27 MB), then read from `file`. */
async function spriteIndex(sprite: string, file: string): Promise<Map<string, Place>> {
  const kept = await readFile(file, "utf8")
    .then((text) => new Map<string, Place>(JSON.parse(text)))
    .catch(() => undefined); // missing or damaged: made again
  if (kept) return kept;
  const index = indexSprite((await readFile(sprite)).toString("latin1"));
  await mkdir(dirname(file), { recursive: true });
  await writeFileAtomic(file, JSON.stringify([...index]));
  return index;
}

/** Offsets of the outermost `<svg id="CODE-POINTS">` elements inside the sprite's root; latin1 makes one character one byte. */
export function indexSprite(sprite: string): Map<string, Place> {
  const index = new Map<string, Place>();
  let [depth, start, id] = [0, 0, ""];
  for (const tag of sprite.matchAll(/<svg\b[^>]*>|<\/svg>/g)) {
    const [text] = tag;
    if (text.startsWith("</")) {
      if (--depth === 1) index.set(plainId(id), { start, end: tag.index + text.length });
    } else if (!text.endsWith("/>") && ++depth === 2) {
      start = tag.index;
      id = /\sid="([0-9A-F]+(?:-[0-9A-F]+)*)"/.exec(text)?.[1] ?? "";
      if (!id) throw new Error(`emoji: a drawing of the sprite has no code points as its id, at byte ${start}`);
    }
  }
  return index;
}

/**
 * Draws an SVG of any size and shape into a square of `size` pixels on white, centred, its proportions kept.
 * The size is written into the drawing, so that it is rasterised once at that size and not resampled.
 */
export async function rasterise(svg: string, size: number): Promise<Picture> {
  const sized = svg.replace(/<svg\b[^>]*>/, (tag) => {
    const plain = tag.replace(/\s(?:preserveAspectRatio|width|height)="[^"]*"/g, "");
    const xlink = svg.includes("xlink:") && !svg.includes("xmlns:xlink") ? ' xmlns:xlink="http://www.w3.org/1999/xlink"' : "";
    return plain.replace("<svg", `<svg width="${size}" height="${size}"${xlink}`);
  });
  const image = sharp(Buffer.from(sized)).flatten({ background: "#ffffff" }).toColourspace("srgb").removeAlpha().raw();
  const { data, info } = await image.toBuffer({ resolveWithObject: true });
  if (info.width !== size || info.height !== size || info.channels !== 3)
    throw new Error(`emoji: drawn as ${info.width}x${info.height} with ${info.channels} channels, expected ${size}x${size} with 3`);
  return { width: size, height: size, data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength) };
}
