/** Progress bars in a cell: one line that moves in place. */
import { type ProgressState, progressText, setProgressRenderer } from "../engine/progress";
import { html } from "./html";
import { type Place, reserve } from "./kernel";

/** Work that is over sooner shows no bar. */
const SHORT = 1; // seconds

/** Makes `progress()` draw in the notebook. */
export function drawProgressHere(): void {
  const bars = new Map<string, Place>();
  setProgressRenderer((state) => {
    if (!bars.has(state.label) && state.seconds < SHORT) return;
    const bar = bars.get(state.label) ?? reserve();
    bars.set(state.label, bar);
    if (state.finished) bars.delete(state.label);
    void bar.fill({ "text/html": markup(state), "text/plain": progressText(state) });
  });
}

function markup(state: ProgressState): string {
  // The bar itself is drawn by the browser, so that of the text only what stands after it is needed.
  const text = progressText(state)
    .replace(`${state.label} [`, "[")
    .replace(/^\[[#.]*\] /, "");
  const bar =
    state.total > 0
      ? html`<progress max="${state.total}" value="${Math.min(state.done, state.total)}" style="width:16em"></progress> `
      : "";
  return html`<div style="font-family:monospace">${state.total > 0 ? html`${state.label} ` : ""}${bar}${text}</div>`.markup;
}
