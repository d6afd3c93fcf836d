/** SentencePiece model files (`tokenizer.model`, `spiece.model`): a protobuf message, read without a schema compiler. */
import { readFileSync } from "node:fs";

/** What a piece is for; only normal and user-defined ones stand in texts. */
export const PIECE = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

export type SentencePieceModel = {
  type: "unigram" | "bpe";
  pieces: { piece: string; score: number; kind: number }[];
  unkId: number;
  bosId: number;
  eosId: number;
  padId: number;
  byteFallback: boolean;
  /** The compiled normalisation rules; empty for none. */
  charsmap: Uint8Array;
  addDummyPrefix: boolean;
  removeExtraWhitespaces: boolean;
};

type Field = { number: number; value: number | Uint8Array };

/** Fields of a protobuf message in order (wire types varint, 64 bit, length-delimited, 32 bit). */
function fields(bytes: Uint8Array): Field[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const out: Field[] = [];
  let at = 0;
  const varint = (): number => {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      if (at >= bytes.length) throw new Error("ends inside a number");
      const byte = bytes[at++];
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return Number(BigInt.asIntN(64, value));
    }
    throw new Error("holds a number of more than 64 bits");
  };
  while (at < bytes.length) {
    const key = varint();
    const number = Math.floor(key / 8);
    if (key % 8 === 0) out.push({ number, value: varint() });
    else if (key % 8 === 1 || key % 8 === 2 || key % 8 === 5) {
      const length = key % 8 === 1 ? 8 : key % 8 === 5 ? 4 : varint();
      if (length < 0 || at + length > bytes.length) throw new Error(`ends inside field ${number}`);
      out.push({ number, value: key % 8 === 5 ? view.getFloat32(at, true) : bytes.subarray(at, at + length) });
      at += length;
    } else throw new Error(`holds a field of wire type ${key % 8}`);
  }
  return out;
}

const numberOf = (list: Field[], number: number, missing: number): number => {
  const value = list.filter((field) => field.number === number).at(-1)?.value;
  return typeof value === "number" ? value : missing;
};
const bytesOf = (list: Field[], number: number): Uint8Array => {
  const value = list.filter((field) => field.number === number).at(-1)?.value;
  return value instanceof Uint8Array ? value : new Uint8Array(0);
};

/** Reads a model file. @throws Error naming the file when it is no SentencePiece model, or one of another kind than Unigram and BPE. */
export function readSentencePiece(path: string): SentencePieceModel {
  try {
    return parse(readFileSync(path));
  } catch (error) {
    throw new Error(`${path} is not a usable SentencePiece model: ${(error as Error).message}`, { cause: error });
  }
}

function parse(bytes: Uint8Array): SentencePieceModel {
  const message = fields(bytes);
  const pieces = message.flatMap(({ number, value }) => {
    if (number !== 1 || !(value instanceof Uint8Array)) return [];
    const own = fields(value);
    const piece = Buffer.from(bytesOf(own, 1)).toString("utf8");
    return [{ piece, score: numberOf(own, 2, 0), kind: numberOf(own, 3, PIECE.normal) }];
  });
  if (pieces.length === 0) throw new Error("it holds no pieces");
  const trainer = fields(bytesOf(message, 2));
  const normalizer = fields(bytesOf(message, 3));
  const type = numberOf(trainer, 3, 1);
  if (type !== 1 && type !== 2) throw new Error(`model type ${type}, expected 1 (Unigram) or 2 (BPE)`);
  return {
    type: type === 1 ? "unigram" : "bpe",
    pieces,
    unkId: numberOf(trainer, 40, 0),
    bosId: numberOf(trainer, 41, 1),
    eosId: numberOf(trainer, 42, 2),
    padId: numberOf(trainer, 43, -1),
    byteFallback: numberOf(trainer, 35, 0) === 1,
    charsmap: bytesOf(normalizer, 2),
    addDummyPrefix: numberOf(normalizer, 3, 1) === 1,
    removeExtraWhitespaces: numberOf(normalizer, 4, 1) === 1,
  };
}

/**
 * The merges that lead to the pieces of a BPE model: every way to make a piece of two others, the best piece first.
 * SentencePiece joins the neighbours whose joint piece has the highest score, which is the same order.
 */
export function mergesOf({ pieces }: SentencePieceModel): [string, string][] {
  const ids = new Map(pieces.map(({ piece }, id) => [piece, id]));
  const made = pieces
    .map(({ piece, score, kind }, id) => ({ piece, score, kind, id }))
    .filter(({ kind }) => kind === PIECE.normal || kind === PIECE.userDefined);
  made.sort((a, b) => b.score - a.score || a.id - b.id);
  return made.flatMap(({ piece }) => {
    const pairs: { left: string; right: string; order: number }[] = [];
    for (let cut = 1; cut < piece.length; cut++) {
      const [left, right] = [piece.slice(0, cut), piece.slice(cut)];
      const [a, b] = [ids.get(left), ids.get(right)];
      if (a !== undefined && b !== undefined) pairs.push({ left, right, order: a * pieces.length + b });
    }
    return pairs.sort((a, b) => a.order - b.order).map(({ left, right }): [string, string] => [left, right]);
  });
}
