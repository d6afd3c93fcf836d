/**
 * Checkpoints that `torch.save` wrote, read without running any of them: the zip format (torch 1.6 and later) and the one before.
 * Formats: torch/serialization.py (`_save`, `_legacy_save`).
 */
import { isTensorSource, type TensorSource } from "./dtype";
import { Callable, readPickle } from "./pickle";
import type { Storage } from "./strided";
import { StorageType, torchGlobal } from "./torch-globals";
import { type OpenFile, openFile } from "./window";
import { openZip, type ZipEntry } from "./zip";

export type TorchFile = {
  /** The state dict, flat: that of `value`, or of its key `state_dict` or `model`; dictionaries inside it are joined by dots. */
  tensors: Map<string, TensorSource>;
  /** Everything in the file: dict as Map, list and tuple as array, tensors as TensorSource (named by their path). */
  value: unknown;
  close(): void;
};

const MAX_DEPTH = 500;
const MAX_TENSORS = 1_000_000;
/** Where a training checkpoint keeps the weights. */
const STATE_KEYS = ["state_dict", "model"];
/** The first pickle of the format before 1.6 is this number. */
const LEGACY_MAGIC = 0x1950a86a20f9469cfc6cn;
const CONVERT = 'load it with PyTorch and save it again: torch.save(torch.load(FILE, weights_only=True), "new.bin")';

/**
 * Opens a `.bin`, `.pt` or `.pth` file of PyTorch. Only tensors and plain data are read; tensor data when asked for. The file stays open
 * until `close()`.
 *
 * @throws Error naming the file, and each global that is not allowed, or what is damaged.
 */
export function openTorch(path: string): TorchFile {
  const file = openFile(path);
  try {
    const value = readValue(file);
    nameLeaves(file.path, value);
    return { value, tensors: flatten(file.path, value), close: file.close };
  } catch (error) {
    file.close();
    throw error;
  }
}

function readValue(file: OpenFile): unknown {
  const head = Buffer.from(file.read(0, Math.min(512, file.size)));
  if (head.length === 0) throw new Error(`${file.path} is empty`);
  if (head.subarray(0, 2).toString("latin1") === "PK") return readZip(file);
  if (head.subarray(257, 262).toString("latin1") === "ustar") throw new Error(`${file.path} has the tar format of 2016; ${CONVERT}`);
  if (head[0] === 0x80) return readLegacy(file);
  throw new Error(
    `${file.path} was not written by torch.save: it begins with ${head.subarray(0, 8).toString("hex")}, neither a zip archive nor a pickle`,
  );
}

/** zip: `NAME/data.pkl` is the object, `NAME/data/KEY` the storages. */
function readZip(file: OpenFile): unknown {
  const entries = openZip(file);
  const pickles = [...entries.keys()].filter((name) => /(^|\/)data\.pkl$/i.test(name));
  if (pickles.length !== 1)
    throw new Error(
      `${file.path} ${pickles.length ? `has several pickles: ${pickles.join(", ")}` : "is a zip archive without data.pkl, so not of torch.save"}`,
    );
  const root = pickles[0].slice(0, -"data.pkl".length);
  if (entries.has(`${root}constants.pkl`))
    throw new Error(`${file.path} is a TorchScript program, not a checkpoint; save its state_dict() instead`);
  checkByteOrder(file.path, entries.get(`${root}byteorder`));
  const pickle = entries.get(pickles[0]) as ZipEntry;
  const persistent = (id: unknown): Storage => {
    const { type, key, count } = storageId(file.path, id);
    const byteLength = count * type.elementBytes;
    const entry = entries.get(`${root}data/${key}`);
    if (!entry) throw new Error(`${file.path}: storage ${key} is missing (no entry ${root}data/${key}); the file is incomplete`);
    if (byteLength > entry.size)
      throw new Error(`${file.path}: storage ${key} should have ${byteLength} bytes, its entry has ${entry.size}`);
    return { key, dtype: type.dtype, byteLength, read: entry.read };
  };
  const source = { path: file.path, size: pickle.size, read: pickle.read };
  return readPickle(source, 0, { global: (module, name) => torchGlobal(file.path, module, name), persistent }).value;
}

function checkByteOrder(path: string, entry: ZipEntry | undefined): void {
  const order = entry ? Buffer.from(entry.read(0, Math.min(entry.size, 16))).toString("latin1") : "little";
  if (order !== "little")
    throw new Error(`${path} holds ${JSON.stringify(order)}-endian numbers; only little-endian ones are read; ${CONVERT}`);
}

/** ("storage", class, key, device, elements[, view]): what a tensor's pickle says of its storage. */
function storageId(path: string, id: unknown): { type: StorageType; key: string; count: number; part: unknown } {
  if (
    !Array.isArray(id) ||
    id[0] !== "storage" ||
    !(id[1] instanceof StorageType) ||
    typeof id[2] !== "string" ||
    !Number.isSafeInteger(id[4]) ||
    id[4] < 0
  )
    throw new Error(`${path}: damaged or unsafe pickle: a persistent id that is no storage`);
  return { type: id[1], key: id[2], count: id[4], part: id[5] ?? null };
}

type LegacyStorage = Storage & { count: number; elementBytes: number; position: number };

