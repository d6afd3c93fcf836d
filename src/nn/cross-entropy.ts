/**
 * Softmax cross-entropy, from logits or from the hidden states in front of a large vocabulary. Letters: N rows, D width, V classes.
 * Both forms give three numbers a row and keep nothing else for the gradient: log Σ exp of its logits, its label's logit, its mean logit.
 */
import { gatherBfloat16, isBfloat16, toBfloat16, toFloat32 } from "../engine/bfloat16";
import { isFrozen, plain } from "../engine/frozen";
import { hasNative, runNative } from "../engine/native";
import { defineOp } from "../engine/op";
import { dequantise, isQuantised } from "../engine/quantised";
import { readable } from "../engine/read";
import { isRecording } from "../engine/recording";
import { tf } from "../engine/tf";

/** The label of a row that does not count, as PyTorch's ignore_index. */
export const IGNORED = -100;

const FLOAT = 1;
/** Numbers of a slice of logits that a formula holds at a time: 64 MB. */
const SLICE = 1 << 24;

type Rows = { labels: tf.Tensor; y?: tf.Tensor };
type Ignoring = { ignored: number };

/**
 * Labels in range, as the kernels check them. Where no number can be read at this point (in a function that `jit` records, on WebGPU) nothing is thrown:
 * the loss of a label out of range is NaN there.
 */
function checkLabels(labels: tf.Tensor, classes: number, ignored: number): void {
  if (isRecording() || !readable(labels)) return;
  const wrong = labels.dataSync().findIndex((label) => label !== ignored && !(label >= 0 && label < classes));
  if (wrong < 0) return;
  throw new RangeError(
    `crossEntropy: label ${wrong} is ${labels.dataSync()[wrong]}; expected 0 to ${classes - 1}, or ${ignored}, which is ignored`,
  );
}

const matrix = (x: tf.Tensor): tf.Tensor2D => toFloat32(x).reshape([-1, x.shape[x.shape.length - 1]!]) as tf.Tensor2D;

/** 1 for a row that counts, else 0. [N] */
const counting = (labels: tf.Tensor, ignored: number): tf.Tensor1D => labels.flatten().notEqual(ignored).cast("float32") as tf.Tensor1D;

/** Which column of a row is its label's, where the first column is class `first`: bool [N, columns]. (tf.oneHot wants at least two.) */
const onehot = (labels: tf.Tensor, first: number, columns: number): tf.Tensor =>
  labels.reshape([-1, 1]).equal(tf.range(first, first + columns, 1, "int32").expandDims(0));

/** The three numbers of each row of logits whose first column is class `first`; 0 for a label of another slice. [3, N] */
function rowsOf(logits: tf.Tensor2D, labels: tf.Tensor, first: number): [tf.Tensor, tf.Tensor, tf.Tensor] {
  const picked = tf.where(onehot(labels, first, logits.shape[1]), logits, tf.zerosLike(logits)).sum(1); // not a product: 0 · infinity is NaN
  return [logits.logSumExp(1) as tf.Tensor, picked, logits.sum(1)];
}

/** Rows that do not count are 0, whatever stands in them, and rows whose label is no class NaN. */
function masked(rows: tf.Tensor, labels: tf.Tensor, classes: number, ignored: number): tf.Tensor {
  const flat = labels.flatten();
  const known = tf.where(flat.greaterEqual(0).logicalAnd(flat.less(classes)), rows, tf.fill(rows.shape, Number.NaN));
  return tf.where(flat.notEqual(ignored), known, tf.zerosLike(rows));
}

/** softmax · dy[0] + onehot · dy[1] + dy[2] / V for columns from `first` on; zeros in rows that do not count. [N, columns] */
function gradientOfLogits(dy: tf.Tensor, logits: tf.Tensor2D, { labels, y }: Rows, ignored: number, first: number, classes: number) {
  const [share, pick, even] = tf.unstack(dy).map((row) => row.expandDims(1));
  const softmax = logits.sub(y!.slice([0, 0], [1, -1]).reshape([-1, 1])).exp();
  const target = onehot(labels, first, logits.shape[1]).cast("float32");
  const gradient = softmax.mul(share).add(target.mul(pick)).add(even.div(classes));
  return tf.where(counting(labels, ignored).expandDims(1).cast("bool"), gradient, tf.zerosLike(gradient)) as tf.Tensor2D;
}

type FromLogits = { logits: tf.Tensor; labels: tf.Tensor };

function logitsFormula({ logits, labels }: FromLogits, { ignored }: Ignoring): tf.Tensor {
  const wide = matrix(logits);
  checkLabels(labels, wide.shape[1], ignored);
  const [logarithm, picked, sum] = rowsOf(wide, labels, 0);
  return masked(tf.stack([logarithm, picked, sum.div(wide.shape[1])]), labels, wide.shape[1], ignored);
}

