// The Jupyter kernel: tslab's TypeScript cells in this process, and around them what tslab lacks (see the files beside this one).
// Started by Jupyter as `node launch.cjs CONNECTION_FILE`, in the notebook's folder.
require("./environment.cjs");
const { createConverter } = require("tslab/dist/converter");
const { createExecutor } = require("tslab/dist/executor");
const { createCells } = require("./cells.cjs");
const { createInterrupt } = require("./interrupt.cjs");
const { Handler } = require("./help.cjs");
const { createRunner } = require("./run.cjs");
const { Server } = require("./server.cjs");

const cells = createCells(createConverter({ isJS: false, isBrowser: false }));
const converters = {
  node: cells.converter,
  get browser() {
    return createConverter({ isJS: false, isBrowser: true }); // only for cells marked `/** @browser */`
  },
  close: () => cells.converter.close(),
};

const interrupt = createInterrupt();
// tslab hands the value of a last expression to `log`, and what was thrown or does not compile to `error`.
const runner = createRunner({ cells, interrupt, createExecutor: (console) => createExecutor(process.cwd(), converters, console) });
process.on("uncaughtException", (error) => runner.report("an error outside of any cell", error));
process.on("unhandledRejection", (error) => runner.report("a promise nobody waited for failed", error));

new Server(new Handler(runner.executor), process.argv[2], runner).init();
