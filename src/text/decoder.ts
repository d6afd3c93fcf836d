/** Pieces back to text: the `decoder` of `tokenizer.json`, step by step as the tokenizers library does it. */
import { BYTE_CHARACTERS } from "./clip";

type Json = Record<string, unknown>;
type Step = (pieces: string[]) => string[];

const BYTE_OF = new Map(BYTE_CHARACTERS.map((character, byte) => [character, byte]));

/** A function from pieces to their text. @throws Error where a step's type is not known. */
export function readDecoder(decoder: unknown): (pieces: string[]) => string {
  if (decoder === null || decoder === undefined) return (pieces) => pieces.join(" ");
  const step = readStep(decoder as Json);
  return (pieces) => step(pieces).join("");
}

function readStep(config: Json): Step {
  const content = typeof config.content === "string" ? config.content : "";
  switch (config.type) {
    case "Sequence": {
      const steps = (config.decoders as Json[]).map(readStep);
      return (pieces) => steps.reduce((rest, step) => step(rest), pieces);
    }
    case "ByteLevel":
      return (pieces) => [byteText(pieces)];
    case "WordPiece":
      return wordPieces(String(config.prefix ?? "##"), config.cleanup !== false);
    case "Metaspace":
      return metaspace(String(config.replacement ?? "▁"), config.prepend_scheme !== "never");
    case "BPEDecoder": {
      const suffix = String(config.suffix ?? "</w>");
      return (pieces) => pieces.map((piece, i) => piece.replaceAll(suffix, i === pieces.length - 1 ? "" : " "));
    }
    case "Replace": {
      const pattern = config.pattern as { String?: string; Regex?: string };
      const found = pattern.String ?? new RegExp(pattern.Regex as string, "gu");
      return (pieces) => pieces.map((piece) => piece.replaceAll(found, () => content));
    }
    case "ByteFallback":
      return byteFallback;
    case "Fuse":
      return (pieces) => [pieces.join("")];
    case "Strip":
      return (pieces) => pieces.map((piece) => stripped(piece, content, Number(config.start ?? 0), Number(config.stop ?? 0)));
    default:
      throw new Error(`decoder: unknown type ${JSON.stringify(config.type)}`);
  }
}

/** GPT-2's characters back to bytes, all pieces together: a character may be spread over several. */
function byteText(pieces: string[]): string {
  const parts = pieces.map((piece) => {
    const bytes = Array.from(piece, (character) => BYTE_OF.get(character));
    return bytes.includes(undefined) ? Buffer.from(piece, "utf8") : Buffer.from(bytes as number[]);
  });
  return Buffer.concat(parts).toString("utf8");
}

/** The English contractions and marks that a WordPiece text would otherwise set apart. */
export const cleanUp = (text: string): string =>
  [" .", " ?", " !", " ,"]
    .reduce((rest, mark) => rest.replaceAll(mark, mark.trim()), text)
    .replaceAll(" ' ", "'")
    .replace(/ (?=n't|'m|'s|'ve|'re)/g, "");

const wordPieces =
  (prefix: string, isCleaned: boolean): Step =>
  (pieces) =>
    pieces.map((piece, i) => {
      const spaced = i === 0 ? piece : piece.startsWith(prefix) ? piece.slice(prefix.length) : ` ${piece}`;
      return isCleaned ? cleanUp(spaced) : spaced;
    });

/** The first blank was added in front of the text. */
const metaspace =
  (replacement: string, isPrepended: boolean): Step =>
  (pieces) =>
    pieces.map((piece, i) => {
      const text = piece.replaceAll(replacement, " ");
      return i === 0 && isPrepended && text.startsWith(" ") ? text.slice(1) : text;
    });

/** Runs of `<0xE4>` are bytes of UTF-8; where a run is no valid text, each of its bytes becomes U+FFFD. */
function byteFallback(pieces: string[]): string[] {
  const out: string[] = [];
  let run: number[] = [];
  const flush = () => {
    if (run.length === 0) return;
    const text = Buffer.from(run).toString("utf8");
    const isValid = Buffer.from(text, "utf8").equals(Buffer.from(run));
    if (isValid) out.push(text);
    else for (const _ of run) out.push("\uFFFD");
    run = [];
  };
  for (const piece of pieces) {
    const byte = /^<0x([0-9A-Fa-f]{2})>$/.exec(piece);
    if (byte) run.push(Number.parseInt(byte[1], 16));
    else {
      flush();
      out.push(piece);
    }
  }
  flush();
  return out;
}

function stripped(piece: string, content: string, start: number, stop: number): string {
  let [from, to] = [0, piece.length];
  while (from < start && piece[from] === content) from++;
  while (piece.length - to < stop && to > from && piece[to - 1] === content) to--;
  return piece.slice(from, to);
}
