/**
 * What a cell uses to show things: `show()`, `live()`, `html`, `stopSignal()`. In a cell of our kernel they draw; in a plain program
 * they print text. This file and `notebook/` beside it are all that knows of notebooks.
 */
import { interruptSignal } from "./engine/interrupt";
import type { Figure } from "./figures/figure";
import { bundleOf, movingBundle, type ShowOptions } from "./notebook/bundle";
import { hold, inKernel, type Place, reserve } from "./notebook/kernel";
import { drawProgressHere } from "./notebook/progress";

export type { ShowOptions };
export { html } from "./notebook/html";

/**
 * Shows a value where the call stands: a figure (interactive, with a still picture for GitHub and print), a picture, an array of
 * pictures as one sheet, an Arquero table, `html`, anything else as text. A promise is waited for.
 * The cell ends when everything is drawn, also without `await`.
 *
 * @throws RangeError for an option that does not go with the value (the message names the right one) and for a figure that stays
 * above 800 kB when thinned. A figure that can be thinned is, and a line below it says what was left out.
 */
export function show(value: unknown, options: ShowOptions = {}): Promise<void> {
  const place = reserve();
  const work = value instanceof Promise ? value.then((settled) => draw(place, settled, options)) : draw(place, value, options);
  hold(work);
  return work;
}

async function draw(place: Place, value: unknown, options: ShowOptions): Promise<void> {
  const { bundle, note } = await bundleOf(value, options);
  await place.fill(bundle);
  if (note) console.log(note);
}

export type Live<Row> = {
  /** The rows so far. */
  rows: Row[];
  /** Adds a row; the figure follows at most four times a second. */
  add(row: Row): void;
  /** Draws the last state, with its still picture. The end of the cell does it too. */
  done(): Promise<void>;
};

/** Longest pause between two drawings of a live figure, ms. */
const SLOWEST = 1500;

/**
 * A figure that grows with its rows, in place: `const curve = live(lossCurve); for await (const row of run) curve.add(row)`.
 * draw: all rows so far -> figure. every: ms between two drawings, at least 250; more where drawing would take more than a tenth of
 * the time. While it moves it is a picture, since JupyterLab's plotly draws a figure only once; at the end it is the figure.
 */
export function live<Row>(
  draw: (rows: Row[]) => Figure,
  { every = 250, ...size }: { every?: number; width?: number; height?: number } = {},
): Live<Row> {
  if (!(every >= 250))
    throw new RangeError(`live: every is ${every}, expected at least 250 ms (the browser gets at most four figures a second)`);
  const rows: Row[] = [];
  const place = reserve();
  let [due, drawing, ended] = [0, false, undefined as Promise<void> | undefined];
  const redraw = async () => {
    const start = performance.now();
    drawing = true;
    try {
      await place.fill(await movingBundle(draw(rows), size));
    } finally {
      drawing = false;
      due = performance.now() + Math.min(Math.max(every, 10 * (performance.now() - start)), Math.max(every, SLOWEST));
    }
  };
  let last: Promise<void> = Promise.resolve();
  const done = () => (ended ??= last.then(() => (rows.length > 0 ? fillLast(place, draw(rows), size) : undefined)));
  hold(done);
  return {
    rows,
    add(row) {
      ended = undefined; // work in the background outlives its cell
      rows.push(row);
      if (!inKernel() || drawing || performance.now() < due) return;
      last = redraw();
      hold(last);
    },
    done,
  };
}

async function fillLast(place: Place, figure: Figure, size: ShowOptions): Promise<void> {
  const { bundle } = await bundleOf(figure, size);
  await place.fill(bundle);
}

/** The signal of the running cell: aborted when the cell is interrupted. Give it to what should stop then, or ask `.aborted` in a loop. */
export const stopSignal = interruptSignal;

// The kernel shows the value of a last expression with this: a figure needs no `show()` there.
(globalThis as { [key: symbol]: unknown })[Symbol.for("vitrine.present")] = async (value: unknown) => {
  const { bundle, note } = await bundleOf(value);
  if (note) console.log(note);
  return bundle;
};
if (inKernel()) drawProgressHere();