const logitsRows = defineOp<FromLogits, Ignoring>("CrossEntropyRows", {
  formula: logitsFormula,
  kernels: {
    tensorflow: (inputs, { ignored }) =>
      hasNative("crossEntropy")
        ? runNative("crossEntropy", [inputs.logits, inputs.labels], [ignored])[0]!
        : logitsFormula(inputs, { ignored }),
  },
  saves: { inputs: ["logits", "labels"], output: true },
  gradient: (dy, { logits, labels, y }, { ignored }) => ({
    logits: () =>
      hasNative("crossEntropyGradient")
        ? runNative("crossEntropyGradient", [dy, logits!, labels!, y!], [ignored])[0]!
        : tf.tidy(() => {
            const wide = matrix(logits!);
            return gradientOfLogits(dy, wide, { labels: labels!, y }, ignored, 0, wide.shape[1]).reshape(logits!.shape);
          }),
  }),
});

type FromHidden = { hidden: tf.Tensor; weight: tf.Tensor2D; labels: tf.Tensor };

/** Calls body(first class, rows of W) for slices of the vocabulary, and disposes all but what it gives. */
function overSlices(rows: number, weight: tf.Tensor2D, body: (first: number, part: tf.Tensor2D) => void): void {
  const [V, D] = weight.shape;
  const table = plain(tableOf(weight));
  const step = Math.max(1, Math.min(V, Math.floor(SLICE / Math.max(1, rows, D))));
  for (let first = 0; first < V; first += step) {
    const count = Math.min(step, V - first);
    const part = isBfloat16(table)
      ? toFloat32(gatherBfloat16(table, tf.range(first, first + count, 1, "int32")) as tf.Tensor2D)
      : tf.slice(table, [first, 0], [count, D]);
    body(first, part);
  }
}

/** A weight in int8 or NF4 as the matrix that it stands for, in bfloat16 where there are kernels; any other as it is. */
const tableOf = (weight: tf.Tensor2D): tf.Tensor2D =>
  isQuantised(weight) ? dequantise(weight, hasNative("dequantise") ? "bfloat16" : "float32") : weight;

/** Hidden states as they are multiplied: in the numbers that a bfloat16 weight has. */
const multiplied = ({ hidden, weight }: { hidden: tf.Tensor; weight: tf.Tensor }): tf.Tensor2D =>
  matrix(isBfloat16(weight) ? toBfloat16(hidden) : hidden);

function headFormula({ hidden, weight, labels }: FromHidden, { ignored }: Ignoring): tf.Tensor {
  checkLabels(labels, weight.shape[0], ignored);
  const x = multiplied({ hidden, weight });
  let sums: tf.Tensor[] = [tf.fill([x.shape[0]], Number.NEGATIVE_INFINITY), tf.zeros([x.shape[0]]), tf.zeros([x.shape[0]])];
  overSlices(x.shape[0], weight, (first, part) => {
    const before = sums;
    sums = tf.tidy(() => {
      const [logarithm, picked, sum] = rowsOf(tf.matMul(x, part, false, true), labels, first);
      return [tf.stack([before[0]!, logarithm]).logSumExp(0), before[1]!.add(picked), before[2]!.add(sum)];
    });
    tf.dispose([...before, part]);
  });
  return masked(tf.stack([sums[0]!, sums[1]!, sums[2]!.div(weight.shape[0])]), labels, weight.shape[0], ignored);
}

type Saved = { hidden?: tf.Tensor; weight?: tf.Tensor2D; labels?: tf.Tensor; y?: tf.Tensor };

/** Gradient to the hidden states, or to a float32 W, by slices. */
function headGradient(dy: tf.Tensor, saved: Saved, ignored: number, to: "hidden" | "weight"): tf.Tensor {
  const { hidden, weight, labels, y } = saved as Required<Saved>;
  const [x, V] = [multiplied({ hidden, weight }), weight.shape[0]];
  const parts: tf.Tensor2D[] = [];
  overSlices(x.shape[0], weight, (first, part) => {
    const slice = tf.tidy(() => {
      const gradient = gradientOfLogits(dy, tf.matMul(x, part, false, true), { labels, y }, ignored, first, V);
      if (to === "weight") return tf.matMul(gradient, x, true, false);
      const sum = tf.matMul(gradient, part);
      return parts.length ? sum.add(parts[0]!) : sum;
    }) as tf.Tensor2D;
    part.dispose();
    if (to === "hidden") tf.dispose(parts.splice(0));
    parts.push(slice);
  });
  if (to === "weight") return tf.concat(parts, 0);
  return parts.length ? parts[0]!.reshape(hidden.shape) : tf.zeros(hidden.shape);
}

