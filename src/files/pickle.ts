/**
 * Reads Python pickles (protocols 2 to 5; format: CPython's pickletools) as data. No code of the pickle can run: a global is only a name,
 * and calling one only does what the host's own table says for that name. Names outside the table are collected and refused.
 */
import { PickleBytes, type PickleSource, wholeNumber } from "./pickle-bytes";

/** What a global of the pickle stands for. `call` makes data out of the arguments. */
export class Callable {
  constructor(
    readonly name: string,
    readonly call: (args: unknown[]) => unknown,
  ) {}
}

/** Stands for whatever an unknown global would have made, so that reading can go on and name all of them. Never handed out. */
class Refused {}
const REFUSED = new Refused();

export type PickleHost = {
  /** What a global stands for: a Callable or plain data; undefined refuses it. */
  global(module: string, name: string): unknown;
  /** The object behind a persistent id (torch: a storage). */
  persistent(id: unknown): unknown;
};

/** Bounds against files that only want memory. A checkpoint of 100,000 tensors stays below all of them. */
const MAX_STEPS = 20_000_000;
const MAX_CONTAINERS = 2_000_000;
const MAX_DEPTH = 1000;

/**
 * Reads the pickle at `start` of `source`.
 * Python's dict (any kind) becomes Map, list and tuple Array, set Set, bytes Uint8Array, int number or (beyond 2^53) bigint, None null.
 *
 * @returns the value and the position after it.
 * @throws Error naming the file: every refused global, or the byte where the pickle is damaged or not plain data.
 */
export function readPickle(source: PickleSource, start: number, host: PickleHost): { value: unknown; end: number } {
  const machine = new Machine(source, start, host);
  try {
    const value = machine.run();
    machine.refuse();
    return { value, end: machine.position };
  } catch (error) {
    machine.refuse(); // a refused global is the better explanation of whatever failed after it
    throw error;
  }
}

class Machine extends PickleBytes {
  private stack: unknown[] = [];
  private readonly marks: unknown[][] = [];
  private readonly memo = new Map<number, unknown>();
  private readonly refused = new Set<string>();
  private steps = 0;
  private containers = 0;

  constructor(
    source: PickleSource,
    start: number,
    private readonly host: PickleHost,
  ) {
    super(source, start);
  }

  refuse(): void {
    if (this.refused.size === 0) return;
    const names = [...this.refused].map((name) => JSON.stringify(name).slice(1, -1).slice(0, 200));
    throw new Error(
      `${this.source.path} wants ${names.map((name) => `global ${name}`).join(", ")}, which ${names.length > 1 ? "are" : "is"} not allowed: only tensors and plain data ` +
        "are read from a pickle, because anything else can run code. If you trust the file, load it with PyTorch and save its tensors as safetensors.",
    );
  }

  run(): unknown {
    for (;;) {
      if (++this.steps > MAX_STEPS) this.fail(`more than ${MAX_STEPS} instructions`);
      const code = this.byte();
      if (code === 0x2e) {
        if (this.marks.length || this.stack.length !== 1) this.fail("it ends with an unfinished value");
        return this.stack[0];
      }
      const operation = OPERATIONS[code];
      if (!operation) this.fail(`instruction 0x${code.toString(16).padStart(2, "0")} is not one of plain data`);
      operation(this);
    }
  }

  push(value: unknown): void {
    this.stack.push(value);
  }

  /** Pushes a new container, counted. */
  make<T>(value: T): void {
    if (++this.containers > MAX_CONTAINERS) this.fail(`more than ${MAX_CONTAINERS} objects`);
    this.stack.push(value);
  }

  pop(): unknown {
    if (this.stack.length === 0) this.fail("an instruction wants a value where there is none");
    return this.stack.pop();
  }

  top(): unknown {
    if (this.stack.length === 0) this.fail("an instruction wants a value where there is none");
    return this.stack[this.stack.length - 1];
  }

  mark(): void {
    if (this.marks.length >= MAX_DEPTH) this.fail(`nested deeper than ${MAX_DEPTH} levels`);
    this.marks.push(this.stack);
    this.stack = [];
  }

  popMark(): unknown[] {
    const items = this.stack;
    this.stack = this.marks.pop() ?? this.fail("an instruction wants a mark where there is none");
    return items;
  }

  remember(index: number): void {
    if (index > MAX_STEPS) this.fail(`memory slot ${index} cannot exist`);
    this.memo.set(index, this.top());
  }

  rememberNext(): void {
    this.remember(this.memo.size);
  }

  recall(index: number): void {
    if (!this.memo.has(index)) this.fail(`memory slot ${index} is empty`);
    this.push(this.memo.get(index));
  }

  global(module: string, name: string): void {
    const found = this.host.global(module, name);
    if (found === undefined) this.refused.add(`${module}.${name}`);
    this.push(found ?? REFUSED);
  }

  persistent(): void {
    const id = this.pop();
    this.make(holdsRefused(id) ? REFUSED : this.host.persistent(id));
  }

  call(args: unknown, target: unknown): void {
    this.make(target === REFUSED || holdsRefused(args) ? REFUSED : this.result(args, target));
  }

  private result(args: unknown, target: unknown): unknown {
    if (!(target instanceof Callable)) this.fail("it calls something that is no function");
    if (!Array.isArray(args)) this.fail(`it calls ${target.name} without a list of arguments`);
    return target.call(args);
  }

  /** `__setstate__`: torch puts notes (`_metadata`) on its dictionaries, which are no part of the data. Nothing else has state. */
  build(): void {
    this.pop();
    const target = this.top();
    if (target !== REFUSED && !(target instanceof Map)) this.fail("it sets the inner state of something that is no dictionary");
  }

