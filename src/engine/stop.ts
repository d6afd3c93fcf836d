/**
 * Stopping in the middle of a step. While a step computes, JavaScript hears of no signal; the binding counts Ctrl-C at once, and long computations look
 * at the count between their parts.
 */
import { tf } from "./tf";

type Binding = { watchInterrupts?(): number; interrupts(): number };
type Engine = { state: { activeTape?: { saved: tf.Tensor[] }[] | null } };

const bindingOf = (): Binding | undefined =>
  tf.getBackend() === "tensorflow" ? (tf.backend() as unknown as { binding: Binding }).binding : undefined;

class Stopped extends Error {}

/** Ctrl-C counted when the running `stoppable` began. */
let began: number | undefined;

/**
 * Runs a step (not async) that Ctrl-C ends in the middle. Gives undefined then; what the step made is freed. Whoever listens for the signal hears of it
 * at the next turn of the event loop. Without our binding the step runs to its end.
 */
export function stoppable<T>(step: () => T): T | undefined {
  const before = began;
  began = bindingOf()?.watchInterrupts?.();
  try {
    return step();
  } catch (error) {
    if (!(error instanceof Stopped)) throw error;
    forgetTape();
    return undefined;
  } finally {
    began = before;
  }
}

/** Ends the running `stoppable` if Ctrl-C came since it began. For long computations, between two parts of at most a tenth of a second. */
export function checkStop(): void {
  if (began !== undefined && bindingOf()!.interrupts() > began) throw new Stopped("stopped");
}

/** tfjs frees what a gradient saved at the gradient's end, which was not reached. */
function forgetTape(): void {
  const { state } = tf.engine() as unknown as Engine;
  for (const { saved } of state.activeTape ?? []) for (const x of saved) x.dispose();
  state.activeTape = null;
}
