/** Learning rates over a run, as transformers' schedules (transformers/optimization.py). */
import { nearest } from "../files/nearest";

/** The learning rate of a step, as a share of the highest. step: 0, 1, … */
export type Schedule = (step: number) => number;

const shapes = {
  /** From 1 to 0 in a straight line. */
  linear: (progress: number) => 1 - progress,
  /** From 1 to 0 along half a cosine. */
  cosine: (progress: number) => 0.5 * (1 + Math.cos(Math.PI * progress)),
  constant: () => 1,
};
export type ScheduleName = keyof typeof shapes;

/**
 * @param name "linear", "cosine" or "constant", after a warm-up
 * @param steps optimiser steps in all
 * @param warmupSteps steps over which the rate rises from 0 in a straight line; a number below 1 is a share of all steps
 * @throws on an unknown name, or a warm-up as long as the run
 */
export function schedule(name: ScheduleName, steps: number, warmupSteps = 0): Schedule {
  const shape = Object.hasOwn(shapes, name) ? shapes[name] : undefined;
  if (!shape)
    throw new Error(
      `schedule "${name}" is not known; known: ${Object.keys(shapes).join(", ")} (nearest: ${nearest(name, Object.keys(shapes)) ?? "none"})`,
    );
  const warmup = warmupSteps > 0 && warmupSteps < 1 ? Math.ceil(warmupSteps * steps) : warmupSteps;
  if (!(warmup >= 0 && warmup < steps))
    throw new RangeError(`schedule: warmupSteps ${warmupSteps} of ${steps} steps; expected 0 <= warmupSteps < steps`);
  return (step) => (step < warmup ? step / warmup : Math.max(0, shape(Math.min(1, (step - warmup) / (steps - warmup)))));
}