/** Before 1.6: magic number, protocol, machine, object, list of storage keys (a pickle each), then each storage: element count and data. */
function readLegacy(file: OpenFile): unknown {
  const plain = { global: () => undefined, persistent: () => refusePersistent(file.path) };
  const magic = readPickle(file, 0, plain);
  if (magic.value !== LEGACY_MAGIC) throw new Error(`${file.path} is a pickle, but not one of torch.save; it is not read`);
  const protocol = readPickle(file, magic.end, plain);
  const machine = readPickle(file, protocol.end, plain);
  if (protocol.value !== 1001) throw new Error(`${file.path} has torch's protocol ${String(protocol.value)}, expected 1001; ${CONVERT}`);
  if (!(machine.value instanceof Map) || machine.value.get("little_endian") !== true)
    throw new Error(`${file.path} was written on a machine with other byte order; ${CONVERT}`);
  const storages = new Map<string, LegacyStorage>();
  const persistent = (id: unknown) => legacyStorage(file, storages, id);
  const object = readPickle(file, machine.end, { global: (module, name) => torchGlobal(file.path, module, name), persistent });
  const keys = readPickle(file, object.end, plain);
  placeStorages(file, storages, keys.value, keys.end);
  return object.value;
}

function refusePersistent(path: string): never {
  throw new Error(`${path}: damaged or unsafe pickle: a storage where none can be`);
}

function legacyStorage(file: OpenFile, storages: Map<string, LegacyStorage>, id: unknown): Storage {
  const { type, key, count, part } = storageId(file.path, id);
  const elementBytes = type.elementBytes;
  const known = storages.get(key);
  if (known && (known.count !== count || known.dtype !== type.dtype))
    throw new Error(`${file.path}: storage ${key} is described in two ways`);
  const storage: LegacyStorage = known ?? {
    key,
    dtype: type.dtype,
    byteLength: count * elementBytes,
    count,
    elementBytes,
    position: -1,
    read: (offset, length) => file.read(storage.position + offset, length),
  };
  storages.set(key, storage);
  if (part === null) return storage;
  if (
    !Array.isArray(part) ||
    !Number.isSafeInteger(part[1]) ||
    !Number.isSafeInteger(part[2]) ||
    part[1] < 0 ||
    part[2] < 0 ||
    part[1] + part[2] > count
  )
    throw new Error(`${file.path}: a part of storage ${key} reaches beyond it`);
  const [start, byteLength] = [part[1] * elementBytes, part[2] * elementBytes];
  return { key, dtype: type.dtype, byteLength, read: (offset, length) => storage.read(start + offset, length) };
}

/** Finds where each storage's data stands; every storage must be there, and nothing may follow the last. */
function placeStorages(file: OpenFile, storages: Map<string, LegacyStorage>, keys: unknown, start: number): void {
  if (!Array.isArray(keys) || new Set(keys).size !== keys.length) throw new Error(`${file.path}: its list of storages is damaged`);
  let position = start;
  for (const key of keys) {
    const storage = storages.get(key);
    if (!storage) throw new Error(`${file.path}: storage ${String(key).slice(0, 60)} belongs to no tensor; the file is damaged`);
    if (position + 8 + storage.byteLength > file.size)
      throw new Error(`${file.path} is cut off: storage ${key} needs ${storage.byteLength} bytes; get the file again`);
    const count = new DataView(file.read(position, 8).buffer).getBigInt64(0, true);
    if (count !== BigInt(storage.count))
      throw new Error(`${file.path}: storage ${key} has ${count} elements, its tensors expect ${storage.count}`);
    storage.position = position + 8;
    position = storage.position + storage.byteLength;
  }
  const missing = [...storages].filter(([, storage]) => storage.position < 0).map(([key]) => key);
  if (missing.length) throw new Error(`${file.path}: storages ${missing.slice(0, 20).join(", ")} are missing; the file is incomplete`);
  if (position !== file.size) throw new Error(`${file.path}: ${file.size - position} bytes after its last storage belong to nothing`);
}

/** Checks that a value is plain data, a tree without circles, and gives each tensor the path of its first place as its name. */
function nameLeaves(path: string, root: unknown): void {
  const [open, done] = [new Set<object>(), new Set<object>()];
  const visit = (value: unknown, name: string, depth: number): void => {
    if (typeof value !== "object" || value === null || done.has(value)) return;
    if (open.has(value)) throw new Error(`${path}: damaged or unsafe pickle: "${name}" contains itself`);
    if (depth > MAX_DEPTH) throw new Error(`${path}: damaged or unsafe pickle: nested deeper than ${MAX_DEPTH} levels`);
    if (value instanceof Callable || value instanceof StorageType || (!isTensorSource(value) && "read" in value))
      throw new Error(`${path}: "${name}" is no plain data`);
    open.add(value);
    if (isTensorSource(value)) value.name = name;
    else if (value instanceof Map) for (const [key, item] of value) visit(item, join(name, key), depth + 1);
    else if (value instanceof Set) for (const item of value) visit(item, name, depth + 1);
    else if (Array.isArray(value)) value.forEach((item, i) => visit(item, join(name, i), depth + 1));
    open.delete(value);
    done.add(value);
  };
  visit(root, "", 0);
}

const join = (name: string, key: unknown): string => (name === "" ? String(key) : `${name}.${String(key)}`);

function flatten(path: string, root: unknown): Map<string, TensorSource> {
  const tensors = new Map<string, TensorSource>();
  let visits = 0;
  const visit = (value: unknown, name: string): void => {
    if (++visits > MAX_TENSORS) throw new Error(`${path}: more than ${MAX_TENSORS} entries in its dictionaries`);
    if (value instanceof Map) for (const [key, item] of value) visit(item, join(name, key));
    if (!isTensorSource(value)) return;
    if (tensors.has(name)) throw new Error(`${path}: two tensors are called "${name}"`);
    tensors.set(name, value.name === name ? value : { ...value, name });
  };
  visit(stateDict(root), "");
  return tensors;
}

function stateDict(root: unknown): unknown {
  if (!(root instanceof Map)) return root;
  const key = STATE_KEYS.find((k) => root.get(k) instanceof Map);
  return key === undefined ? root : root.get(key);
}