  append(items: unknown[]): void {
    const target = this.top();
    if (Array.isArray(target)) for (const item of items) target.push(item);
    else if (target !== REFUSED) this.fail("it appends to something that is no list");
  }

  add(items: unknown[]): void {
    const target = this.top();
    if (target instanceof Set) for (const item of items) target.add(item);
    else if (target !== REFUSED) this.fail("it adds to something that is no set");
  }

  setItems(items: unknown[]): void {
    const target = this.top();
    if (items.length % 2) this.fail("a key has no value");
    if (target === REFUSED) return;
    if (!(target instanceof Map)) this.fail("it sets a key of something that is no dictionary");
    for (let i = 0; i < items.length; i += 2) target.set(items[i], items[i + 1]);
  }
}

const holdsRefused = (value: unknown): boolean => value === REFUSED || (Array.isArray(value) && value.includes(REFUSED));

function pairs(m: Machine, items: unknown[]): void {
  m.make(new Map());
  m.setItems(items);
}

function two(m: Machine): [unknown, unknown] {
  const second = m.pop();
  return [m.pop(), second];
}

function three(m: Machine): unknown[] {
  const third = m.pop();
  return [...two(m), third];
}

/** What each instruction does, by its code; the names are those of CPython's pickletools. */
const OPERATIONS: Readonly<Record<number, (m: Machine) => void>> = {
  0x80: (m) => void (m.byte() > 5 && m.fail("a protocol newer than 5")), // PROTO
  0x95: (m) => void m.bytes(8), // FRAME
  0x28: (m) => m.mark(), // MARK
  0x30: (m) => void m.pop(), // POP
  0x31: (m) => void m.popMark(), // POP_MARK
  0x32: (m) => m.push(m.top()), // DUP
  0x71: (m) => m.remember(m.byte()), // BINPUT
  0x72: (m) => m.remember(m.view(4).getUint32(0, true)), // LONG_BINPUT
  0x94: (m) => m.rememberNext(), // MEMOIZE
  0x68: (m) => m.recall(m.byte()), // BINGET
  0x6a: (m) => m.recall(m.view(4).getUint32(0, true)), // LONG_BINGET
  0x4e: (m) => m.push(null), // NONE
  0x88: (m) => m.push(true), // NEWTRUE
  0x89: (m) => m.push(false), // NEWFALSE
  0x4b: (m) => m.push(m.byte()), // BININT1
  0x4d: (m) => m.push(m.view(2).getUint16(0, true)), // BININT2
  0x4a: (m) => m.push(m.view(4).getInt32(0, true)), // BININT
  0x8a: (m) => m.push(wholeNumber(m.bytes(m.length(1)))), // LONG1
  0x8b: (m) => m.push(wholeNumber(m.bytes(m.length(4)))), // LONG4
  0x47: (m) => m.push(m.view(8).getFloat64(0, false)), // BINFLOAT
  0x8c: (m) => m.push(m.text(m.length(1))), // SHORT_BINUNICODE
  0x58: (m) => m.push(m.text(m.length(4))), // BINUNICODE
  0x8d: (m) => m.push(m.text(m.length(8))), // BINUNICODE8
  0x55: (m) => m.push(m.text(m.length(1))), // SHORT_BINSTRING, of Python 2
  0x54: (m) => m.push(m.text(m.length(4))), // BINSTRING
  0x43: (m) => m.make(m.bytes(m.length(1)).slice()), // SHORT_BINBYTES
  0x42: (m) => m.make(m.bytes(m.length(4)).slice()), // BINBYTES
  0x8e: (m) => m.make(m.bytes(m.length(8)).slice()), // BINBYTES8
  0x96: (m) => m.make(m.bytes(m.length(8)).slice()), // BYTEARRAY8
  0x29: (m) => m.make([]), // EMPTY_TUPLE
  0x85: (m) => m.make([m.pop()]), // TUPLE1
  0x86: (m) => m.make(two(m)), // TUPLE2
  0x87: (m) => m.make(three(m)), // TUPLE3
  0x74: (m) => m.make(m.popMark()), // TUPLE
  0x5d: (m) => m.make([]), // EMPTY_LIST
  0x6c: (m) => m.make(m.popMark()), // LIST
  0x61: (m) => m.append([m.pop()]), // APPEND
  0x65: (m) => m.append(m.popMark()), // APPENDS
  0x7d: (m) => m.make(new Map()), // EMPTY_DICT
  0x64: (m) => pairs(m, m.popMark()), // DICT
  0x73: (m) => m.setItems(two(m)), // SETITEM
  0x75: (m) => m.setItems(m.popMark()), // SETITEMS
  0x8f: (m) => m.make(new Set()), // EMPTY_SET
  0x90: (m) => m.add(m.popMark()), // ADDITEMS
  0x91: (m) => m.make(new Set(m.popMark())), // FROZENSET
  0x63: (m) => m.global(m.line(), m.line()), // GLOBAL
  0x93: (m) => m.global(...names(m)), // STACK_GLOBAL
  0x52: (m) => m.call(m.pop(), m.pop()), // REDUCE
  0x81: (m) => m.call(m.pop(), m.pop()), // NEWOBJ
  0x62: (m) => m.build(), // BUILD
  0x51: (m) => m.persistent(), // BINPERSID
};

function names(m: Machine): [string, string] {
  const [module, name] = two(m);
  if (typeof module !== "string" || typeof name !== "string") m.fail("a global's name is no text");
  return [module, name];
}
