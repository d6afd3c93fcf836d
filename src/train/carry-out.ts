/** A recipe carried out from the command line: told as it goes, its rows rounded for the curve that stands beside the checkpoint. */
import { join } from "node:path";
import { interruptSignal } from "../engine/interrupt";
import { writeFileAtomic } from "../files/atomic";
import { jsonText } from "../files/json";
import { type Row, train, type TrainOptions } from "./loop";

/** Of a recipe: what `train` takes. */
type Settings = Pick<TrainOptions<never>, "learningRate" | "warmupSteps" | "schedule" | "weightDecay" | "betas" | "maxGradNorm" | "bf16">;

/**
 * Trains with AdamW, biases and norms without weight decay, until the last step or Ctrl-C.
 *
 * @param after what follows each step, such as keeping a variable in its range
 * @param measure what is told every `every` steps, but for the last
 */
export async function carryOut<Batch>(
  { learningRate, warmupSteps, schedule, weightDecay, betas, maxGradNorm, bf16 }: Settings,
  {
    after,
    every,
    measure,
    ...run
  }: Pick<TrainOptions<Batch>, "variables" | "batches" | "loss" | "steps"> & {
    after?(): void;
    every: number;
    measure(): Promise<unknown>;
  },
): Promise<Row[]> {
  const settings = { learningRate, warmupSteps, schedule, weightDecay, betas, maxGradNorm, bf16 };
  const rows: Row[] = [];
  for await (const row of train({ ...run, ...settings, noDecay: (v) => v.rank < 2, signal: interruptSignal() })) {
    after?.();
    const [loss, gradNorm, seconds] = [Number(row.loss.toFixed(4)), Number(row.gradNorm.toFixed(3)), Number(row.seconds.toFixed(3))];
    rows.push({ ...row, loss, gradNorm, seconds });
    if (row.step % 20 === 0) console.log(`step ${row.step}/${run.steps}  loss ${row.loss.toFixed(3)}  ${row.seconds.toFixed(2)} s`);
    if (row.step % every === 0 && row.step < run.steps) console.log(JSON.stringify(await measure()));
  }
  return rows;
}

/** Writes recipe.json, curve.jsonl and results.json beside the weights. minutes: of the training */
export async function recordRun(
  folder: string,
  { recipe, steps, rows, minutes, results }: { recipe: object; steps: number; rows: readonly object[]; minutes: number; results?: object },
): Promise<void> {
  await writeFileAtomic(join(folder, "recipe.json"), jsonText({ ...recipe, steps }));
  await writeFileAtomic(join(folder, "curve.jsonl"), rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
  await writeFileAtomic(join(folder, "results.json"), jsonText({ steps: rows.length, minutes: Number(minutes.toFixed(1)), ...results }));
}
