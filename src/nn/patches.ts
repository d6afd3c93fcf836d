/** Pictures as rows of patches, and neighbouring patches as one token. Letters: B batch, H, W, C a picture's sizes, P patch size, D width. */
import { isBfloat16, toBfloat16, toFloat32 } from "../engine/bfloat16";
import { hasNative, runNative } from "../engine/native";
import { defineOp } from "../engine/op";
import { tf } from "../engine/tf";

const DTYPES = { float32: 1, bfloat16: 14 };

type Pixels = { pixels: tf.Tensor4D };
type PatchAttributes = { P: number; dtype: string; H: number; W: number; C: number };

function patchFormula({ pixels }: Pixels, { P, dtype }: PatchAttributes): tf.Tensor {
  const [B, H, W, C] = pixels.shape;
  const [rows, columns] = [Math.floor(H / P), Math.floor(W / P)];
  const whole = H % P || W % P ? pixels.slice([0, 0, 0, 0], [B, rows * P, columns * P, C]) : pixels;
  const patches = whole
    .reshape([B, rows, P, columns, P, C])
    .transpose([0, 1, 3, 5, 2, 4])
    .reshape([B, rows * columns, C * P * P]);
  return dtype === "bfloat16" ? toBfloat16(patches) : patches;
}

function pixelsOf(dy: tf.Tensor, { P, H, W, C }: PatchAttributes): tf.Tensor {
  if (hasNative("unpatchify")) return runNative("unpatchify", [dy], [P, H, W, C])[0]!;
  return tf.tidy(() => {
    const [B, rows, columns] = [dy.shape[0]!, Math.floor(H / P), Math.floor(W / P)];
    const whole = dy
      .reshape([B, rows, columns, C, P, P])
      .transpose([0, 1, 4, 2, 5, 3])
      .reshape([B, rows * P, columns * P, C]) as tf.Tensor4D;
    return whole.pad([
      [0, 0],
      [0, H - rows * P],
      [0, W - columns * P],
      [0, 0],
    ]);
  });
}

const patchOp = defineOp<Pixels, PatchAttributes>("Patchify", {
  formula: patchFormula,
  kernels: {
    tensorflow: (inputs, attributes) =>
      hasNative("patchify")
        ? runNative("patchify", [inputs.pixels], [attributes.P, DTYPES[attributes.dtype as keyof typeof DTYPES]])[0]!
        : patchFormula(inputs, attributes),
  },
  gradient: (dy, _, attributes) => ({ pixels: () => pixelsOf(dy, attributes) }),
});

/**
 * Pictures as rows of patches, in the order of a convolution's weight (channel, row, column), in one pass.
 * pixels: float32 [B, H, W, C] -> [B, (H / P)(W / P), C·P·P] of `dtype`; a rest of less than a patch at the right or bottom is cut off, as a
 * convolution does. The gradient to the pixels is for rows of float32.
 */
export function patchRows(pixels: tf.Tensor4D, P: number, dtype: "float32" | "bfloat16" = "float32"): tf.Tensor3D {
  if (!(Number.isInteger(P) && P >= 1)) throw new RangeError(`patchRows: patch size ${P}, expected a whole number from 1 (patch_size)`);
  const [, H, W, C] = pixels.shape;
  return patchOp({ pixels }, { P, dtype, H, W, C }) as tf.Tensor3D;
}

type Grid = { skip: number; rows: number; columns: number; ratio: number; byColumn: boolean };
type Tokens = { x: tf.Tensor3D };

/** [B, rows·columns, D] as [B, rows / s, s, columns / s, s, D], and the order that brings the groups together. */
const axes = (byColumn: boolean) => (byColumn ? [0, 3, 1, 2, 4, 5] : [0, 1, 3, 2, 4, 5]);

function shuffleFormula({ x }: Tokens, { skip, rows, columns, ratio: s, byColumn }: Grid): tf.Tensor {
  const [B, , D] = x.shape;
  const wide = toFloat32(x)
    .slice([0, skip, 0])
    .reshape([B, rows / s, s, columns / s, s, D])
    .transpose(axes(byColumn))
    .reshape([B, (rows / s) * (columns / s), s * s * D]);
  return isBfloat16(x) ? toBfloat16(wide) : wide;
}

