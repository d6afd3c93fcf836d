/** Pictures as PNG: one, or many on a contact sheet. */
import type { Sharp } from "sharp";
import type { Picture } from "../image/picture";

/** Widest picture that is sent to the browser, pixels. */
const WIDEST = 1600;
/** Pictures on one sheet. */
export const MOST = 400;
const GAP = 4;

/** Whether a value is a picture: RGB bytes with a width and a height. */
export function isPicture(value: unknown): value is Picture {
  const { width, height, data } = (value ?? {}) as Partial<Picture>;
  return (
    typeof width === "number" &&
    typeof height === "number" &&
    (data instanceof Uint8Array || (data as unknown) instanceof Uint8ClampedArray)
  );
}

/**
 * PNG of a picture. `scale`: each pixel becomes scale x scale (nearest neighbour), so that a 16 x 16 picture can be looked at;
 * without it a picture wider than 1600 pixels is made smaller.
 */
export async function pngOfPicture(picture: Picture, scale?: number): Promise<Buffer> {
  if (scale !== undefined && !(Number.isInteger(scale) && scale >= 1 && picture.width * scale <= 4096 && picture.height * scale <= 4096))
    throw new RangeError(
      `show: scale is ${scale}, expected a whole number >= 1 that keeps ${picture.width} x ${picture.height} within 4096 pixels a side`,
    );
  const image = await open(picture);
  if (scale !== undefined) image.resize(picture.width * scale, picture.height * scale, { kernel: "nearest" });
  else if (Math.max(picture.width, picture.height) > WIDEST) image.resize(WIDEST, WIDEST, { fit: "inside" });
  return image.png().toBuffer();
}

/** PNG of pictures in rows of `columns`, each within `size` x `size` pixels; small ones keep hard pixels. At most 400. */
export async function contactSheet(pictures: Picture[], columns: number, size: number): Promise<Buffer> {
  const { default: sharp } = await import("sharp");
  const step = size + GAP;
  const tiles = await Promise.all(
    pictures.slice(0, MOST).map(async (picture, i) => {
      const { data, info } = await (await open(picture))
        .resize(size, size, { fit: "inside", kernel: Math.max(picture.width, picture.height) < size ? "nearest" : "lanczos3" })
        .png()
        .toBuffer({ resolveWithObject: true });
      const [left, top] = [(i % columns) * step + ((size - info.width) >> 1), Math.floor(i / columns) * step + ((size - info.height) >> 1)];
      return { input: data, left: left + GAP, top: top + GAP };
    }),
  );
  const [width, height] = [columns * step + GAP, Math.ceil(tiles.length / columns) * step + GAP];
  return sharp({ create: { width, height, channels: 3, background: "#ffffff" } })
    .composite(tiles)
    .png()
    .toBuffer();
}

async function open({ width, height, data }: Picture): Promise<Sharp> {
  if (!(Number.isInteger(width) && Number.isInteger(height) && width > 0 && height > 0 && data.length === width * height * 3))
    throw new RangeError(
      `show: a picture of ${width} x ${height} has ${data.length} bytes, expected ${width * height * 3} (RGB, row after row)`,
    );
  const { default: sharp } = await import("sharp");
  return sharp(data, { raw: { width, height, channels: 3 } });
}
