/** The way from our code to the cell: hooks that `kernels/vitrine` leaves on globalThis. Without that kernel, text is printed. */

/** MIME type -> content, as Jupyter has it; "text/plain" is always there. */
export type Bundle = { "text/plain": string } & Record<string, unknown>;

type Kernel = {
  display(bundle: Bundle, options?: { id?: string; update?: boolean }): void;
  /** The cell does not end before this has; a function is called at the cell's end. */
  hold(work: Promise<unknown> | (() => Promise<unknown>)): void;
};

const KERNEL = Symbol.for("vitrine.kernel");
const kernel = (): Kernel | undefined => (globalThis as { [KERNEL]?: Kernel })[KERNEL];

/** Whether this runs in a cell of our kernel. */
export const inKernel = (): boolean => kernel() !== undefined;

/** Makes the running cell wait; outside of a kernel nothing. A function is called when the cell has run through. */
export const hold = (work: Promise<unknown> | (() => Promise<unknown>)): void => kernel()?.hold(work);

export type Place = {
  /** Shows `bundle` here, in place of what was here. Waits where too much was shown in the last seconds. */
  fill(bundle: Bundle): Promise<void>;
};

let places = 0;

/** Reserves a place in the cell's output, so that outputs stand in the order of the calls however long each takes to make. */
export function reserve(): Place {
  const id = `vitrine-${process.pid}-${++places}`;
  const to = kernel();
  to?.display({ "text/plain": "" }, { id });
  return {
    async fill(bundle) {
      if (!to) return void process.stdout.write(`${bundle["text/plain"]}\n`);
      await budget(sizeOf(bundle));
      to.display(bundle, { id, update: true });
    },
  };
}

/** Bytes of a bundle on its way to the browser. */
const sizeOf = (bundle: Bundle): number => JSON.stringify(bundle).length;

// Jupyter Server drops a cell's output beyond 1 MB/s on a mean of three seconds; we stay below.
const WINDOW = 3500; // ms
const ALLOWED = 2_400_000; // bytes in a window
const sent: { at: number; bytes: number }[] = [];

/** Waits until `bytes` more are within the limit, and counts them. */
async function budget(bytes: number): Promise<void> {
  for (;;) {
    const now = performance.now();
    while (sent.length > 0 && now - sent[0]!.at > WINDOW) sent.shift();
    const recent = sent.reduce((sum, each) => sum + each.bytes, 0);
    if (sent.length === 0 || recent + bytes <= ALLOWED) {
      sent.push({ at: now, bytes });
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, sent[0]!.at + WINDOW - now + 1));
  }
}