const numbers = ({ skip, rows, columns, ratio, byColumn }: Grid): number[] => [skip, rows, columns, ratio, byColumn ? 1 : 0];

function unshuffle(dy: tf.Tensor, grid: Grid): tf.Tensor {
  if (hasNative("pixelUnshuffle")) return runNative("pixelUnshuffle", [dy], numbers(grid))[0]!;
  return tf.tidy(() => {
    const { skip, rows, columns, ratio: s, byColumn } = grid;
    const [B, D] = [dy.shape[0]!, dy.shape[2]! / (s * s)];
    const [down, across] = [rows / s, columns / s];
    const grouped = dy.reshape(byColumn ? [B, across, down, s, s, D] : [B, down, across, s, s, D]);
    const tokens = grouped.transpose(byColumn ? [0, 2, 3, 1, 4, 5] : [0, 1, 3, 2, 4, 5]).reshape([B, rows * columns, D]) as tf.Tensor3D;
    return tokens.pad([
      [0, 0],
      [skip, 0],
      [0, 0],
    ]);
  });
}

const shuffleOp = defineOp<Tokens, Grid>("PixelShuffle", {
  formula: shuffleFormula,
  kernels: {
    tensorflow: (inputs, grid) =>
      hasNative("pixelShuffle") ? runNative("pixelShuffle", [inputs.x], numbers(grid))[0]! : shuffleFormula(inputs, grid),
  },
  gradient: (dy, _, grid) => ({ x: () => unshuffle(dy, grid) }),
});

export type PixelShuffleOptions = {
  /** Rows and columns of the grid of tokens. Default: a square. */
  grid?: [number, number];
  /** Side of a group, 1 / `downsample_ratio` of InternVL, `scale_factor` of Idefics3, `hidden_stride` of Ovis2. */
  ratio?: number;
  /** Tokens before the grid that are left out: 1 for a class token. */
  skip?: number;
  /** InternVL's `ps_version`: "v1" gives the groups column by column, every later model row by row. */
  version?: "v1" | "v2";
};

/**
 * Groups of ratio x ratio neighbouring tokens as one, their numbers one behind the other, row by row, in one pass (InternVL 1.5, "pixel shuffle";
 * Idefics3, SmolVLM and Ovis2 do the same). x: float32 or bfloat16 [B, skip + rows·columns, D] -> [B, rows·columns / ratio², ratio²·D], of x's
 * dtype. The gradient is for float32.
 *
 * @throws RangeError naming everything that does not fit.
 */
export function pixelShuffle(x: tf.Tensor3D, { grid, ratio = 2, skip = 0, version = "v2" }: PixelShuffleOptions = {}): tf.Tensor3D {
  const tokens = x.shape[1] - skip;
  const side = Math.round(Math.sqrt(Math.max(0, tokens)));
  const [rows, columns] = grid ?? [side, side];
  const misfits: string[] = [];
  if (rows * columns !== tokens)
    misfits.push(`${tokens} tokens are no grid of ${rows} x ${columns}${grid ? "" : "; say which with { grid: [rows, columns] }"}`);
  if (!(Number.isInteger(ratio) && ratio >= 1)) misfits.push(`ratio is ${ratio}, expected a whole number from 1`);
  else if (rows % ratio || columns % ratio)
    misfits.push(`a grid of ${rows} x ${columns} does not divide into groups of ${ratio} x ${ratio}`);
  if (version !== "v1" && version !== "v2") misfits.push(`version is "${version}" (ps_version), known: v1, v2`);
  if (misfits.length) throw new RangeError(`pixelShuffle of x [${x.shape}]: ${misfits.join("; ")}`);
  return shuffleOp({ x }, { skip, rows, columns, ratio, byColumn: version === "v1" }) as tf.Tensor3D;
}
