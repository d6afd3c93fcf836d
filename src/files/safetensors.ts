/**
 * safetensors in and out (github.com/huggingface/safetensors, README "Format"): 8 bytes header length, a JSON header, tensor data.
 * Stricter than the reference reader in one point: two tensors of one name are refused, as the format's text demands.
 */
import type { FileHandle } from "node:fs/promises";
import { writeFileAtomic } from "./atomic";
import { DTYPE_BYTES, type Dtype, elements, isDtype, type TensorSource } from "./dtype";
import { JsonScanner } from "./json";
import { type OpenFile, openFile } from "./window";

export { type Dtype, fromFloat32, type TensorSource, toFloat32, toInt32 } from "./dtype";

/** The reference's bound on the header; real ones have at most a few MB. */
const MAX_HEADER = 100_000_000;
/** No model has more; a header of millions of empty tensors only wants memory. */
const MAX_TENSORS = 1_000_000;
/** Misfits shown in one error. */
const SHOWN = 20;

export type Safetensors = {
  /** By name, in the order of the file's header. */
  tensors: Map<string, TensorSource>;
  /** The header's `__metadata__`. */
  metadata: Map<string, string>;
  close(): void;
};

type Entry = { name: string; dtype: Dtype; shape: number[]; begin: number; end: number };
type Header = { entries: Map<string, Entry>; metadata: Map<string, string> };

/**
 * Opens a safetensors file and reads its header; tensor data is read when asked for. The file stays open until `close()`.
 *
 * @throws Error naming the file and every tensor that does not fit.
 */
export function openSafetensors(path: string): Safetensors {
  const file = openFile(path);
  try {
    const { text, dataStart } = readHeader(file);
    const { entries, metadata } = parseHeader(text, path, file.size - dataStart);
    const tensors = new Map([...entries].map(([name, entry]) => [name, source(file, dataStart, entry)]));
    return { tensors, metadata, close: file.close };
  } catch (error) {
    file.close();
    throw error;
  }
}

function source(file: OpenFile, dataStart: number, { name, dtype, shape, begin, end }: Entry): TensorSource {
  const byteLength = end - begin;
  const offset = dataStart + begin;
  const part = (from: number, to: number) => file.read(offset + from, to - from);
  return {
    name,
    dtype,
    shape,
    byteLength,
    file: file.path,
    read: () => part(0, byteLength),
    part,
    hold: () => file.hold(offset, byteLength),
  };
}

function readHeader(file: OpenFile): { text: string; dataStart: number } {
  if (file.size < 8) throw new Error(`${file.path} is no safetensors file: it has ${file.size} bytes, its header length alone needs 8`);
  const length = new DataView(file.read(0, 8).buffer).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER))
    throw new Error(
      `${file.path} is no safetensors file: its first 8 bytes announce a header of ${length} bytes, the limit is ${MAX_HEADER}`,
    );
  const size = Number(length);
  if (8 + size > file.size)
    throw new Error(
      `${file.path} is cut off: the header needs ${size} bytes after the first 8, the file has ${file.size} bytes in all; get it again`,
    );
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(file.read(8, size));
    return { text, dataStart: 8 + size };
  } catch (error) {
    if (error instanceof TypeError) throw new Error(`${file.path} is damaged: its header is not UTF-8 text`);
    throw error;
  }
}

function parseHeader(text: string, path: string, dataLength: number): Header {
  const scanner = new JsonScanner(text, `${path}, header`);
  const header: Header = { entries: new Map(), metadata: new Map() };
  const problems: string[] = [];
  let [total, metadataSeen] = [0, false];
  scanner.object((name) => {
    if (name === "__metadata__") {
      if (metadataSeen) scanner.fail("__metadata__ stands there twice");
      metadataSeen = true;
      return readMetadata(scanner, header.metadata);
    }
    scanner.context = `tensor "${name}"`;
    if (header.entries.has(name)) scanner.fail("two tensors have this name");
    const entry = readEntry(scanner, name, problems);
    if (entry) header.entries.set(name, entry);
    total += entry ? entry.end - entry.begin : 0;
    if (total > dataLength)
      scanner.fail(`the tensors up to here need ${total} bytes, the file has ${dataLength}: they overlap or it is cut off`);
    if (header.entries.size + problems.length > MAX_TENSORS) scanner.fail(`more than ${MAX_TENSORS} tensors`);
    scanner.context = "";
  });
  scanner.end();
  if (problems.length === 0) checkLayout([...header.entries.values()], dataLength, problems);
  refuse(path, problems);
  return header;
}

