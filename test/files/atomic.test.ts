import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { mock, test } from "node:test";
import { writeFileAtomic } from "vitrine/files/atomic";
import { messageOf, scratch } from "./helpers";

const folder = () => fs.mkdtempSync(path.join(scratch, "atomic-"));

test("writeFileAtomic() writes text, bytes, and what a function writes, and leaves nothing else", async () => {
  const at = folder();
  await writeFileAtomic(path.join(at, "a"), "text");
  await writeFileAtomic(path.join(at, "b"), Uint8Array.of(1, 2));
  await writeFileAtomic(path.join(at, "c"), async (handle) => void (await handle.write("parts")));
  assert.deepEqual(
    ["a", "b", "c"].map((name) => fs.readFileSync(path.join(at, name), "latin1")),
    ["text", "\x01\x02", "parts"],
  );
  assert.deepEqual(fs.readdirSync(at).sort(), ["a", "b", "c"]);
});

test("writeFileAtomic() keeps the old file, whichever of its calls fails, and says what to do", async () => {
  for (const call of ["open", "writeFile", "sync", "rename"] as const) {
    const at = folder();
    const file = path.join(at, "x.json");
    fs.writeFileSync(file, "old");
    const full = () => Promise.reject(Object.assign(new Error("ENOSPC: no space left on device"), { code: "ENOSPC", syscall: "write" }));
    const open = fs.promises.open;
    const broken = async (...args: Parameters<typeof open>) => {
      const handle = await open(...args);
      if (args[1] === "wx" && (call === "writeFile" || call === "sync")) handle[call] = full as never;
      return handle;
    };
    const mocked =
      call === "open"
        ? mock.method(fs.promises, "open", full)
        : call === "rename"
          ? mock.method(fs.promises, "rename", full)
          : mock.method(fs.promises, "open", broken);
    const text = await messageOf(writeFileAtomic(file, "new"));
    mocked.mock.restore();
    assert.match(text, /x\.json was not written: the disk is full; .* \(ENOSPC\)\. What was there before is unchanged/, call);
    assert.equal(fs.readFileSync(file, "utf8"), "old", call);
    assert.deepEqual(fs.readdirSync(at), ["x.json"], call);
  }
});

test("writeFileAtomic() passes on what its function throws, and says when the folder is missing", async () => {
  const at = folder();
  assert.equal(await messageOf(writeFileAtomic(path.join(at, "x"), () => Promise.reject(new Error("mine")))), "mine");
  assert.match(await messageOf(writeFileAtomic(path.join(at, "no", "x"), "")), /its folder does not exist; create it first \(ENOENT\)/);
  assert.deepEqual(fs.readdirSync(at), []);
});
