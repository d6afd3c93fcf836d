/** safetensors files, good and bad, byte by byte; the verdicts are those of the reference reader (safetensors 0.8), see `python.test.ts`. */
import { bytes, u64 } from "./helpers";

export type Case = { name: string; content: Buffer /** What the error must say. */; says: RegExp };

/** A file of this header text and as many data bytes. */
export const safetensors = (header: string | Uint8Array, data = 0): Buffer => {
  const text = typeof header === "string" ? Buffer.from(header) : Buffer.from(header);
  return bytes(u64(text.length), text, Buffer.alloc(data));
};

const f32 = (name: string, shape: string, begin: number, end: number) =>
  `"${name}":{"dtype":"F32","shape":${shape},"data_offsets":[${begin},${end}]}`;
const one = (fields: string, data = 4) => safetensors(`{"x":{${fields}}}`, data);
const good = f32("x", "[1]", 0, 4);
const nested = (depth: number) => `{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"extra":${"[".repeat(depth)}${"]".repeat(depth)}}}`;

export const rejected: Case[] = [
  { name: "file of 7 bytes", content: Buffer.alloc(7), says: /no safetensors file: it has 7 bytes/ },
  { name: "empty file", content: Buffer.alloc(0), says: /it has 0 bytes/ },
  { name: "header length 0", content: u64(0), says: /expected "\{", got the end/ },
  { name: "header longer than the file", content: bytes(u64(100), "{}"), says: /cut off: the header needs 100 bytes/ },
  { name: "header above 100 MB", content: bytes(u64(100_000_001), "{}"), says: /header of 100000001 bytes, the limit is 100000000/ },
  { name: "header length 2^63", content: bytes(u64(2n ** 63n), "{}"), says: /header of 9223372036854775808 bytes/ },
  { name: "not UTF-8", content: safetensors(bytes('{"', 0xff, '":1}')), says: /not UTF-8/ },
  { name: "not JSON", content: safetensors("{'x': 1}"), says: /header:1:2: expected a text in double quotes/ },
  { name: "array", content: safetensors("[]"), says: /expected "\{", got "\["/ },
  { name: "number", content: safetensors("12"), says: /expected "\{", got "1"/ },
  { name: "padded with NUL", content: safetensors("{}\0\0"), says: /expected the end, got U\+0000/ },
  { name: "garbage after the JSON", content: safetensors("{} x"), says: /expected the end, got "x"/ },
  { name: "byte order mark", content: safetensors("\ufeff{}"), says: /got U\+FEFF/ },
  { name: "comma at the end", content: safetensors(`{${good},}`, 4), says: /expected a text in double quotes, got "\}"/ },
  { name: "one data byte too many", content: safetensors(`{${good}}`, 5), says: /1 bytes after the end of tensor "x" belong to nothing/ },
  { name: "one data byte missing", content: safetensors(`{${good}}`, 3), says: /need 4 bytes, the file has 3/ },
  {
    name: "hole at the start",
    content: safetensors(`{${f32("x", "[1]", 4, 8)}}`, 8),
    says: /"x" begins at byte 4, but the header ends at 0: 4 bytes belong to nothing/,
  },
  {
    name: "hole between",
    content: safetensors(`{${good},${f32("y", "[1]", 8, 12)}}`, 12),
    says: /"y" begins at byte 8, but tensor "x" ends at 4/,
  },
  {
    name: "full overlap",
    content: safetensors(`{${good},${f32("y", "[1]", 0, 4)}}`, 8),
    says: /"y" begins at byte 0 inside tensor "x", which ends at 4/,
  },
  {
    name: "partial overlap",
    content: safetensors(`{${f32("x", "[2]", 0, 8)},${f32("y", "[1]", 4, 8)}}`, 12),
    says: /"y" begins at byte 4 inside tensor "x"/,
  },
  {
    name: "end before begin",
    content: safetensors(`{${f32("x", "[1]", 4, 0)}}`, 4),
    says: /"x": data_offsets end before they begin: \[4,0\]/,
  },
  {
    name: "size is not shape x dtype",
    content: safetensors(`{${f32("x", "[2]", 0, 4)}}`, 4),
    says: /"x": F32 \[2\] needs 8 bytes, data_offsets \[0,4\] give 4/,
  },
  {
    name: "shape overflows, 2 x (2^64 - 2)",
    content: safetensors(`{${f32("x", "[2,18446744073709551614]", 0, 4)}}`, 4),
    says: /"x": 18446744073709551614 is larger than any size/,
  },
  {
    name: "shape overflows, 2 x (2^63 - 1)",
    content: safetensors(`{${f32("x", "[2,9223372036854775807]", 0, 4)}}`, 4),
    says: /"x": 9223372036854775807 is larger/,
  },
  {
    name: "shape overflows in the product",
    content: safetensors(`{${f32("x", "[4294967296,4294967296]", 0, 4)}}`, 4),
    says: /"x": shape \[4294967296,4294967296\] has more elements/,
  },
  {
    name: "dimension above 2^64",
    content: safetensors(`{${f32("x", "[36893488147419103232]", 0, 4)}}`, 4),
    says: /is larger than any size/,
  },
  {
    name: "negative dimension",
    content: safetensors(`{${f32("x", "[-1]", 0, 4)}}`, 4),
    says: /"x": expected a whole number of 0 or more, got -1/,
  },
  { name: "dimension 2.0", content: safetensors(`{${f32("x", "[2.0]", 0, 8)}}`, 8), says: /got 2\.0/ },
  { name: "dimension 2e0", content: safetensors(`{${f32("x", "[2e0]", 0, 8)}}`, 8), says: /got 2e0/ },
  { name: 'dimension "2"', content: safetensors(`{${f32("x", '["2"]', 0, 8)}}`, 8), says: /got "2"/ },
  {
    name: "unknown dtype",
    content: one('"dtype":"F33","shape":[1],"data_offsets":[0,4]'),
    says: /"x": dtype "F33" is not one of F64, F32/,
  },
  { name: "lower-case dtype", content: one('"dtype":"f32","shape":[1],"data_offsets":[0,4]'), says: /did you mean F32\?/ },
  { name: "no shape", content: one('"dtype":"F32","data_offsets":[0,4]'), says: /"x" has no shape/ },
  { name: "no dtype", content: one('"shape":[1],"data_offsets":[0,4]'), says: /"x" has no dtype/ },
  { name: "no offsets", content: one('"dtype":"F32","shape":[1]'), says: /"x" has no data_offsets/ },
  { name: "shape twice", content: one('"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]'), says: /"shape" stands there twice/ },
  { name: "three offsets", content: one('"dtype":"F32","shape":[1],"data_offsets":[0,4,4]'), says: /"x": data_offsets has 3 numbers/ },
  { name: "metadata that is no text", content: safetensors('{"__metadata__":{"a":1}}'), says: /__metadata__ "a": expected a text/ },
  { name: "metadata twice", content: safetensors('{"__metadata__":{},"__metadata__":{}}'), says: /__metadata__ stands there twice/ },
  { name: "F4 with an odd count", content: one('"dtype":"F4","shape":[1],"data_offsets":[0,1]', 1), says: /dtype "F4" is not one of/ },
  { name: "nested deeper than 128", content: safetensors(nested(129), 4), says: /nested deeper than/ },
  {
    name: "half of a surrogate pair",
    content: safetensors('{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4),
    says: /surrogate/,
  },
  {
    name: "control character in a name",
    content: safetensors('{"a\nb":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4),
    says: /control character U\+000A/,
  },
];

/** Ours alone: the reference keeps the last of two equal names, though the format forbids them. */
export const rejectedByUsAlone: Case[] = [
  { name: "two tensors of one name", content: safetensors(`{${good},${good}}`, 4), says: /tensor "x": two tensors have this name/ },
];

export const accepted: { name: string; content: Buffer; names: string[] }[] = [
  { name: "{}", content: safetensors("{}"), names: [] },
  { name: "space, tab, CR and LF around", content: safetensors(`\r\n\t {${good}} \t\r\n`, 4), names: ["x"] },
  {
    name: "unknown field",
    content: one('"dtype":"F32","shape":[1],"data_offsets":[0,4],"later":{"a":[1,-2.5e3,null,true,"\\u00e9"]}'),
    names: ["x"],
  },
  { name: "metadata null", content: safetensors(`{"__metadata__":null,${good}}`, 4), names: ["x"] },
  { name: "scalar", content: safetensors(`{${f32("x", "[]", 0, 4)}}`, 4), names: ["x"] },
  { name: "dimension 0", content: safetensors(`{${f32("x", "[0,3]", 0, 0)}}`), names: ["x"] },
  {
    name: "dimension 0 between others",
    content: safetensors(`{${good},${f32("e", "[0]", 4, 4)},${f32("y", "[1]", 4, 8)}}`, 8),
    names: ["x", "e", "y"],
  },
  {
    name: "offsets not in the order of the names",
    content: safetensors(`{${f32("b", "[1]", 4, 8)},${f32("a", "[1]", 0, 4)}}`, 8),
    names: ["b", "a"],
  },
  {
    name: "__proto__ and an empty name",
    content: safetensors(`{${f32("__proto__", "[1]", 0, 4)},${f32("", "[1]", 4, 8)}}`, 8),
    names: ["__proto__", ""],
  },
  { name: "escapes in a name", content: safetensors(`{${f32("\\u0061\\n\\ud83d\\ude42", "[1]", 0, 4)}}`, 4), names: ["a\n🙂"] },
];
