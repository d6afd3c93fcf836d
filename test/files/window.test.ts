import assert from "node:assert/strict";
import fs from "node:fs";
import { test } from "node:test";
import { openFile } from "vitrine/files/window";
import { file as makeFile, message } from "./helpers";

const openDescriptors = (path: string): number =>
  fs.readdirSync("/proc/self/fd").filter((fd) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${fd}`).startsWith(path);
    } catch {
      return false; // the descriptor that listed them
    }
  }).length;

test("hold() keeps the file open until every part is released", { skip: !fs.existsSync("/proc/self/fd") }, () => {
  const path = makeFile("0123456789");
  const file = openFile(path);
  const [a, b] = [file.hold(2, 3), file.hold(0, 10)];
  file.close();
  file.close();
  const bytes = Buffer.alloc(3);
  fs.readSync(a.descriptor(), bytes, 0, 3, a.offset);
  assert.equal(bytes.toString(), "234");
  a.release();
  a.release();
  assert.equal(openDescriptors(path), 1);
  fs.rmSync(path);
  b.descriptor();
  b.release();
  assert.equal(openDescriptors(path), 0);
  assert.match(
    message(() => b.descriptor()),
    /this part was released/,
  );
});

test("hold() of a closed file, or of bytes that it does not have, is an error", () => {
  const file = openFile(makeFile("0123456789"));
  assert.match(
    message(() => file.hold(5, 6)),
    /bytes 5 to 11 were asked for, the file has 10/,
  );
  assert.match(
    message(() => file.hold(-1, 2)),
    /were asked for/,
  );
  file.hold(10, 0).release();
  file.close();
  assert.match(
    message(() => file.hold(0, 1)),
    /was closed/,
  );
});

test("a held part of a file that was written to is an error", () => {
  const path = makeFile("0123456789");
  const file = openFile(path);
  const part = file.hold(0, 4);
  file.close();
  fs.utimesSync(path, 1, 1);
  assert.match(
    message(() => part.descriptor()),
    /was written to .* load the model again\. Writing a new file and renaming it/,
  );
  part.release();
});
