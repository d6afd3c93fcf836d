/** Pictures inside figures: shrunk to what is drawn, and written as PNG data URIs without leaving the thread. */
import { crc32, deflateSync } from "node:zlib";
import type { Picture } from "../image/picture";

/** Pixels that all pictures of one figure may have together: 0.4 MB of base64 for photographs, below what Jupyter lets through in a second. */
const PIXELS = 200_000;

/** The longest side that each of `count` pictures may have in one figure. */
export const sideFor = (count: number, most = 448): number =>
  Math.max(16, Math.min(most, Math.floor(Math.sqrt(PIXELS / Math.max(1, count)))));

/** A picture as `data:image/png;base64,...`, shrunk (mean over areas) so that its longer side is at most `side` pixels. */
export function pictureUri(where: string, picture: Picture, side = 448): string {
  checkPicture(where, picture);
  const scale = Math.min(1, side / Math.max(picture.width, picture.height));
  const small =
    scale === 1
      ? picture
      : shrink(picture, Math.max(1, Math.round(picture.width * scale)), Math.max(1, Math.round(picture.height * scale)));
  return `data:image/png;base64,${encodePng(small).toString("base64")}`;
}

/** An error unless the picture holds 3 bytes (RGB) a pixel. */
export function checkPicture(where: string, picture: Picture): void {
  const { width, height, data } = picture ?? {};
  if (!(width > 0 && height > 0 && data?.length === width * height * 3))
    throw new RangeError(
      `${where}: a picture of ${width} x ${height} holds ${data?.length} bytes, expected width, height and 3 bytes (RGB) a pixel`,
    );
}

/** Mean over the area that each new pixel covers, whole source pixels only; for display, not for models. */
export function shrink({ width, height, data }: Picture, toWidth: number, toHeight: number): Picture {
  const out = new Uint8Array(toWidth * toHeight * 3);
  for (let y = 0; y < toHeight; y++) {
    const [top, bottom] = span(y, toHeight, height);
    for (let x = 0; x < toWidth; x++) {
      const [left, right] = span(x, toWidth, width);
      const count = (bottom - top) * (right - left);
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let v = top; v < bottom; v++) for (let u = left; u < right; u++) sum += data[(v * width + u) * 3 + c];
        out[(y * toWidth + x) * 3 + c] = Math.round(sum / count);
      }
    }
  }
  return { width: toWidth, height: toHeight, data: out };
}

function span(i: number, to: number, from: number): [number, number] {
  const start = Math.floor((i * from) / to);
  return [start, Math.max(start + 1, Math.floor(((i + 1) * from) / to))];
}

/** An 8-bit RGB PNG (PNG specification, third edition: sections 5, 9 and 11). sharp would do it too, but not in a pure function. */
export function encodePng({ width, height, data }: Picture): Buffer {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, 2, 0, 0, 0], 8); // 8 bits, RGB, deflate, adaptive filters, not interlaced
  const raw = filterRows(width * 3, height, data);
  return Buffer.concat([
    Buffer.from([137, 80, 78, 71, 13, 10, 26, 10]),
    chunk("IHDR", header),
    chunk("IDAT", deflateSync(raw, { level: 9 })),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

/** Each row with the filter (none, left, up or Paeth) whose differences are smallest, as the specification advises in 12.7. */
function filterRows(stride: number, height: number, data: Uint8Array): Uint8Array {
  const out = new Uint8Array((stride + 1) * height);
  const tries = [0, 1, 2, 4].map((type) => ({ type, row: new Uint8Array(stride) }));
  for (let y = 0; y < height; y++) {
    let [best, least] = [tries[0], Infinity];
    for (const one of tries) {
      let sum = 0;
      for (let i = 0; i < stride; i++) {
        const at = y * stride + i;
        const left = i >= 3 ? data[at - 3] : 0;
        const up = y > 0 ? data[at - stride] : 0;
        const corner = i >= 3 && y > 0 ? data[at - stride - 3] : 0;
        const value = (data[at] - guess(one.type, left, up, corner)) & 255;
        one.row[i] = value;
        sum += value < 128 ? value : 256 - value;
      }
      if (sum < least) [best, least] = [one, sum];
    }
    out[y * (stride + 1)] = best.type;
    out.set(best.row, y * (stride + 1) + 1);
  }
  return out;
}

function guess(type: number, left: number, up: number, corner: number): number {
  if (type < 4) return type === 1 ? left : type === 2 ? up : 0;
  const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
  return a <= b && a <= c ? left : b <= c ? up : corner;
}

function chunk(name: string, body: Uint8Array): Buffer {
  const out = Buffer.alloc(body.length + 12);
  out.writeUInt32BE(body.length, 0);
  out.write(name, 4, "latin1");
  out.set(body, 8);
  out.writeUInt32BE(crc32(out.subarray(4, body.length + 8)), body.length + 8);
  return out;
}
