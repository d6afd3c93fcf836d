/**
 * Reading a zip archive by its central directory (PKWARE APPNOTE 6.3), strictly: readers that disagree about an archive are how harmful
 * weight files pass scanners (CVE-2025-1945, CVE-2025-10156), so whatever is ambiguous is refused. Stored entries are read by parts.
 */
import { crc32, inflateRawSync } from "node:zlib";
import type { OpenFile } from "./window";

export type ZipEntry = {
  name: string;
  /** Bytes, unpacked. */
  size: number;
  /** Exactly `length` unpacked bytes from `offset`. The first call checks the whole entry against its CRC-32. */
  read(offset: number, length: number): Uint8Array;
};

type Directory = { count: number; size: number; offset: number; end: number };
type Record = { name: string; flags: number; method: number; crc: number; packed: number; size: number; offset: number };

const MAX_ENTRIES = 200_000;
/** Deflated weights shrink by a few percent; beyond this ratio an entry is a bomb. */
const MAX_RATIO = 200;
/** Largest deflated entry; it has to be unpacked in memory. Stored entries have no such limit. */
const MAX_INFLATED = 2 ** 31;
/** Bit 3: sizes follow the data; bit 11: UTF-8 names. All other flags change what the bytes mean (encryption, patches). */
const KNOWN_FLAGS = 0x0808;
const WINDOW = 16 * 2 ** 20;
const FULL16 = 0xffff;
const FULL32 = 0xffffffff;

/**
 * Reads the directory of a zip archive. Nothing is unpacked.
 *
 * @throws Error naming the archive and the entry: flags that change the meaning, double or climbing names, sizes that disagree
 * between directory and entry, entries that overlap, compression bombs.
 */
export function openZip(file: OpenFile): Map<string, ZipEntry> {
  const fail = (problem: string): never => {
    throw new Error(`${file.path} is no archive we read: ${problem}`);
  };
  const directory = findDirectory(file, fail);
  const records = readDirectory(file, directory, fail);
  const entries = new Map<string, ZipEntry>();
  let position = 0;
  for (const record of [...records].sort((a, b) => a.offset - b.offset)) {
    checkRecord(record, fail);
    if (entries.has(record.name)) fail(`two entries are called "${record.name}"`);
    if (record.offset < position) fail(`entry "${record.name}" overlaps the one before it`);
    const start = dataStart(file, record, fail);
    position = start + record.packed;
    if (position > directory.offset) fail(`entry "${record.name}" reaches into the directory; the file is damaged or cut off`);
    entries.set(record.name, entry(file, record, start));
  }
  return entries;
}

type Fail = (problem: string) => never;
const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** The end-of-directory record; a comment may follow it, but it must end the file. */
function findDirectory(file: OpenFile, fail: Fail): Directory {
  const start = Math.max(0, file.size - 22 - FULL16);
  const tail = viewOf(file.read(start, file.size - start));
  for (let i = tail.byteLength - 22; i >= 0; i--) {
    if (tail.getUint32(i, true) !== 0x06054b50 || i + 22 + tail.getUint16(i + 20, true) !== tail.byteLength) continue;
    if (tail.getUint16(i + 4, true) !== 0 || tail.getUint16(i + 6, true) !== 0) fail("it has several volumes");
    const [count, size, offset] = [tail.getUint16(i + 10, true), tail.getUint32(i + 12, true), tail.getUint32(i + 16, true)];
    const directory = findLargeDirectory(file, start + i, fail) ?? { count, size, offset, end: start + i };
    const differs = (listed: number, full: number, own: number) => listed !== full && listed !== own;
    if (differs(count, FULL16, directory.count) || differs(size, FULL32, directory.size) || differs(offset, FULL32, directory.offset))
      fail("its two directory records contradict each other");
    if (directory.count > MAX_ENTRIES) fail(`${directory.count} entries; at most ${MAX_ENTRIES} are read`);
    if (directory.offset + directory.size !== directory.end)
      fail("its directory does not end where its end record says; the file is damaged");
    return directory;
  }
  return fail("its directory is missing; it is probably cut off, get it again");
}

