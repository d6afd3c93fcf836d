/**
 * TensorFlow's functions as bytes: a small writer and reader of protocol buffers for FunctionDef, NodeDef, AttrValue and OpDef. Field numbers are those
 * of tensorflow/core/framework/{function,node_def,attr_value,op_def,tensor}.proto; the encoding is protobuf.dev/programming-guides/encoding.
 */

/** An attribute as tfjs-node gives it to an op. `type` is TensorFlow's TF_AttrType. */
export type Attribute = { name: string; type: number; value: unknown };

/** TF_AttrType (tensorflow/c/c_api.h). */
const ATTRIBUTE = { string: 0, int: 1, float: 2, bool: 3, type: 4, shape: 5 };

/** A value that the function carries in itself; `dtype` is TensorFlow's DataType, `bytes` are little-endian in C order. */
export type Constant = { dtype: number; shape: number[]; bytes: Uint8Array };

/** One step of a function. inputs: references such as "x0" (an argument) or "n3:product:0" (an output of a node, by its name in the op). */
export type Node = { name: string; op: string; inputs: string[]; attributes: Attribute[]; constant?: Constant };

export type FunctionParts = {
  name: string;
  /** Arguments and results in order; a result names what it returns. */
  arguments: { name: string; dtype: number }[];
  nodes: Node[];
  results: { name: string; dtype: number; from: string }[];
  /** XLA compiles the function, or the call fails. */
  xla?: boolean;
};

const VARINT = 0;
const LENGTH = 2;
const FIXED32 = 5;

/** Base-128 number, least significant group first; a negative one as 64 bits of two's complement. */
function varint(value: number): Uint8Array {
  const bytes: number[] = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  for (; rest > 127n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128);
  bytes.push(Number(rest));
  return Uint8Array.from(bytes);
}

const key = (field: number, wire: number): Uint8Array => varint(field * 8 + wire);
const join = (...parts: Uint8Array[]): Uint8Array => Buffer.concat(parts);
const number = (field: number, value: number): Uint8Array => join(key(field, VARINT), varint(value));
const flag = (field: number, value: boolean): Uint8Array => number(field, value ? 1 : 0);

function float(field: number, value: number): Uint8Array {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value);
  return join(key(field, FIXED32), bytes);
}

function bytes(field: number, value: Uint8Array | string): Uint8Array {
  const content = typeof value === "string" ? Buffer.from(value) : value;
  return join(key(field, LENGTH), varint(content.length), content);
}

/** An entry of a map<string, AttrValue>. */
const entry = (field: number, name: string, value: Uint8Array): Uint8Array => bytes(field, join(bytes(1, name), bytes(2, value)));

const shapeProto = (shape: number[]): Uint8Array => join(...shape.map((length) => bytes(2, number(1, length))));

const list = (values: unknown, one: (value: never) => Uint8Array): Uint8Array =>
  Array.isArray(values) ? bytes(1, join(...values.map((value) => one(value as never)))) : one(values as never);

function attributeValue({ name, type, value }: Attribute): Uint8Array {
  switch (type) {
    case ATTRIBUTE.string:
      return list(value, (text: string) => bytes(2, text));
    case ATTRIBUTE.int:
      return list(value, (whole: number) => number(3, whole));
    case ATTRIBUTE.float:
      return list(value, (real: number) => float(4, real));
    case ATTRIBUTE.bool:
      return list(value, (on: boolean) => flag(5, on));
    case ATTRIBUTE.type:
      return list(value, (dtype: number) => number(6, dtype));
    case ATTRIBUTE.shape:
      return bytes(7, shapeProto(value as number[]));
    default:
      throw new Error(`attribute ${name} is of type ${type} of TensorFlow; known here are ${Object.values(ATTRIBUTE).join(", ")}`);
  }
}

const dtypeValue = (dtype: number): Uint8Array => number(6, dtype);
const tensorProto = ({ dtype, shape, bytes: content }: Constant): Uint8Array =>
  join(number(1, dtype), bytes(2, shapeProto(shape)), bytes(4, content));

function nodeDef({ name, op, inputs, attributes, constant }: Node): Uint8Array {
  const own = attributes.map((attribute) => entry(5, attribute.name, attributeValue(attribute)));
  const value = constant ? [entry(5, "dtype", dtypeValue(constant.dtype)), entry(5, "value", bytes(8, tensorProto(constant)))] : [];
  return join(bytes(1, name), bytes(2, op), ...inputs.map((input) => bytes(3, input)), ...own, ...value);
}

