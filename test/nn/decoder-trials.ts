/** What the ops of vision-language decoders are tried with in ops.test.ts. */
import { tf } from "vitrine/engine";
import "vitrine/nn/columns";
import "vitrine/nn/cross-entropy";
import "vitrine/nn/gated";
import "vitrine/nn/patches";
import "vitrine/nn/rms-norm";
import "vitrine/nn/rope";
import type { Trial } from "./ops.test";

type Noise = (shape: number[], spread?: number) => tf.Tensor;
const SHAPES = [[1], [1, 1], [7], [3, 5], [2, 3, 13], [257]];
const labels = (...values: number[]) => tf.tensor1d(values, "int32");

export const decoderTrials = (noise: Noise): { [op: string]: Trial } => {
  const alone: Trial = { cases: () => SHAPES.map((shape) => ({ inputs: { x: noise(shape, 3) } })) };
  const gated: Trial = { cases: () => SHAPES.map((shape) => ({ inputs: { gate: noise(shape, 3), up: noise(shape) } })) };
  return {
    Silu: alone,
    GeluTanh: alone,
    Relu: { cases: () => SHAPES.map((shape) => ({ inputs: { x: noise(shape).sign().mul(noise(shape).abs().add(0.1)) } })) }, // off its corner
    Swiglu: gated,
    Geglu: gated,
    GegluTanh: gated,
    RmsNorm: {
      cases: () =>
        [
          [1, 1],
          [1, 2],
          [3, 5],
          [2, 3, 13],
          [1, 257],
        ].map((shape) => ({ inputs: { x: noise(shape, 2), weight: noise([shape.at(-1)!]) }, attributes: { eps: 1e-2 } })),
    },
    Rope: {
      cases: () =>
        [
          { shape: [1, 1, 2], half: 1, heads: 1, rows: 1 },
          { shape: [2, 3, 14], half: 2, heads: 2, rows: 2 },
          { shape: [2, 5, 12], half: 3, heads: 2, rows: 1 },
        ].map(({ shape: [B, N, D], half, heads, rows }) => ({
          inputs: {
            x: noise([B!, N!, D!]),
            positions: tf.range(0, rows * N!, 1, "int32").reshape([rows, N!]),
            inverseFrequencies: noise([half]).abs(),
          },
          attributes: { heads, factor: 1.5 },
        })),
      wrt: ["x"], // frequencies are constants
    },
    CrossEntropyRows: {
      cases: () => [
        { inputs: { logits: noise([1, 1]), labels: labels(0) }, attributes: { ignored: -100 } },
        { inputs: { logits: noise([4, 7], 4), labels: labels(6, -100, 0, 3) }, attributes: { ignored: -100 } },
        { inputs: { logits: noise([2, 2, 33], 4), labels: labels(32, 1, 1, 16).reshape([2, 2]) }, attributes: { ignored: 1 } },
      ],
    },
    CrossEntropyHead: {
      cases: () => [
        { inputs: { hidden: noise([1, 1]), weight: noise([1, 1]), labels: labels(0) }, attributes: { ignored: -100 } },
        { inputs: { hidden: noise([3, 5]), weight: noise([7, 5]), labels: labels(6, -100, 2) }, attributes: { ignored: -100 } },
        {
          inputs: { hidden: noise([1, 2, 17]), weight: noise([19, 17]), labels: labels(5, 18).reshape([1, 2]) },
          attributes: { ignored: 5 },
        },
      ],
    },
    MeanCrossEntropy: {
      cases: () =>
        [0, 0.25].map((smoothing) => ({
          inputs: { rows: noise([3, 5]), labels: labels(1, -100, 0, -100, 7) },
          attributes: { ignored: -100, smoothing },
        })),
    },
    TakeColumns: {
      cases: () => [
        { inputs: { x: noise([1, 1]) }, attributes: { parts: 1, width: 1, from: 0, count: 1 } },
        { inputs: { x: noise([3, 5]) }, attributes: { parts: 1, width: 5, from: 1, count: 3 } },
        { inputs: { x: noise([2, 3, 12]) }, attributes: { parts: 3, width: 4, from: 3, count: 1 } },
      ],
    },
    Patchify: {
      cases: () =>
        [
          { shape: [1, 1, 1, 1], P: 1 },
          { shape: [2, 5, 7, 3], P: 2 },
          { shape: [1, 6, 4, 2], P: 3 },
        ].map(({ shape: [B, H, W, C], P }) => ({
          inputs: { pixels: noise([B!, H!, W!, C!]) },
          attributes: { P, dtype: "float32", H: H!, W: W!, C: C! },
        })),
    },
    PixelShuffle: {
      cases: () =>
        [false, true].flatMap((byColumn) => [
          { inputs: { x: noise([1, 4, 1]) }, attributes: { skip: 0, rows: 2, columns: 2, ratio: 2, byColumn } },
          { inputs: { x: noise([2, 25, 3]) }, attributes: { skip: 1, rows: 4, columns: 6, ratio: 2, byColumn } },
        ]),
    },
  };
};
