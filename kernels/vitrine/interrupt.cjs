// Interrupting: SIGINT aborts one signal that long functions watch (`src/engine/interrupt.ts`). They end early and the cell ends
// normally, with its variables. A cell that does not watch is failed instead; what it started cannot be stopped from outside.
const { setMaxListeners } = require("node:events");

/** How long a cell that has asked for the signal may take to end by itself, ms. */
const GRACE = 2000;

/** Thrown into a cell that was interrupted and did not end by itself. */
class Interrupted extends Error {
  name = "Interrupted";
}

/**
 * One for the process. `begin(fail)` and `end()` stand around a cell; `fail` ends it at once. `lost` rejects when the cell is failed.
 * Work that a cell left running in the background has the same signal until somebody interrupts.
 */
function createInterrupt() {
  let controller;
  let watched = false;
  let fail; // set while a cell runs
  let timer;
  const renew = () => {
    controller = new AbortController();
    setMaxListeners(0, controller.signal);
  };
  renew();
  globalThis[Symbol.for("vitrine.interrupt")] = () => {
    watched = true;
    return controller.signal;
  };
  process.on("SIGINT", () => {
    const again = controller.signal.aborted;
    controller.abort(new Interrupted("interrupted"));
    if (!fail) return renew(); // no cell: it was for work in the background
    if (!watched || again) return fail();
    timer ??= setTimeout(fail, GRACE);
  });
  return {
    begin(failCell) {
      watched = false;
      fail = failCell;
    },
    end() {
      clearTimeout(timer);
      timer = fail = undefined;
      // Not before the cell's end: the next long function in an interrupted cell must stop too.
      if (controller.signal.aborted) renew();
    },
  };
}

module.exports = { createInterrupt, Interrupted };
