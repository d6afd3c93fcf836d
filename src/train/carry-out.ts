/** A recipe carried out from the command line: told as it goes, its rows rounded for the curve that stands beside the checkpoint. */
import { interruptSignal } from "../engine/interrupt";
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
