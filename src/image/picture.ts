/** A picture from anywhere as plain RGB bytes, the same bytes that Pillow gives the reference's processors. */
import sharp from "sharp";
import { interruptSignal } from "../engine/interrupt";
import { pictureError, readBytes } from "./bytes";

/** 8-bit RGB, row by row from the top left: data[(y * width + x) * 3 + channel]. */
export type Picture = { width: number; height: number; data: Uint8Array };

/** What a picture may be read from: path, http(s), file or data URL, file bytes, or pixels (grey, RGB or RGBA by their number). */
export type PictureSource = string | URL | Uint8Array | Picture;

/** Limits hold before anything is decoded. */
export type PictureOptions = {
  /** Largest picture in pixels. */
  maxPixels?: number;
  /** Largest file or download in bytes. */
  maxBytes?: number;
  /** Largest time for a download in milliseconds. */
  timeoutMs?: number;
  /** Whether a photo is turned upright as its EXIF orientation says (a picture opened by PIL alone is not). */
  exif?: boolean;
  /**
   * What becomes of transparency: dropped, as `load_image()` of transformers does, laid on white, or refused, as the processors of ViT
   * and FLAVA do with a picture that was opened as it is.
   */
  alpha?: Alpha;
  signal?: AbortSignal;
};

type Alpha = "drop" | "white" | "refuse";

/** The longest edge of the JPEG format. A longer one would make a resize of one pixel's width costly. */
const MAX_EDGE = 65_535;

type Format = "jpeg" | "png" | "gif" | "webp";

const startsWith = (bytes: Uint8Array, text: string, at = 0): boolean =>
  Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1", at, at + text.length) === text;

const FORMATS: Record<Format, (bytes: Uint8Array) => boolean> = {
  jpeg: (bytes) => startsWith(bytes, "\xff\xd8\xff"),
  png: (bytes) => startsWith(bytes, "\x89PNG\r\n\x1a\n"),
  gif: (bytes) => startsWith(bytes, "GIF87a") || startsWith(bytes, "GIF89a"),
  webp: (bytes) => startsWith(bytes, "RIFF") && startsWith(bytes, "WEBP", 8),
};

/** Formats that are recognised only to be refused by name. */
const OTHERS: [name: string, start: string, at: number][] = [
  ["BMP", "BM", 0],
  ["TIFF", "II*\0", 0],
  ["TIFF", "MM\0*", 0],
  ["AVIF or HEIC", "ftyp", 4],
  ["PDF", "%PDF", 0],
];

/**
 * The format by the first bytes; names and declared types lie. Only bytes of these four formats reach the decoder library,
 * so that none of its other readers (SVG among them, which may pull in files) ever sees what a stranger sent.
 */
function sniff(bytes: Uint8Array, source: string): Format {
  const format = (Object.keys(FORMATS) as Format[]).find((name) => FORMATS[name](bytes));
  if (format) return format;
  if (bytes.length === 0) throw pictureError(source, "not-a-picture", "empty (0 bytes)");
  const text = Buffer.from(bytes.subarray(0, 1000)).toString("latin1");
  const other = OTHERS.find(([, start, at]) => startsWith(bytes, start, at))?.[0];
  if (/<svg/i.test(text)) throw pictureError(source, "unsupported", "an SVG drawing; render it to PNG first");
  if (/^\s*<(!doctype|html|\?xml|head|body)/i.test(text)) throw pictureError(source, "not-a-picture", "an HTML or XML page, not a picture");
  const what = other ? `${other}, which is not read` : `begins with ${JSON.stringify(text.slice(0, 8))}, not like any picture`;
  throw pictureError(source, other ? "unsupported" : "not-a-picture", `${what}; expected JPEG, PNG, WebP or GIF`);
}

/**
 * Reads a picture as 8-bit RGB: the first frame of GIF and WebP; palettes and grey expanded; of 16 bits the upper 8 (also for
 * grey, where Pillow's convert("RGB") cuts everything above 255); CMYK without colour profile as Pillow does; embedded colour
 * profiles are ignored, as by the reference.
 *
 * @throws Error named PictureError with `code` and `source`: see PictureErrorCode.
 */
export async function readPicture(source: PictureSource, options: PictureOptions = {}): Promise<Picture> {
  const { maxPixels = 50e6, maxBytes = 20e6, timeoutMs = 10_000, alpha = "drop", signal = interruptSignal() } = options;
  signal.throwIfAborted();
  if (source instanceof Uint8Array) {
    const name = `picture of ${source.length} bytes`;
    if (source.length > maxBytes) throw pictureError(name, "too-large", `the limit is ${maxBytes} bytes (maxBytes)`);
    return decode(source, name, maxPixels, options);
  }
  if (typeof source === "string" || source instanceof URL) {
    const { bytes, source: name } = await readBytes(String(source), { maxBytes, timeoutMs, signal });
    return decode(bytes, name, maxPixels, options);
  }
  return fromPixels(source, maxPixels, alpha);
}

/** The same bytes as a plain Uint8Array (sharp gives a Buffer). */
const plain = (data: Uint8Array | Uint8ClampedArray): Uint8Array => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

