/** Numbers against numbers. */
import assert from "node:assert/strict";
import { tf } from "vitrine/engine";

/** The largest distance between two lists of one length. */
export function farthest(got: ArrayLike<number>, want: ArrayLike<number>): number {
  assert.equal(got.length, want.length, `${got.length} numbers, expected ${want.length}`);
  let worst = 0;
  for (let i = 0; i < want.length; i++) {
    const distance = Math.abs(got[i] - want[i]);
    if (!(distance <= worst)) worst = distance; // NaN stays
    if (Number.isNaN(worst)) return Number.NaN;
  }
  return worst;
}

/** |got - want| <= tolerance for every number. */
export function expectClose(got: ArrayLike<number>, want: ArrayLike<number>, tolerance: number, what = "numbers"): void {
  const worst = farthest(got, want);
  assert.ok(worst <= tolerance, `${what}: worst error ${worst}, tolerance ${tolerance}`);
}

/** Every number of one list is that of the other, bit for bit. */
export const expectSame = (got: ArrayLike<number>, want: ArrayLike<number>, what = "numbers"): void => {
  assert.equal(got.length, want.length, `${what}: count`);
  for (let i = 0; i < want.length; i++) assert.ok(Object.is(got[i], want[i]), `${what}: number ${i} is ${got[i]}, expected ${want[i]}`);
};

/** Reads a tensor's numbers and frees it. */
export function take(x: tf.Tensor): Float32Array {
  const values = Float32Array.from(x.dataSync());
  x.dispose();
  return values;
}

/** Cosine between two lists taken as vectors. */
export function cosine(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [ab, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    ab += a[i] * b[i];
    aa += a[i] ** 2;
    bb += b[i] ** 2;
  }
  return ab / Math.sqrt(aa * bb);
}

/** Runs `work` and checks that it left as many tensors as it found. */
export async function keepsTensorCount(work: () => unknown): Promise<void> {
  const before = tf.memory().numTensors;
  await work();
  assert.equal(tf.memory().numTensors - before, 0, "tensors left behind");
}

/** The message of the error that `work` throws; all expected parts must be in it. */
export async function messageOf(work: () => unknown, ...parts: (string | RegExp)[]): Promise<string> {
  let message: string | undefined;
  try {
    await work();
  } catch (error) {
    message = (error as Error).message;
  }
  assert.ok(message !== undefined, "nothing was thrown");
  for (const part of parts)
    assert.ok(typeof part === "string" ? message.includes(part) : part.test(message), `the error does not say ${part}:\n${message}`);
  return message;
}