/** The zip64 records that may stand before the end record: needed above 4 GiB or 65,535 entries, but torch always writes them. */
function findLargeDirectory(file: OpenFile, end: number, fail: Fail): Directory | undefined {
  if (end < 76) return undefined;
  const locator = viewOf(file.read(end - 20, 20));
  if (locator.getUint32(0, true) !== 0x07064b50) return undefined;
  const position = Number(locator.getBigUint64(8, true));
  if (position + 56 !== end - 20) fail("its zip64 directory is damaged");
  const record = viewOf(file.read(position, 56));
  if (record.getUint32(0, true) !== 0x06064b50) fail("its zip64 directory is damaged");
  const number = (at: number) => Number(record.getBigUint64(at, true));
  return { count: number(32), size: number(40), offset: number(48), end: position };
}

function readDirectory(file: OpenFile, { count, size, offset }: Directory, fail: Fail): Record[] {
  if (offset < 0 || offset + size > file.size || size > 2 ** 26) fail("its directory has an impossible size");
  const bytes = file.read(offset, size);
  const view = viewOf(bytes);
  const records: Record[] = [];
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (at + 46 > size || view.getUint32(at, true) !== 0x02014b50) fail(`entry ${i} of its directory is damaged`);
    const [nameLength, extraLength, commentLength] = [28, 30, 32].map((k) => view.getUint16(at + k, true));
    const next = at + 46 + nameLength + extraLength + commentLength;
    if (next > size) fail(`entry ${i} of its directory is damaged`);
    const name = decodeName(bytes.subarray(at + 46, at + 46 + nameLength), fail);
    const [flags, method] = [view.getUint16(at + 8, true), view.getUint16(at + 10, true)];
    const [crc, packed, full, position] = [16, 20, 24, 42].map((k) => view.getUint32(at + k, true));
    const record = { name, flags, method, crc, packed, size: full, offset: position };
    widen(record, view, at + 46 + nameLength, extraLength, fail);
    records.push(record);
    at = next;
  }
  if (at !== size) fail("its directory holds more than its entries");
  return records;
}

/** zip64: sizes that do not fit into 32 bits stand in extra field 1, in this order, only those that are needed. */
function widen(record: Record, view: DataView, start: number, length: number, fail: Fail): void {
  const wanted = (["size", "packed", "offset"] as const).filter((key) => record[key] === FULL32);
  if (wanted.length === 0) return;
  for (let at = start; at + 4 <= start + length; at += 4 + view.getUint16(at + 2, true)) {
    if (view.getUint16(at, true) !== 1) continue;
    if (view.getUint16(at + 2, true) < 8 * wanted.length || at + 4 + 8 * wanted.length > start + length) break;
    wanted.forEach((key, i) => {
      record[key] = Number(view.getBigUint64(at + 4 + 8 * i, true));
    });
    return;
  }
  fail(`entry "${record.name}" has no zip64 sizes`);
}

function decodeName(bytes: Uint8Array, fail: Fail): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return fail("an entry's name is not UTF-8");
  }
}

function checkRecord({ name, flags, method, packed, size }: Record, fail: Fail): void {
  const parts = name.split("/");
  if (
    name === "" ||
    /[\\\0]/.test(name) ||
    /^[A-Za-z]:/.test(name) ||
    parts.slice(0, -1).includes("") ||
    parts.some((p) => p === "." || p === "..")
  )
    fail(`the name ${JSON.stringify(name)} leads out of the archive`);
  if (flags & ~KNOWN_FLAGS) fail(`entry "${name}" has flags 0x${flags.toString(16)} (encrypted or patched data)`);
  if (method !== 0 && method !== 8) fail(`entry "${name}" is packed by method ${method}; only stored and deflated entries are read`);
  if (method === 0 && packed !== size) fail(`entry "${name}" is stored, but has two sizes, ${packed} and ${size}`);
  if (method === 8 && size > 2 ** 20 && size > packed * MAX_RATIO)
    fail(`entry "${name}" would grow from ${packed} to ${size} bytes, more than ${MAX_RATIO} times: a compression bomb`);
  if (method === 8 && size > MAX_INFLATED) fail(`entry "${name}" is deflated and ${size} bytes large; store it without compression`);
}