const headRows = defineOp<FromHidden, Ignoring>("CrossEntropyHead", {
  formula: headFormula,
  kernels: {
    tensorflow: (inputs, { ignored }) =>
      hasNative("crossEntropyHead")
        ? runNative("crossEntropyHead", [inputs.hidden, tableOf(inputs.weight), inputs.labels], [inputs.weight.shape[0], ignored])[0]!
        : headFormula(inputs, { ignored }),
  },
  saves: { inputs: ["hidden", "weight", "labels"], output: true },
  gradient: (dy, { hidden, weight, labels, y }, { ignored }) => ({
    hidden: () =>
      hasNative("crossEntropyHeadGradient")
        ? tf.tidy(
            () =>
              runNative("crossEntropyHeadGradient", [dy, hidden!, tableOf(weight!), labels!, y!], [weight!.shape[0], ignored, FLOAT])[0]!,
          )
        : tf.tidy(() => headGradient(dy, { hidden, weight, labels, y }, ignored, "hidden")),
    weight: () => {
      if (isFrozen(weight!))
        throw new Error(`headCrossEntropy: a ${weight!.dtype} weight is frozen; load with { dtype: "float32" } to train it`);
      return tf.tidy(() => headGradient(dy, { hidden, weight, labels, y }, ignored, "weight"));
    },
  }),
});

/** A number of classes for labels that were checked before. */
const ANY = 2 ** 31 - 1;

/** Weights of the rows of a [3, N] result in the mean loss: [3, 1] */
const shares = (smoothing: number): tf.Tensor2D => tf.tensor2d([1, smoothing - 1, -smoothing], [3, 1]);

const meanLoss = defineOp<{ rows: tf.Tensor; labels: tf.Tensor }, Ignoring & { smoothing: number }>("MeanCrossEntropy", {
  formula: ({ rows, labels }, { ignored, smoothing }) => {
    const [logarithm, picked, mean] = tf.unstack(rows);
    // Without smoothing the mean is left out, and not multiplied by 0: it is -infinity where a logit is.
    const aim = smoothing ? picked!.mul(1 - smoothing).add(mean!.mul(smoothing)) : picked!;
    return masked(logarithm!.sub(aim), labels, ANY, ignored).sum().div(counting(labels, ignored).sum());
  },
  saves: { inputs: ["labels"] },
  gradient: (dy, { labels }, { ignored, smoothing }) => ({
    rows: () =>
      tf.tidy(() => {
        const counted = counting(labels!, ignored);
        // PyTorch's loss is NaN where no row counts, but its gradient is 0.
        return shares(smoothing).mul(counted.mul(dy).div(tf.maximum(counted.sum(), 1)));
      }),
  }),
});

/** What a cross-entropy takes besides its inputs. */
export type CrossEntropyOptions = {
  /** The label of rows that do not count. */
  ignored?: number;
  /** Share of the target that is spread evenly over all classes, 0 to 1 (Szegedy et al. 2016), as PyTorch's label_smoothing. */
  smoothing?: number;
};

function check(name: string, rows: tf.Tensor, labels: tf.Tensor, smoothing: number, more: string[] = []): void {
  const misfits = [...more];
  const leading = rows.shape.slice(0, -1);
  if (!rows.shape.length || String(labels.shape) !== String(leading))
    misfits.push(`labels are [${labels.shape}], expected [${leading}], one for each row of [${rows.shape}]`);
  if (labels.dtype !== "int32") misfits.push(`labels are ${labels.dtype}, expected int32`);
  if (!(smoothing >= 0 && smoothing <= 1)) misfits.push(`smoothing is ${smoothing}, expected 0 to 1`);
  if (misfits.length) throw new RangeError(`${name}: ${misfits.join("; ")}`);
}

/**
 * Mean cross-entropy of the rows that count, as torch.nn.functional.cross_entropy: NaN where none does, with a gradient of 0.
 * logits: float32 [..., V] (or bfloat16, no gradient); labels: int32 [...], 0 to V - 1 or `ignored` -> scalar.
 *
 * @throws Error naming the first label that is out of range; RangeError naming what does not fit.
 */
export function crossEntropy(
  logits: tf.Tensor,
  labels: tf.Tensor,
  { ignored = IGNORED, smoothing = 0 }: CrossEntropyOptions = {},
): tf.Scalar {
  check("crossEntropy", logits, labels, smoothing);
  return meanLoss({ rows: logitsRows({ logits, labels }, { ignored }), labels }, { ignored, smoothing }) as tf.Scalar;
}

/**
 * `crossEntropy` of hidden · Wᵀ without the logits in memory, and without work for rows that do not count.
 * hidden: float32 [..., D] (or bfloat16, no gradient); weight: [V, D], float32, or frozen in bfloat16, int8 or NF4 (then products are in
 * bfloat16 with float32 sums); labels: int32 [...] -> scalar.
 *
 * @throws Error naming the first label that is out of range; RangeError naming what does not fit.
 */
export function headCrossEntropy(
  hidden: tf.Tensor,
  weight: tf.Tensor2D,
  labels: tf.Tensor,
  { ignored = IGNORED, smoothing = 0 }: CrossEntropyOptions = {},
): tf.Scalar {
  const D = hidden.shape[hidden.shape.length - 1];
  check("headCrossEntropy", hidden, labels, smoothing, weight.shape[1] === D ? [] : [`weight is [${weight.shape}], expected [V, ${D}]`]);
  return meanLoss({ rows: headRows({ hidden, weight, labels }, { ignored }), labels }, { ignored, smoothing }) as tf.Scalar;
}