/** A serialised FunctionDef, as the binding's addFunction takes it. */
export function functionDef({ name, arguments: args, nodes, results, xla = false }: FunctionParts): Uint8Array {
  const argument = (arg: { name: string; dtype: number }) => join(bytes(1, arg.name), number(3, arg.dtype));
  const signature = join(
    bytes(1, name),
    ...args.map((arg) => bytes(2, argument(arg))),
    ...results.map((result) => bytes(3, argument(result))),
  );
  return join(
    bytes(1, signature),
    ...nodes.map((node) => bytes(3, nodeDef(node))),
    ...results.map((result) => bytes(4, join(bytes(1, result.name), bytes(2, result.from)))),
    ...(xla ? [entry(5, "_XlaMustCompile", flag(5, true))] : []),
  );
}

/** An input or output of an op. The attributes name its dtype where that may differ, and its length where it is a list. */
export type Argument = { name: string; typeAttribute?: string; countAttribute?: string; listAttribute?: string };

/** What a recording must know of an op. Stateful ones keep a state or draw random numbers. */
export type OpDefinition = { inputs: Argument[]; outputs: Argument[]; stateful: boolean };

/** Ops by name from a serialised OpList. */
export function readOpList(from: Uint8Array): Map<string, OpDefinition> {
  const ops = new Map<string, OpDefinition>();
  for (const [, op] of fields(from)) {
    const definition: OpDefinition = { inputs: [], outputs: [], stateful: false };
    let name = "";
    for (const [field, value] of fields(op as Uint8Array)) {
      if (field === 1) name = text(value)!;
      if (field === 2) definition.inputs.push(readArgument(value as Uint8Array));
      if (field === 3) definition.outputs.push(readArgument(value as Uint8Array));
      if (field === 17) definition.stateful = value === 1;
    }
    ops.set(name, definition);
  }
  return ops;
}

const text = (value: Uint8Array | number | undefined): string | undefined =>
  value === undefined ? undefined : Buffer.from(value as Uint8Array).toString();

function readArgument(from: Uint8Array): Argument {
  const found = new Map(fields(from));
  const [name, typeAttribute, countAttribute, listAttribute] = [1, 4, 5, 6].map((field) => text(found.get(field)));
  return { name: name!, typeAttribute, countAttribute, listAttribute };
}

/** The fields of a message: [field number, its bytes or its number]. Numbers of fixed width are left out: no OpDef field that is read has one. */
function* fields(message: Uint8Array): Generator<[number, Uint8Array | number]> {
  let at = 0;
  const next = () => {
    let [value, unit] = [0, 1];
    for (;;) {
      const byte = message[at++]!;
      value += (byte & 127) * unit;
      if (byte < 128) return value;
      unit *= 128;
    }
  };
  while (at < message.length) {
    const tag = next();
    const [field, wire] = [Math.floor(tag / 8), tag % 8];
    if (wire === VARINT) yield [field, next()];
    else if (wire === LENGTH) {
      const length = next();
      yield [field, message.subarray(at, at + length)];
      at += length;
    } else if (wire === FIXED32) at += 4;
    else if (wire === 1) at += 8;
    else throw new Error(`a protocol buffer has wire type ${wire} at byte ${at}, which is not known`);
  }
}

const settingOf = (attributes: Attribute[], name: string): unknown => attributes.find((one) => one.name === name)?.value;

function countOf({ countAttribute, listAttribute }: Argument, attributes: Attribute[]): number {
  if (countAttribute) return Number(settingOf(attributes, countAttribute));
  return listAttribute ? (settingOf(attributes, listAttribute) as unknown[]).length : 1;
}

/** The reference to output `index` of a node. Outputs that are lists are counted through. */
export function outputName(node: string, { outputs }: OpDefinition, attributes: Attribute[], index: number): string {
  let rest = index;
  for (const output of outputs) {
    const count = countOf(output, attributes);
    if (rest < count) return `${node}:${output.name}:${rest}`;
    rest -= count;
  }
  throw new Error(`node ${node} has no output ${index}`);
}

/** The attributes with the dtypes that an op called at once takes from its inputs, and a function must be told. dtypes: of the inputs, in order. */
export function withInputTypes({ inputs }: OpDefinition, attributes: Attribute[], dtypes: number[]): Attribute[] {
  const all = [...attributes];
  let at = 0;
  for (const input of inputs) {
    const { typeAttribute } = input;
    const count = countOf(input, attributes);
    if (typeAttribute && count > 0 && settingOf(all, typeAttribute) === undefined)
      all.push({ name: typeAttribute, type: ATTRIBUTE.type, value: dtypes[at] });
    at += count;
  }
  return all;
}
