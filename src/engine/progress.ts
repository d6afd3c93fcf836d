/** Progress of long work: a bar with rate and time left on a terminal; the notebook installs a renderer of its own. */

export type ProgressState = { label: string; unit: string; done: number; total: number; seconds: number; finished: boolean };
export type ProgressRenderer = (state: ProgressState) => void;
export type Progress = { tick(n?: number): void; done(): void };

/** Seconds between two drawings; more often only costs. */
const EVERY = 0.25;

let renderer: ProgressRenderer | undefined;

/** Replaces the terminal's bar (`undefined`: back to it). The renderer gets at most four states a second, and the last one. */
export function setProgressRenderer(next: ProgressRenderer | undefined): void {
  renderer = next;
}

/**
 * Starts a bar. total: how many units there are (0: unknown). `tick(n)` adds n; `done()` draws the last state and frees the line.
 * Work that ends within a second draws nothing on a terminal.
 */
export function progress(total: number, label: string, unit = "it"): Progress {
  const start = performance.now();
  let [count, drawn, shown] = [0, start, false];
  const draw = (finished: boolean) => {
    const state = { label, unit, done: count, total, seconds: (performance.now() - start) / 1000, finished };
    if (renderer) renderer(state);
    else if (state.seconds > 1 || shown) shown = drawOnTerminal(state) || shown;
  };
  return {
    tick(n = 1) {
      count += n;
      if (performance.now() - drawn < EVERY * 1000) return;
      drawn = performance.now();
      draw(false);
    },
    done: () => draw(true),
  };
}

/** "captions  [#####.....] 120/240 it  35.2 it/s  3 s left"; also the text of the notebook's bar. */
export function progressText({ label, unit, done, total, seconds, finished }: ProgressState): string {
  const rate = done / Math.max(seconds, 1e-9);
  const amount = (n: number) => (unit === "B" ? `${(n / 1e6).toFixed(1)} MB` : String(Math.round(n)));
  const speed = unit === "B" ? `${(rate / 1e6).toFixed(1)} MB/s` : `${rate.toFixed(1)} ${unit}/s`;
  const time = finished || !total ? `${seconds.toFixed(1)} s` : `${Math.ceil((total - done) / Math.max(rate, 1e-9))} s left`;
  const width = 20;
  const filled = total ? Math.min(width, Math.round((width * done) / total)) : 0;
  const bar = total ? ` [${"#".repeat(filled)}${".".repeat(width - filled)}]` : "";
  return `${label}${bar} ${amount(done)}${total ? `/${amount(total)}` : ""}  ${speed}  ${time}`;
}

function drawOnTerminal(state: ProgressState): boolean {
  const text = progressText(state);
  if (process.stderr.isTTY) process.stderr.write(`\r\u001b[2K${text}${state.finished ? "\n" : ""}`);
  else if (state.finished) process.stderr.write(`${text}\n`);
  return true;
}
