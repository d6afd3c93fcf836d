/** What the tests of files share: a scratch folder, files built byte by byte, the oracle's place. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { after } from "node:test";

export const oracle = path.join(__dirname, "..", "oracle");

/** A folder that is gone after the tests of this file. */
export const scratch = mkdtempSync(path.join(tmpdir(), "vitrine-files-"));
after(() => rmSync(scratch, { recursive: true, force: true }));

let counter = 0;

/** Writes a new file with this content and returns its path. */
export function file(content: Uint8Array | string, ending = ".bin"): string {
  const place = path.join(scratch, `${counter++}${ending}`);
  writeFileSync(place, content);
  return place;
}

export const bytes = (...parts: (string | number | Uint8Array | readonly number[])[]): Buffer =>
  Buffer.concat(
    parts.map((p) =>
      typeof p === "string" ? Buffer.from(p, "latin1") : typeof p === "number" ? Buffer.from([p]) : Buffer.from(p as Uint8Array),
    ),
  );

export function u64(n: bigint | number): Buffer {
  const b = Buffer.alloc(8);
  b.writeBigUInt64LE(BigInt.asUintN(64, BigInt(n)));
  return b;
}

export function u32(n: number): Buffer {
  const b = Buffer.alloc(4);
  b.writeUInt32LE(n >>> 0);
  return b;
}

export function u16(n: number): Buffer {
  const b = Buffer.alloc(2);
  b.writeUInt16LE(n);
  return b;
}

/** The message of what `f` throws; an empty text, which no pattern matches, when it does not. */
export function message(f: () => unknown): string {
  try {
    f();
  } catch (error) {
    return (error as Error).message;
  }
  return "";
}

/** As `message`, of a promise. */
export async function messageOf(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => "",
    (error) => (error as Error).message,
  );
}