const isBytes = (data: unknown): boolean => data instanceof Uint8Array || data instanceof Uint8ClampedArray;

/** Checks pixels that a caller made, and brings grey or RGBA to RGB. */
function fromPixels(picture: Picture, maxPixels: number, alpha: Alpha): Picture {
  const { width, height, data: given } = Object(picture) as Picture;
  const pixels = width * height;
  const name = `picture of ${width} x ${height} pixels`;
  if (!Number.isSafeInteger(pixels) || width < 1 || height < 1 || !isBytes(given))
    throw pictureError(name, "not-a-picture", "expected { width, height, data: Uint8Array }, a path, a URL or the bytes of a file");
  checkExtent(name, width, height, maxPixels);
  const data = plain(given);
  const channels = data.length / pixels;
  if (![1, 3, 4].includes(channels))
    throw pictureError(
      name,
      "not-a-picture",
      `${data.length} bytes, expected ${pixels * 3} (RGB), ${pixels} (grey) or ${pixels * 4} (RGBA)`,
    );
  return { width, height, data: toRgb(data, pixels, channels, alpha, name) };
}

function checkExtent(source: string, width: number, height: number, maxPixels: number): void {
  if (width * height > maxPixels)
    throw pictureError(
      source,
      "too-large",
      `${width} x ${height} = ${((width * height) / 1e6).toFixed(1)} megapixels, the limit is ${maxPixels / 1e6} (maxPixels)`,
    );
  if (Math.max(width, height) > MAX_EDGE)
    throw pictureError(source, "too-large", `${width} x ${height}: no edge may be longer than ${MAX_EDGE} pixels`);
}

async function decode(bytes: Uint8Array, source: string, maxPixels: number, options: PictureOptions): Promise<Picture> {
  const format = sniff(bytes, source);
  try {
    const image = sharp(bytes, { limitInputPixels: maxPixels, failOn: "error", ignoreIcc: true, pages: 1 });
    const meta = await image.metadata(); // the header only
    checkExtent(source, meta.width, meta.height, maxPixels);
    if (meta.format !== format) throw pictureError(source, "not-a-picture", `begins like ${format}, but is ${meta.format}`);
    const upright = (options.exif ?? true) ? image.autoOrient() : image;
    const isCmyk = meta.space === "cmyk";
    const whole = isCmyk ? upright.pipelineColourspace("cmyk").toColourspace("cmyk") : upright;
    const { data, info } = await whole.raw({ depth: "uchar" }).toBuffer({ resolveWithObject: true });
    const pixels = info.width * info.height;
    const rgb = isCmyk ? fromCmyk(data, pixels) : toRgb(data, pixels, info.channels, options.alpha ?? "drop", source);
    return { width: info.width, height: info.height, data: rgb };
  } catch (error) {
    if ((error as Error).name === "PictureError") throw error;
    const text = (error as Error).message;
    if (/pixel limit|too large/i.test(text))
      throw pictureError(source, "too-large", `more pixels than the limit of ${maxPixels / 1e6} megapixels (maxPixels)`, error);
    throw pictureError(source, "damaged", `damaged or cut off ${format.toUpperCase()}: ${text.trim().split("\n")[0]}`, error);
  }
}

/** a * b / 255 as Pillow rounds it. */
function scaled(a: number, b: number): number {
  const product = a * b + 128;
  return ((product >> 8) + product) >> 8;
}

/** Ink to light without a colour profile, as Pillow's convert("RGB"). data: [pixels, 4] -> [pixels, 3] */
function fromCmyk(data: Uint8Array, pixels: number): Uint8Array {
  const out = new Uint8Array(pixels * 3);
  for (let i = 0, o = 0; o < out.length; i += 4) {
    const light = 255 - data[i + 3];
    for (let c = 0; c < 3; c++) out[o++] = Math.max(0, light - scaled(data[i + c], light));
  }
  return out;
}

/** Over white, in the fixed point of Pillow's alpha_composite (7 bits after the point). */
function onWhite(value: number, alpha: number): number {
  const sum = (value * alpha + 255 * (255 - alpha)) * 128 + (128 << 7);
  return ((sum >> 8) + sum) >> 15;
}

/** Grey, grey + alpha, RGB or RGBA to RGB. data: [pixels, channels] -> [pixels, 3] */
function toRgb(data: Uint8Array, pixels: number, channels: number, alpha: Alpha, source: string): Uint8Array {
  if (channels === 3) return plain(data);
  if (alpha === "refuse" && channels % 2 === 0)
    throw pictureError(
      source,
      "unsupported",
      `has transparency, which its processor does not take; alpha: "drop" or "white" says what becomes of it`,
    );
  const out = new Uint8Array(pixels * 3);
  const step = channels < 3 ? 0 : 1;
  const composite = alpha === "white" && channels % 2 === 0;
  for (let i = 0, o = 0; o < out.length; i += channels)
    for (let c = 0; c < 3; c++) {
      const value = data[i + c * step];
      out[o++] = composite ? onWhite(value, data[i + channels - 1]) : value;
    }
  return out;
}
