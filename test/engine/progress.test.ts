import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { progress, type ProgressState, progressText, setProgressRenderer } from "vitrine/engine/progress";

const state = (change: Partial<ProgressState>): ProgressState => ({
  label: "embed",
  unit: "pictures",
  done: 0,
  total: 0,
  seconds: 0,
  finished: false,
  ...change,
});

test("progressText() shows the share done, rate and time left", () => {
  assert.equal(
    progressText(state({ done: 120, total: 240, seconds: 4 })),
    "embed [##########..........] 120/240  30.0 pictures/s  4 s left",
  );
  assert.equal(
    progressText(state({ done: 240, total: 240, seconds: 8, finished: true })),
    "embed [####################] 240/240  30.0 pictures/s  8.0 s",
  );
});

test("progressText() without a total has no bar and promises no end; bytes are megabytes", () => {
  assert.equal(progressText(state({ done: 7, seconds: 2 })), "embed 7  3.5 pictures/s  2.0 s");
  assert.equal(
    progressText(state({ label: "file", unit: "B", done: 1.5e6, total: 3e6, seconds: 0.5 })),
    "file [##########..........] 1.5 MB/3.0 MB  3.0 MB/s  1 s left",
  );
});

test("progressText() stays finite at the start, and within its bar when there is more than was said", () => {
  assert.doesNotMatch(progressText(state({ total: 5 })), /NaN/);
  assert.doesNotMatch(progressText(state({ done: 5, total: 10, seconds: 0 })), /NaN|Infinity/);
  const over = progressText(state({ done: 12, total: 10, seconds: 1 }));
  assert.match(over, /\[#{20}\] 12\/10/);
  assert.doesNotMatch(over, /-\d/, "no negative time left");
});

test("setProgressRenderer() gets at most four states a second and always the last one", () => {
  let now = 0;
  const clock = mock.method(performance, "now", () => now);
  const seen: ProgressState[] = [];
  setProgressRenderer((one) => seen.push(one));
  try {
    const bar = progress(1000, "work");
    for (let i = 0; i < 1000; i++) {
      now += 2; // two seconds in all
      bar.tick();
    }
    bar.done();
  } finally {
    setProgressRenderer(undefined);
    clock.mock.restore();
  }
  assert.ok(seen.length >= 7 && seen.length <= 9, `${seen.length} states`);
  const { done, total, seconds, finished, unit } = seen[seen.length - 1];
  assert.deepEqual({ done, total, seconds, finished, unit }, { done: 1000, total: 1000, seconds: 2, finished: true, unit: "it" });
  assert.ok(seen.slice(0, -1).every((one) => !one.finished));
});

test("progress() writes nothing on a terminal for work of less than a second", () => {
  const write = mock.method(process.stderr, "write", () => true);
  try {
    const bar = progress(3, "quick");
    bar.tick(3);
    bar.done();
    assert.equal(write.mock.callCount(), 0);
  } finally {
    write.mock.restore();
  }
});

test("progress() writes one line where stderr is no terminal, and redraws one line where it is", () => {
  let now = 0;
  const clock = mock.method(performance, "now", () => now);
  const lines: string[] = [];
  const write = mock.method(process.stderr, "write", (text: string) => lines.push(text) > 0);
  const terminal = process.stderr.isTTY;
  const work = () => {
    lines.length = 0;
    const bar = progress(4, "slow");
    for (let i = 0; i < 4; i++) {
      now += 1000;
      bar.tick();
    }
    bar.done();
    return [...lines];
  };
  try {
    process.stderr.isTTY = false;
    assert.deepEqual(work(), ["slow [####################] 4/4  1.0 it/s  4.0 s\n"]);
    process.stderr.isTTY = true;
    const drawn = work();
    assert.ok(drawn.length >= 4);
    assert.ok(
      drawn.every((text) => text.startsWith("\r\u001b[2K")),
      "each drawing clears the line first",
    );
    assert.ok(drawn.slice(0, -1).every((text) => !text.includes("\n")) && drawn[drawn.length - 1].endsWith("\n"));
  } finally {
    process.stderr.isTTY = terminal;
    write.mock.restore();
    clock.mock.restore();
  }
});
