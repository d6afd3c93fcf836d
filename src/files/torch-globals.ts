/**
 * The globals a torch checkpoint may name, and what each makes: tensors and plain data, nothing else. The list is that of
 * `torch.load(weights_only=True)` (torch/_weights_only_unpickler.py) without quantised, sparse and nested tensors, which we do not read.
 */
import type { TensorSource } from "./dtype";
import { isTensorSource } from "./dtype";
import { Callable } from "./pickle";
import { type Storage, stridedTensor } from "./strided";

/** Storage classes and the torch name of their elements. Quantised ones are read as what they store. */
const STORAGES: Readonly<Record<string, string | undefined>> = {
  DoubleStorage: "float64",
  FloatStorage: "float32",
  HalfStorage: "float16",
  BFloat16Storage: "bfloat16",
  LongStorage: "int64",
  IntStorage: "int32",
  ShortStorage: "int16",
  CharStorage: "int8",
  ByteStorage: "uint8",
  BoolStorage: "bool",
  ComplexFloatStorage: "complex64",
  ComplexDoubleStorage: "complex128",
  QInt8Storage: "qint8",
  QUInt8Storage: "quint8",
  QInt32Storage: "qint32",
  QUInt4x2Storage: "quint4x2",
  QUInt2x4Storage: "quint2x4",
};

/** Bytes of an element of a storage class. */
const STORAGE_BYTES: Readonly<Record<string, number>> = {
  float64: 8,
  float32: 4,
  float16: 2,
  bfloat16: 2,
  int64: 8,
  int32: 4,
  int16: 2,
  int8: 1,
  uint8: 1,
  bool: 1,
  complex64: 8,
  complex128: 16,
  qint8: 1,
  quint8: 1,
  qint32: 4,
  quint4x2: 1,
  quint2x4: 1,
};

/** Names in `torch.` that are values of type torch.dtype. */
const DTYPE_NAME = /^(float(16|32|64)|bfloat16|u?int(8|16|32|64)|bool|complex(32|64|128)|float8_\w+|q(u?)int(8|32)|quint(4x2|2x4))$/;

/** What a storage class in a pickle stands for: its name and its elements. */
export class StorageType {
  /** dtype: undefined for the untyped storage, whose tensors say it themselves. */
  constructor(
    readonly name: string,
    readonly dtype: string | undefined,
  ) {}

  /** The untyped storage counts bytes. */
  get elementBytes(): number {
    return this.dtype === undefined ? 1 : STORAGE_BYTES[this.dtype];
  }
}

/**
 * What `module.name` stands for in a torch checkpoint, or undefined when it is not allowed. file: for error messages.
 * dtypes and devices become texts ("torch.float32", "cuda:0"), torch.Size an array.
 */
export function torchGlobal(file: string, module: string, name: string): unknown {
  if ((module === "torch" || module === "torch.cuda") && Object.hasOwn(STORAGES, name)) return new StorageType(name, STORAGES[name]);
  if (module === "torch.storage" && name === "UntypedStorage") return new StorageType(name, undefined);
  if (module === "torch" && DTYPE_NAME.test(name)) return `torch.${name}`;
  const full = `${module === "__builtin__" ? "builtins" : module}.${name}`;
  if (!Object.hasOwn(CALLS, full)) return undefined;
  return new Callable(full, (args) => CALLS[full](args, file));
}

type Call = (args: unknown[], file: string) => unknown;

const CALLS: Readonly<Record<string, Call>> = {
  "collections.OrderedDict": (args, file) => toMap("collections.OrderedDict", args, file),
  "collections.Counter": (args, file) => toMap("collections.Counter", args, file),
  "builtins.set": ([items = []], file) => new Set(expectList("builtins.set", items, file)),
  "builtins.bytearray": ([bytes = new Uint8Array(0)], file) => (bytes instanceof Uint8Array ? bytes : wrong("builtins.bytearray", file)),
  "builtins.complex": ([real, imaginary]) => [real, imaginary],
  "_codecs.encode": ([text, encoding], file) => latin1(text, encoding, file),
  "torch.Size": ([sizes = []], file) => [...expectList("torch.Size", sizes, file)],
  "torch.device": ([kind, index]) => (index === undefined ? String(kind) : `${kind}:${index}`),
  "torch._utils._rebuild_tensor": (args, file) => tensor(file, args),
  "torch._utils._rebuild_tensor_v2": (args, file) => tensor(file, args),
  "torch._utils._rebuild_tensor_v3": (args, file) => tensor(file, args, String(args[6]).replace("torch.", "")),
  "torch._utils._rebuild_parameter": ([data], file) => expectTensor("torch._utils._rebuild_parameter", data, file),
  "torch._utils._rebuild_parameter_with_state": ([data], file) => expectTensor("torch._utils._rebuild_parameter_with_state", data, file),
  "torch._tensor._rebuild_from_type_v2": ([make, , args], file) => {
    if (!(make instanceof Callable) || !Array.isArray(args)) return wrong("torch._tensor._rebuild_from_type_v2", file);
    return expectTensor("torch._tensor._rebuild_from_type_v2", make.call(args), file);
  },
  "torch.nn.parameter.Parameter": ([data], file) => expectTensor("torch.nn.parameter.Parameter", data, file),
  "torch.Tensor": (_, file) => wrong("torch.Tensor", file),
};

function wrong(name: string, file: string): never {
  throw new Error(`${file}: damaged or unsafe pickle: ${name} is called with arguments that it never has`);
}

function expectList(name: string, items: unknown, file: string): unknown[] {
  return Array.isArray(items) ? items : wrong(name, file);
}

function expectTensor(name: string, data: unknown, file: string): TensorSource {
  return isTensorSource(data) ? data : wrong(name, file);
}

function toMap(name: string, [items = []]: unknown[], file: string): Map<unknown, unknown> {
  if (items instanceof Map) return new Map(items);
  const pairs = expectList(name, items, file);
  if (!pairs.every((pair) => Array.isArray(pair) && pair.length === 2)) wrong(name, file);
  return new Map(pairs as [unknown, unknown][]);
}

/** How protocol 2 writes bytes: as text in which each character is one byte. */
function latin1(text: unknown, encoding: unknown, file: string): Uint8Array {
  if (typeof text !== "string" || encoding !== "latin1" || /[^\0-\xff]/.test(text)) return wrong("_codecs.encode", file);
  return new Uint8Array(Buffer.from(text, "latin1"));
}

/** args: storage, offset, shape, strides, then flags that only training needs. */
function tensor(file: string, [storage, offset, shape, strides]: unknown[], dtype?: string): TensorSource {
  if (!isStorage(storage)) return wrong("torch._utils._rebuild_tensor", file);
  return stridedTensor(file, storage, dtype ?? storage.dtype ?? "unknown", offset, shape, strides);
}

const isStorage = (x: unknown): x is Storage =>
  typeof x === "object" && x !== null && typeof (x as Storage).read === "function" && typeof (x as Storage).key === "string";
