/** zip archives and pickles put together by hand, so that a test can spoil any one field. */
import { crc32, deflateRawSync } from "node:zlib";
import { bytes, u16, u32, u64 } from "./helpers";

export type Member = {
  name: string;
  data: Uint8Array;
  /** 0 stored, 8 deflated. */
  method?: number;
  flags?: number;
  /** What the directory says, where it should lie. */
  listed?: { name?: string; flags?: number; method?: number; crc?: number; size?: number; packed?: number };
  /** What the entry's own header says, where it should lie. */
  own?: { name?: string; flags?: number; crc?: number; size?: number };
  /** Sizes in the zip64 extra field. */
  zip64?: boolean;
};

/** A zip archive. zip64: also the large directory records, as torch writes them. */
export function zip(members: Member[], { zip64 = false, prefix = Buffer.alloc(0) }: { zip64?: boolean; prefix?: Buffer } = {}): Buffer {
  const [parts, directory]: [Buffer[], Buffer[]] = [[prefix], []];
  let offset = prefix.length;
  for (const m of members) {
    const method = m.method ?? 0;
    const packed = method === 8 ? deflateRawSync(m.data) : Buffer.from(m.data);
    const field = (o: { flags?: number; method?: number; crc?: number; size?: number; packed?: number } = {}, extra = Buffer.alloc(0)) => {
      const sizes = m.zip64 ? bytes(u32(0xffffffff), u32(0xffffffff)) : bytes(u32(o.packed ?? packed.length), u32(o.size ?? m.data.length));
      return { head: bytes(u16(o.flags ?? m.flags ?? 0), u16(o.method ?? method), u32(0), u32(o.crc ?? crc32(m.data)), sizes), extra };
    };
    const wide = m.zip64 ? bytes(u16(1), u16(16), u64(m.data.length), u64(packed.length)) : Buffer.alloc(0);
    const local = field(m.own);
    const [ownName, listedName] = [m.own?.name ?? m.name, m.listed?.name ?? m.name].map((n) => Buffer.from(n));
    parts.push(bytes("PK\x03\x04", u16(20), local.head, u16(ownName.length), u16(wide.length), ownName, wide, packed));
    const listed = field(m.listed);
    directory.push(
      bytes(
        "PK\x01\x02",
        u16(20),
        u16(20),
        listed.head,
        u16(listedName.length),
        u16(wide.length),
        u16(0),
        u16(0),
        u16(0),
        u32(0),
        u32(offset),
        listedName,
        wide,
      ),
    );
    offset += parts[parts.length - 1].length;
  }
  const central = Buffer.concat(directory);
  const end = offset + central.length;
  const counts = bytes(u64(members.length), u64(members.length), u64(central.length), u64(offset));
  const large = zip64
    ? bytes("PK\x06\x06", u64(44), u16(45), u16(45), u32(0), u32(0), counts, "PK\x06\x07", u32(0), u64(end), u32(1))
    : Buffer.alloc(0);
  const small = zip64
    ? bytes(u16(0xffff), u16(0xffff), u32(0xffffffff), u32(0xffffffff))
    : bytes(u16(members.length), u16(members.length), u32(central.length), u32(offset));
  return bytes(...parts, central, large, "PK\x05\x06", u16(0), u16(0), small, u16(0));
}

/** Pickle instructions, by the names of CPython's pickletools. */
export const P = {
  global: (module: string, name: string) => bytes("c", `${module}\n${name}\n`),
  text: (s: string) => bytes("X", u32(Buffer.byteLength(s)), Buffer.from(s)),
  int: (n: number) => bytes("J", u32(n)),
  tuple: (...items: Uint8Array[]) => bytes("(", ...items, "t"),
  call: (fn: Uint8Array, ...args: Uint8Array[]) => bytes(fn, "(", ...args, "t", "R"),
  dict: (...items: Uint8Array[]) => bytes("}", "(", ...items, "u"),
  whole: (...parts: (string | number | Uint8Array)[]) => bytes(0x80, 2, ...parts, "."),
};

const ordered = P.call(P.global("collections", "OrderedDict"));
const ints = (list: readonly number[]) => P.tuple(...list.map(P.int));

/** A persistent id of a storage. */
export const storage = (type = "FloatStorage", key = "0", count = 4) =>
  bytes(P.tuple(P.text("storage"), P.global("torch", type), P.text(key), P.text("cpu"), P.int(count)), "Q");

/** What torch pickles for a tensor. */
export const tensor = (shape: readonly number[], strides: readonly number[], { offset = 0, on = storage() } = {}) =>
  P.call(P.global("torch._utils", "_rebuild_tensor_v2"), on, P.int(offset), ints(shape), ints(strides), bytes(0x89), ordered);

/** Members of a torch archive: a pickle and storages by key. */
export const members = (
  pickle: Uint8Array,
  storages: Record<string, Uint8Array> = { 0: new Uint8Array(new Float32Array([1, 2, 3, 4]).buffer) },
): Member[] => [
  { name: "m/data.pkl", data: pickle },
  { name: "m/byteorder", data: Buffer.from("little") },
  ...Object.entries(storages).map(([key, data]) => ({ name: `m/data/${key}`, data })),
  { name: "m/version", data: Buffer.from("3\n") },
];

/** A torch archive. */
export const torchZip = (pickle: Uint8Array, storages?: Record<string, Uint8Array>): Buffer => zip(members(pickle, storages));
