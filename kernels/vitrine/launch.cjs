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

// Jupyter chooses the ports and lets them go again before the kernel opens them: another program may have been faster. A kernel that ends is started
// again with other ports; one that stays without a socket is waited for in vain.
new Server(new Handler(runner.executor), process.argv[2], runner).init().catch((error) => {
  process.stderr.write(`the kernel cannot open the ports of ${process.argv[2]}: ${error.message}; start it again\n`);
  process.exit(1);
});
