/** Small random changes of a picture for training. */
import type { Random } from "../data/random";
import type { Picture } from "../image/picture";

export type Jitter = {
  /** Largest shift, as a share of the side. */
  shift?: number;
  /** Largest change of size: 0.2 draws from 0.8 to 1.25 times. */
  zoom?: number;
  /** Largest turn in degrees. */
  turn?: number;
  /** Largest change of brightness and of each channel, as a share. */
  colour?: number;
};

/** A picture shifted, zoomed, turned and tinted at random (bilinear, white outside). Same size. */
export function jitter(picture: Picture, next: Random, { shift = 0.08, zoom = 0.2, turn = 10, colour = 0.1 }: Jitter = {}): Picture {
  const { width, height, data } = picture;
  const spread = (most: number) => (2 * next() - 1) * most;
  const scale = Math.exp(spread(Math.log(1 + zoom)));
  const angle = (spread(turn) * Math.PI) / 180;
  const [cos, sin] = [Math.cos(angle) / scale, Math.sin(angle) / scale];
  const [dx, dy] = [spread(shift) * width, spread(shift) * height];
  const light = 1 + spread(colour);
  const tint = [0, 1, 2].map(() => light * (1 + spread(colour / 2)));
  const out = new Uint8Array(data.length);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const [u, v] = [x - width / 2 - dx, y - height / 2 - dy];
      const [sx, sy] = [cos * u + sin * v + width / 2, cos * v - sin * u + height / 2];
      const [x0, y0] = [Math.floor(sx), Math.floor(sy)];
      const [fx, fy] = [sx - x0, sy - y0];
      for (let c = 0; c < 3; c++) {
        const at = (px: number, py: number) => (px < 0 || py < 0 || px >= width || py >= height ? 255 : data[(py * width + px) * 3 + c]);
        const top = at(x0, y0) * (1 - fx) + at(x0 + 1, y0) * fx;
        const bottom = at(x0, y0 + 1) * (1 - fx) + at(x0 + 1, y0 + 1) * fx;
        out[(y * width + x) * 3 + c] = Math.min(255, (top * (1 - fy) + bottom * fy) * tint[c]);
      }
    }
  return { width, height, data: out };
}