function readMetadata(scanner: JsonScanner, metadata: Map<string, string>): void {
  if (scanner.nothing()) return;
  scanner.object((key) => {
    scanner.context = `__metadata__ "${key}"`;
    if (metadata.has(key)) scanner.fail("this key stands there twice");
    metadata.set(key, scanner.string());
  });
  scanner.context = "";
}

/** One tensor's header. What is wrong with its values goes to `problems`, so that one error can list all tensors. */
function readEntry(scanner: JsonScanner, name: string, problems: string[]): Entry | undefined {
  const fields = new Map<string, number[] | string>();
  const numbers = () => {
    const list: number[] = [];
    scanner.array(() => list.push(scanner.integer()));
    return list;
  };
  scanner.object((key) => {
    if (key !== "dtype" && key !== "shape" && key !== "data_offsets") return scanner.skip(2);
    if (fields.has(key)) scanner.fail(`"${key}" stands there twice`);
    fields.set(key, key === "dtype" ? scanner.string() : numbers());
  });
  const missing = ["dtype", "shape", "data_offsets"].filter((key) => !fields.has(key));
  if (missing.length) return void problems.push(`tensor "${name}" has no ${missing.join(", no ")}`);
  const [dtype, shape, offsets] = [fields.get("dtype") as string, fields.get("shape") as number[], fields.get("data_offsets") as number[]];
  const problem = checkEntry(dtype, shape, offsets);
  if (problem) return void problems.push(`tensor "${name}": ${problem}`);
  return { name, dtype: dtype as Dtype, shape, begin: offsets[0], end: offsets[1] };
}

function checkEntry(dtype: string, shape: number[], offsets: number[]): string | undefined {
  if (!isDtype(dtype)) {
    const hint = isDtype(dtype.toUpperCase()) ? `; did you mean ${dtype.toUpperCase()}?` : "";
    return `dtype "${dtype}" is not one of ${Object.keys(DTYPE_BYTES).join(", ")}${hint}`;
  }
  if (offsets.length !== 2) return `data_offsets has ${offsets.length} numbers, expected [begin, end]`;
  const [begin, end] = offsets;
  if (end < begin) return `data_offsets end before they begin: [${begin},${end}]`;
  try {
    const needed = elements(shape) * DTYPE_BYTES[dtype];
    if (needed !== end - begin) return `${dtype} [${shape}] needs ${needed} bytes, data_offsets [${begin},${end}] give ${end - begin}`;
  } catch (error) {
    return (error as Error).message;
  }
}

/** Every byte of the data belongs to exactly one tensor: no gap in which something could hide, no overlap. */
function checkLayout(entries: Entry[], dataLength: number, problems: string[]): void {
  let [position, previous] = [0, "the header"];
  for (const { name, begin, end } of entries.sort((a, b) => a.begin - b.begin || a.end - b.end)) {
    if (begin > position)
      problems.push(
        `tensor "${name}" begins at byte ${begin}, but ${previous} ends at ${position}: ${begin - position} bytes belong to nothing`,
      );
    if (begin < position) problems.push(`tensor "${name}" begins at byte ${begin} inside ${previous}, which ends at ${position}`);
    [position, previous] = [Math.max(position, end), `tensor "${name}"`];
  }
  if (position > dataLength) problems.push(`${previous} ends at byte ${position}, the file's data at ${dataLength}: it is cut off`);
  if (position < dataLength) problems.push(`${dataLength - position} bytes after the end of ${previous} belong to nothing`);
}

function refuse(path: string, problems: string[]): void {
  if (problems.length === 0) return;
  const more = problems.length > SHOWN ? [`… and ${problems.length - SHOWN} more`] : [];
  throw new Error([`${path} is no valid safetensors file:`, ...problems.slice(0, SHOWN), ...more].join("\n  "));
}

export type TensorToSave = { name: string; dtype: Dtype; shape: readonly number[]; data: Uint8Array | (() => Uint8Array) };

