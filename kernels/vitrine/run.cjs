// Runs one cell: compile, execute, wait for what it started to show, and say how it ended.
const { dirname } = require("node:path");
const { inspect } = require("node:util");
const { modules } = require("./environment.cjs");
const { describeError, describeDiagnostics, interrupted } = require("./errors.cjs");
const { createOutput } = require("./output.cjs");

const DISPLAY = Symbol.for("Jupyter.display");
const KERNEL = Symbol.for("vitrine.kernel");
const PRESENT = Symbol.for("vitrine.present");

function createRunner({ cells, interrupt, createExecutor }) {
  const output = createOutput();
  let cell; // what the running cell left for us
  const executor = createExecutor({ log: (value) => (cell.value = value), error: (...args) => cell.errors.push(args) });

  // For `src/notebook.ts`. A cell ends after everything that was given to `hold` has ended.
  const hold = (work) => {
    work.catch?.(() => {}); // its failure is the cell's, seen at the end
    cell?.held.push(work);
  };
  globalThis[KERNEL] = { display: output.display, hold };

  /** Runs `code`; `publish(type, content)` sends its outputs. -> { count, value?: bundle, failure?: { ename, evalue, traceback } } */
  async function run(code, publish) {
    output.direct(publish);
    cell = { errors: [], held: [], value: undefined };
    const count = cells.next();
    let lose;
    const lost = new Promise((_, reject) => (lose = reject));
    lost.catch(() => {});
    interrupt.begin(() => {
      executor.interrupt();
      lose(interrupted("the cell did not end by itself and was given up; what it started may still be running"));
    });
    try {
      const done = await executor.execute(code);
      // Also after a failure: a bar or a live curve draws its last state.
      const held = Promise.race([finish(cell), lost]);
      const failure = done ? undefined : failureOf(cell, code);
      if (failure) await held.catch(() => {});
      const value = failure ? undefined : await held.then(() => Promise.race([present(cell.value), lost]));
      return { count, value, failure };
    } catch (error) {
      return { count, failure: describeError(error, cells) };
    } finally {
      output.flush();
      interrupt.end();
    }
  }

  function failureOf({ errors }, code) {
    const [first] = errors;
    if (typeof first?.[0] === "string" && first.length === 5)
      return describeDiagnostics(
        errors.map(([, file, line, column, text]) => ({ file: file.trim(), line, column, text })),
        code,
      );
    const thrown = first?.[0];
    return describeError(
      thrown?.message === "Interrupted asynchronously"
        ? interrupted("the cell did not end by itself and was given up; what it started may still be running")
        : thrown,
      cells,
    );
  }

  setImmediate(presenter);
  return {
    executor,
    run,
    /** Shows an error that belongs to no cell under the cell that ran last. */
    report(what, error) {
      output.write("stderr", `${what}\n${describeError(error, cells).traceback.join("\n")}\n`);
    },
  };
}

/** Waits for what `show()` and its kind have under way. Held functions are started now: last drawings. */
async function finish({ held }) {
  // While one is waited for, another may be added.
  for (let i = 0; i < held.length; i++) await (typeof held[i] === "function" ? held[i]() : held[i]);
}

/** The value of a last expression as a MIME bundle; undefined for nothing to show. A promise is waited for. */
async function present(value) {
  value = await value;
  if (value === undefined || value === null) return undefined;
  if (typeof value[DISPLAY] === "function") return await value[DISPLAY]();
  const bundle = typeof value === "object" ? await presenter()?.(value) : undefined;
  return bundle ?? { "text/plain": typeof value === "string" ? value : inspect(value) };
}

/** What knows figures, pictures and tables: `vitrine/notebook`. Loaded by the kernel, it also draws progress bars of all our code. */
function presenter() {
  if (globalThis[PRESENT] === undefined) {
    globalThis[PRESENT] = null;
    try {
      require(require.resolve("vitrine/notebook", { paths: [process.cwd(), modules ? dirname(modules) : __dirname] }));
    } catch {
      // Not installed or not built: values are shown as text.
    }
  }
  return globalThis[PRESENT];
}

module.exports = { createRunner };
