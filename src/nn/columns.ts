/** Products of several weights kept as one, such as queries, keys and values in `qkv`: their columns taken apart. */
import { defineOp } from "../engine/op";
import { tf } from "../engine/tf";
import { insideBlock, leanSplit } from "./lean";

type Place = { parts: number; width: number; from: number; count: number };

const rowsOf = (x: tf.Tensor, parts: number, width: number): tf.Tensor3D => x.reshape([-1, parts, width]) as tf.Tensor3D;
const lastAxis = (x: tf.Tensor, width: number): number[] => [...x.shape.slice(0, -1), width];

/** Columns `from` to `from + count` of each of the parts of a row. x: [..., parts·width] -> [..., parts·count] */
const takeColumns = defineOp<{ x: tf.Tensor }, Place>("TakeColumns", {
  formula: ({ x }, { parts, width, from, count }) =>
    rowsOf(x, parts, width)
      .slice([0, 0, from], [-1, -1, count])
      .reshape(lastAxis(x, parts * count)),
  saves: {},
  gradient: (dy, _, { parts, width, from, count }) => ({
    x: () =>
      tf.tidy(() =>
        rowsOf(dy, parts, count)
          .pad([
            [0, 0],
            [0, 0],
            [from, width - from - count],
          ])
          .reshape(lastAxis(dy, parts * width)),
      ),
  }),
});

/**
 * The sections of a fused product. Each row holds `parts` times the sections one after the other: [q | k | v] with one part, and with a part for each
 * key head (InternLM2's `wqkv`) [q q | k | v | q q | k | v ...]. x: [..., parts·(a + b + ...)] -> [..., parts·a], [..., parts·b], ...
 *
 * @param sections columns of each section within a part
 * @throws RangeError where the columns do not add up
 */
export function splitColumns<T extends tf.Tensor>(x: T, sections: readonly number[], parts = 1): T[] {
  const width = sections.reduce((a, b) => a + b, 0);
  if (x.shape.at(-1) !== parts * width)
    throw new RangeError(
      `splitColumns: x is [${x.shape}], but ${parts} ${parts === 1 ? "part" : "parts"} of ${sections.join(" + ")} columns are ${parts * width}`,
    );
  const block = insideBlock();
  if (block) return leanSplit(block, x, sections, parts) as T[];
  const starts = sections.map((_, i) => sections.slice(0, i).reduce((a, b) => a + b, 0));
  return sections.map((count, i) => takeColumns({ x }, { parts, width, from: starts[i]!, count }) as T);
}
