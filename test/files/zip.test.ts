import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { openFile } from "vitrine/files/window";
import { openZip } from "vitrine/files/zip";
import { type Member, zip } from "./archives";
import { bytes, file, message } from "./helpers";

const open = (content: Uint8Array) => openZip(openFile(file(content, ".zip")));
const read = (content: Uint8Array, name: string) => {
  const entry = open(content).get(name);
  return entry && Buffer.from(entry.read(0, entry.size)).toString();
};
const hello = Buffer.from("hello hello hello hello");
const member = (rest: Partial<Member> = {}): Member => ({ name: "a/b", data: hello, ...rest });

test("openZip() reads stored and deflated entries, whole and by parts", () => {
  for (const method of [0, 8])
    for (const zip64 of [false, true]) {
      const content = zip([member({ method, zip64 }), { name: "c", data: Buffer.alloc(0), method }], { zip64 });
      const entry = open(content).get("a/b");
      assert.equal(read(content, "a/b"), hello.toString());
      assert.equal(Buffer.from(entry?.read(6, 5) ?? []).toString(), "hello");
      assert.equal(open(content).get("c")?.size, 0);
    }
});

test("openZip() reads entries whose sizes follow the data, as torch writes them", () => {
  assert.equal(read(zip([member({ flags: 0x0808, own: { crc: 0, size: 0 } })]), "a/b"), hello.toString());
});

test("openZip() refuses archives that two readers could understand differently", () => {
  const cases: [string, Buffer, RegExp][] = [
    ["encrypted", zip([member({ flags: 1 })]), /entry "a\/b" has flags 0x1 \(encrypted/],
    ["flag only in the directory", zip([member({ listed: { flags: 0x41 } })]), /has flags 0x41/],
    ["flag only in its own header", zip([member({ own: { flags: 1 } })]), /other flags in its own header/],
    ["two entries of a name", zip([member(), member()]), /two entries are called "a\/b"/],
    ["another name in its own header", zip([member({ own: { name: "a/c" } })]), /called "a\/b" in the directory and "a\/c"/],
    ["another size in its own header", zip([member({ own: { size: 5 } })]), /other sizes in its own header/],
    ["another crc in its own header", zip([member({ own: { crc: 5 } })]), /other sizes in its own header/],
    ["two sizes", zip([member({ listed: { size: 5 }, own: { size: 5 } })]), /is stored, but has two sizes, 23 and 5/],
    ["unknown method", zip([member({ listed: { method: 93 } })]), /packed by method 93/],
    ["climbing name", zip([member({ name: "../x" })]), /"\.\.\/x" leads out/],
    ["climbing in the middle", zip([member({ name: "a/../../x" })]), /leads out/],
    ["absolute name", zip([member({ name: "/etc/x" })]), /leads out/],
    ["drive", zip([member({ name: "C:x" })]), /leads out/],
    ["backslash", zip([member({ name: "a\\b" })]), /leads out/],
    [
      "something before it",
      zip([member()], { prefix: Buffer.from("#!/bin/sh\n") }).subarray(10),
      /does not end where|does not stand where/,
    ],
    ["something after it", bytes(zip([member()]), "x"), /its directory is missing/],
    ["cut off", zip([member()]).subarray(0, 60), /its directory is missing; it is probably cut off/],
    ["bomb", zip([{ name: "z", data: Buffer.alloc(4 * 2 ** 20), method: 8 }]), /would grow from \d+ to 4194304 bytes.*compression bomb/],
    [
      "entry reaching into the directory",
      zip([member({ listed: { size: 90, packed: 90 }, own: { size: 90 }, flags: 8 })]),
      /reaches into the directory/,
    ],
  ];
  for (const [name, content, says] of cases)
    assert.match(
      message(() => open(content)),
      says,
      name,
    );
});

test("openZip() refuses entries that overlap", () => {
  const content = zip([member(), member({ name: "a/c" })]);
  const second = content.lastIndexOf("PK\x01\x02");
  content.writeUInt32LE(0, second + 42); // the second entry now points at the first
  assert.match(
    message(() => open(content)),
    /overlaps the one before it|called "a\/c" in the directory and "a\/b"/,
  );
});

test("ZipEntry.read() refuses data that does not have its CRC, also when only a part is read", () => {
  for (const method of [0, 8]) {
    const content = zip([member({ method, listed: { crc: 1 }, own: { crc: 1 } })]);
    assert.match(
      message(() => open(content).get("a/b")?.read(0, 5)),
      /entry "a\/b" is damaged \(its CRC-32 is [0-9a-f]{8}, expected 00000001\)/,
    );
    assert.match(
      message(() => read(content, "a/b")),
      /is damaged/,
    );
  }
});

test("ZipEntry.read() never unpacks more than was announced", () => {
  const content = zip([member({ method: 8, listed: { size: 5 }, own: { size: 5 } })]);
  assert.match(
    message(() => read(content, "a/b")),
    /cannot be unpacked to 5 bytes/,
  );
  const short = zip([member({ method: 8, listed: { size: 50 }, own: { size: 50 } })]);
  assert.match(
    message(() => read(short, "a/b")),
    /does not unpack to the 50 bytes it announces/,
  );
});

test("openZip() survives any bytes: an error, or entries that are intact", () => {
  const base = zip([member(), member({ name: "d", method: 8 })], { zip64: true });
  let intact = 0;
  fc.assert(
    fc.property(fc.array(fc.record({ at: fc.nat(base.length - 1), to: fc.nat(255) }), { maxLength: 3 }), (edits) => {
      const copy = Buffer.from(base);
      for (const { at, to } of edits) copy[at] = to;
      try {
        for (const entry of open(copy).values()) assert.equal(Buffer.from(entry.read(0, entry.size)).toString(), hello.toString());
        intact++;
      } catch (error) {
        if ((error as Error).name === "AssertionError") throw error;
        assert.match((error as Error).message, /\.zip/);
      }
    }),
    { numRuns: 1500 },
  );
  assert.ok(intact > 100);
});