/** Where the entry's data begins. Its own header must say the same as the directory. */
function dataStart(file: OpenFile, record: Record, fail: Fail): number {
  if (record.offset + 30 > file.size) fail(`entry "${record.name}" lies beyond the end; the file is cut off`);
  const header = viewOf(file.read(record.offset, 30));
  const [nameLength, extraLength] = [header.getUint16(26, true), header.getUint16(28, true)];
  const start = record.offset + 30 + nameLength + extraLength;
  if (header.getUint32(0, true) !== 0x04034b50 || start > file.size) fail(`entry "${record.name}" does not stand where the directory says`);
  const name = decodeName(file.read(record.offset + 30, nameLength), fail);
  if (name !== record.name) fail(`one entry is called "${record.name}" in the directory and ${JSON.stringify(name)} in its own header`);
  const [flags, method] = [header.getUint16(6, true), header.getUint16(8, true)];
  if (flags !== record.flags || method !== record.method) fail(`entry "${name}" has other flags in its own header than in the directory`);
  const [crc, packed, size] = [14, 18, 22].map((k) => header.getUint32(k, true));
  const agrees = (own: number, listed: number) => own === listed || own === FULL32;
  const later = (flags & 8) !== 0; // then the sizes follow the data, and stand here as 0 or not at all
  if (!later && (crc !== record.crc || !agrees(packed, record.packed) || !agrees(size, record.size)))
    fail(`entry "${name}" has other sizes in its own header than in the directory`);
  return start;
}

function entry(file: OpenFile, record: Record, start: number): ZipEntry {
  const { name, size } = record;
  let [checked, unpacked] = [false, undefined as WeakRef<Uint8Array> | undefined];

  function check(crc: number): void {
    if (crc !== record.crc)
      throw new Error(
        `${file.path}: entry "${name}" is damaged (its CRC-32 is ${hex(crc)}, expected ${hex(record.crc)}); get the file again`,
      );
    checked = true;
  }
  function readStored(offset: number, length: number): Uint8Array {
    const whole = offset === 0 && length === size;
    if (!checked && !whole) {
      let crc = 0;
      for (let at = 0; at < size; at += WINDOW) crc = crc32(file.read(start + at, Math.min(WINDOW, size - at)), crc);
      check(crc);
    }
    const bytes = file.read(start + offset, length);
    if (!checked) check(crc32(bytes));
    return bytes;
  }
  function readDeflated(offset: number, length: number): Uint8Array {
    let bytes = unpacked?.deref();
    if (!bytes) {
      bytes = inflate(file, record, start);
      check(crc32(bytes));
      unpacked = new WeakRef(bytes);
    }
    return bytes.slice(offset, offset + length);
  }
  return {
    name,
    size,
    read(offset, length) {
      if (offset < 0 || length < 0 || offset + length > size)
        throw new RangeError(`${file.path}: bytes ${offset} to ${offset + length} of entry "${name}" were asked for, it has ${size}`);
      return record.method === 0 ? readStored(offset, length) : readDeflated(offset, length);
    },
  };
}

/** Never more than the announced size is unpacked, whatever the data wants. */
function inflate(file: OpenFile, { name, packed, size }: Record, start: number): Uint8Array {
  try {
    const bytes = inflateRawSync(file.read(start, packed), { maxOutputLength: Math.max(1, size) });
    if (bytes.length === size) return new Uint8Array(bytes);
  } catch (error) {
    throw new Error(`${file.path}: entry "${name}" cannot be unpacked to ${size} bytes (${(error as Error).message})`, { cause: error });
  }
  throw new Error(`${file.path}: entry "${name}" does not unpack to the ${size} bytes it announces`);
}

const hex = (crc: number) => (crc >>> 0).toString(16).padStart(8, "0");
