/** Arrays that the reference wrote, read without the code under test. */
import { readFileSync } from "node:fs";
import { join } from "node:path";

/** The folder of the committed reference files. */
export const ORACLE = join(__dirname, "..", "oracle");

export type Arrays = Map<string, { shape: number[]; bytes: Uint8Array; floats(): Float32Array }>;

/** Every array of a safetensors file in the oracle's folder. */
export function readArrays(path: string): Arrays {
  const file = readFileSync(join(ORACLE, path));
  const start = 8 + Number(file.readBigUInt64LE(0));
  const header: Record<string, { shape: number[]; data_offsets: [number, number] }> = JSON.parse(file.toString("utf8", 8, start));
  delete header.__metadata__;
  return new Map(
    Object.entries(header).map(
      ([
        name,
        {
          shape,
          data_offsets: [from, to],
        },
      ]) => {
        const bytes = new Uint8Array(file.subarray(start + from, start + to)); // a copy, so that it is aligned
        return [name, { shape, bytes, floats: () => new Float32Array(bytes.buffer) }];
      },
    ),
  );
}

/** JSON of the oracle's folder. */
export const readCases = (path: string) => JSON.parse(readFileSync(join(ORACLE, path), "utf8"));
