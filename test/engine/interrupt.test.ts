import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { test } from "node:test";
import { breathe, interruptSignal } from "vitrine/engine/interrupt";

test("interruptSignal() is a signal that nothing aborts where nobody installed a source", () => {
  assert.equal(interruptSignal().aborted, false);
  assert.equal(interruptSignal(), interruptSignal());
});

test("interruptSignal() asks the source anew each time: a cell of the notebook has its own", () => {
  const holder = globalThis as { [key: symbol]: unknown };
  const key = Symbol.for("vitrine.interrupt");
  let controller = new AbortController();
  holder[key] = () => controller.signal;
  try {
    const first = interruptSignal();
    controller.abort();
    assert.equal(first.aborted, true);
    controller = new AbortController();
    assert.equal(interruptSignal().aborted, false);
  } finally {
    delete holder[key];
  }
});

test("breathe() lets a timer in that is due; a resolved promise does not", async () => {
  let fired = false;
  setTimeout(() => {
    fired = true;
  }, 1);
  const end = Date.now() + 20;
  while (Date.now() < end) await Promise.resolve();
  assert.equal(fired, false);
  await breathe();
  await breathe();
  assert.equal(fired, true);
});

test("interruptOnCtrlC(): the first Ctrl-C aborts the signal, the second ends the process", async () => {
  const program = `
    const { interruptOnCtrlC, interruptSignal } = require("vitrine/engine/interrupt");
    interruptOnCtrlC();
    setInterval(() => {}, 1000);
    interruptSignal().addEventListener("abort", () => console.log("aborted", interruptSignal().reason.message));
    console.log("ready");`;
  const child = spawn(process.execPath, ["-e", program], { cwd: __dirname, stdio: ["ignore", "pipe", "inherit"] });
  const ended = new Promise<NodeJS.Signals | null>((resolve) => child.once("close", (_, signal) => resolve(signal)));
  const said: string[] = [];
  child.stdout.on("data", (text) => {
    said.push(String(text).trim());
    child.kill("SIGINT");
  });
  assert.equal(await ended, "SIGINT");
  assert.deepEqual(said, ["ready", "aborted interrupted"]);
});