/** TensorFlow computes in a mapped file where a tensor begins at a multiple of this. */
const ALIGNMENT = 64;
/** Whether what follows the tensor would not begin at such a multiple: these stand last. */
const isUneven = ({ dtype, shape }: TensorToSave): boolean => (elements(shape) * DTYPE_BYTES[dtype]) % ALIGNMENT !== 0;

/** Order of the data, so that every tensor begins at a multiple of its element's size; the reference writer's order. */
const ORDER: readonly Dtype[] = ["I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL"];

/**
 * Writes a safetensors file, atomically. `data` holds the bytes (little-endian, C order) or gives them when their turn comes,
 * so that only one tensor needs to be in memory. transformers and PEFT look for the default `metadata`.
 *
 * @throws before anything is written: names that occur twice, shapes or lengths that do not fit.
 */
export async function saveSafetensors(
  path: string,
  tensors: Iterable<TensorToSave>,
  metadata: Record<string, string> = { format: "pt" },
): Promise<void> {
  const list = [...tensors].sort(
    (a, b) =>
      Number(isUneven(a)) - Number(isUneven(b)) ||
      ORDER.indexOf(a.dtype) - ORDER.indexOf(b.dtype) ||
      Buffer.compare(Buffer.from(a.name), Buffer.from(b.name)),
  );
  const header = Buffer.from(makeHeader(path, list, metadata));
  if (header.length > MAX_HEADER)
    throw new RangeError(`${path}: the header has ${header.length} bytes, the format allows ${MAX_HEADER}; shorten the metadata`);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  await writeFileAtomic(path, async (handle) => {
    await writeAll(handle, length);
    await writeAll(handle, header);
    for (const tensor of list) await writeAll(handle, bytesOf(path, tensor));
  });
}

/** The header, padded with spaces so that the data is aligned. Built as text: a Map keeps names such as `__proto__`. */
function makeHeader(path: string, list: TensorToSave[], metadata: Record<string, string>): string {
  const fields = new Map<string, string>();
  if (Object.keys(metadata).length) fields.set("__metadata__", JSON.stringify(metadata));
  const problems: string[] = [];
  let position = 0;
  for (const { name, dtype, shape, data } of list) {
    if (fields.has(name) || name === "__metadata__")
      problems.push(`tensor "${name}": ${name === "__metadata__" ? "reserved name" : "two tensors have this name"}`);
    if (!isDtype(dtype)) throw new TypeError(`${path}: tensor "${name}" has dtype "${dtype}", expected one of ${ORDER.join(", ")}`);
    const size = elements(shape) * DTYPE_BYTES[dtype];
    if (typeof data !== "function" && data.byteLength !== size)
      problems.push(lengthProblem({ name, dtype, shape, data }, size, data.byteLength));
    fields.set(name, JSON.stringify({ dtype, shape, data_offsets: [position, position + size] }));
    position += size;
  }
  if (problems.length) throw new Error([`${path} was not written:`, ...problems].join("\n  "));
  const text = `{${[...fields].map(([name, value]) => `${JSON.stringify(name)}:${value}`).join(",")}}`;
  const end = 8 + Buffer.byteLength(text);
  return text + " ".repeat((ALIGNMENT - (end % ALIGNMENT)) % ALIGNMENT);
}

const lengthProblem = ({ name, dtype, shape }: TensorToSave, expected: number, got: number): string =>
  `tensor "${name}": ${dtype} [${shape}] needs ${expected} bytes, its data has ${got}`;

function bytesOf(path: string, tensor: TensorToSave): Uint8Array {
  const bytes = typeof tensor.data === "function" ? tensor.data() : tensor.data;
  const expected = elements(tensor.shape) * DTYPE_BYTES[tensor.dtype];
  if (bytes.byteLength !== expected) throw new Error(`${path} was not written:\n  ${lengthProblem(tensor, expected, bytes.byteLength)}`);
  return bytes;
}

/** One system call may write less than asked, and at most 2 GiB. */
async function writeAll(handle: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.byteLength; ) {
    const { bytesWritten } = await handle.write(bytes, done, Math.min(bytes.byteLength - done, 2 ** 28));
    done += bytesWritten;
  }
}
