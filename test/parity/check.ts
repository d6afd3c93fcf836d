/** One comparison with the oracle: how far the worst number is from PyTorch's, and how far it may be. */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { readJson } from "vitrine/files/json";
import { openSafetensors, toFloat32 } from "vitrine/files/safetensors";

export type Check = { family: string; check: string; worst: number; tolerance: number; ok: boolean; note?: string };

/** The tolerances of the oracle's manifest.json: |got - want| <= atol + rtol · max|want| over the array. */
export type Tolerance = { atol: number; rtol: number; meanAbs?: number };

export const FLOAT: Tolerance = { atol: 1e-5, rtol: 1e-4 };
export const ATTENTION: Tolerance = { atol: 2e-5, rtol: 0 };
export const GRADIENT: Tolerance = { atol: 1e-5, rtol: 1e-3 };
export const PIXELS_PIL: Tolerance = { atol: 0.02, rtol: 0, meanAbs: 0.001 };
export const PIXELS_TORCHVISION: Tolerance = { atol: 0.04, rtol: 0, meanAbs: 0.002 };
export const LORA_LOSS: Tolerance = { atol: 1e-4, rtol: 1e-3 };
export const MERGED: Tolerance = { atol: 1e-4, rtol: 1e-4 };

// biome-ignore lint/suspicious/noExplicitAny: the layout of cases.json is the oracle's, described in its README
export type Cases = any;

/** One family's folder of an oracle: its cases, and its arrays by name. */
export type Oracle = {
  root: string;
  folder: string;
  family: string;
  cases: Cases;
  array(name: string): { values: Float32Array; shape: number[] };
};

export function openOracle(root: string, family: string): Oracle {
  const folder = join(root, family);
  let file: ReturnType<typeof openSafetensors> | undefined;
  const array = (name: string) => {
    file ??= openSafetensors(join(folder, "arrays.safetensors")); // a family of prompts alone has none
    const source = file.tensors.get(name);
    if (!source) throw new Error(`${folder}/arrays.safetensors holds no "${name}"`);
    return { values: toFloat32(source), shape: source.shape };
  };
  return { root, folder, family, cases: readJson(join(folder, "cases.json")), array };
}

/** A collector of checks for one family. */
export class Checks {
  readonly rows: Check[] = [];
  constructor(private readonly family: string) {}

  /** Numbers against numbers; a wrong shape or count fails with a note. */
  close(
    check: string,
    got: ArrayLike<number>,
    want: ArrayLike<number>,
    { atol, rtol, meanAbs }: Tolerance,
    shapes?: { got: number[]; want: number[] },
  ): void {
    if (got.length !== want.length || (shapes && String(shapes.got) !== String(shapes.want))) {
      this.row(check, Number.NaN, atol, false, `shape [${shapes?.got ?? got.length}], expected [${shapes?.want ?? want.length}]`);
      return;
    }
    let [worst, scale, sum] = [0, 0, 0];
    for (let i = 0; i < want.length; i++) {
      const d = Math.abs(got[i] - want[i]);
      worst = Number.isNaN(d) ? Number.NaN : Math.max(worst, d);
      scale = Math.max(scale, Math.abs(want[i]));
      sum += d;
    }
    const mean = want.length ? sum / want.length : 0;
    const tolerance = atol + rtol * scale;
    const meanFails = meanAbs !== undefined && !(mean <= meanAbs);
    this.row(
      check,
      worst,
      tolerance,
      worst <= tolerance && !meanFails,
      meanFails ? `mean error ${mean.toExponential(1)} > ${meanAbs}` : undefined,
    );
  }

  /** A tensor against an array of the oracle. */
  async tensor(check: string, got: tf.Tensor, want: { values: Float32Array; shape: number[] }, tolerance: Tolerance): Promise<void> {
    this.close(check, (await got.data()) as Float32Array, want.values, tolerance, { got: got.shape, want: want.shape });
  }

  /** Things that must be equal to the letter; `wrong` lists those that are not. */
  exact(check: string, total: number, wrong: string[]): void {
    this.row(
      check,
      wrong.length,
      0,
      wrong.length === 0 && total > 0,
      total === 0 ? "no cases" : wrong.slice(0, 3).join("; ") || `${total} equal`,
    );
  }

  private row(check: string, worst: number, tolerance: number, ok: boolean, note?: string): void {
    this.rows.push({ family: this.family, check, worst, tolerance, ok, note });
  }
}

/** Channels first, as PyTorch keeps pictures, to channels last. values: [B, C, H, W] -> tensor [B, H, W, C] */
export const channelsLast = ({ values, shape }: { values: Float32Array; shape: number[] }): tf.Tensor4D =>
  tf.tidy(() => tf.tensor(values, shape).transpose([0, 2, 3, 1]) as tf.Tensor4D);

/** Integers [B, N], such as token ids and masks. */
export const integers = ({ values, shape }: { values: Float32Array; shape: number[] }): tf.Tensor2D =>
  tf.tensor2d(Int32Array.from(values), shape as [number, number], "int32");
