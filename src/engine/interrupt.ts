/**
 * One signal for "stop now". The notebook kernel, the command line and a job each install their own source;
 * every long function of ours takes `signal = interruptSignal()` and ends early, keeping what was done.
 */

/** Where the kernel (`kernels/vitrine/launch.cjs`) puts a function that returns the signal of the running cell. */
const SOURCE = Symbol.for("vitrine.interrupt");
type Source = { [SOURCE]?: () => AbortSignal };

const never = new AbortController().signal;

/** The signal of the cell or command that is running; never aborted where nobody installed a source. */
export const interruptSignal = (): AbortSignal => (globalThis as Source)[SOURCE]?.() ?? never;

/**
 * Makes Ctrl-C abort `interruptSignal()` once (a command's main function calls this).
 * The second Ctrl-C ends the process in the usual way, so that nobody is ever trapped.
 */
export function interruptOnCtrlC(): void {
  const controller = new AbortController();
  (globalThis as Source)[SOURCE] = () => controller.signal;
  process.once("SIGINT", () => controller.abort(new Error("interrupted")));
}

/** Lets timers and signals in. A promise that is already resolved does not, so loops must await this every 100 ms. */
export const breathe = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
