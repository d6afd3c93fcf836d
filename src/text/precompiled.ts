/**
 * SentencePiece's compiled normalisation rules (`precompiled_charsmap`): a trie from byte sequences to their replacements.
 * Layout: uint32 length of the trie in bytes, the trie as a double array of uint32 (darts-clone), the replacements, each ended by a zero byte.
 */

const encoder = new TextEncoder();
const segmenter = new Intl.Segmenter("en", { granularity: "grapheme" });

/** Bytes from which on the tokenizers library looks only at single characters of a grapheme. */
const LONG_GRAPHEME = 6;

/** A rule that matched: how many bytes of the text, and what they become. */
export type Match = { length: number; text: string };

export type Rules = {
  /** The shortest and the longest rule that matches the start of `bytes` (from `start` on). */
  find(bytes: Uint8Array, start?: number): { shortest: Match; longest: Match } | undefined;
};

/** Reads the rules. @throws Error when the bytes are no such table. */
export function readRules(blob: Uint8Array): Rules {
  const view = new DataView(blob.buffer, blob.byteOffset, blob.byteLength);
  const size = blob.byteLength >= 4 ? view.getUint32(0, true) : 0;
  if (size === 0 || size % 4 !== 0 || size + 4 > blob.byteLength)
    throw new Error(`precompiled_charsmap: ${blob.byteLength} bytes that claim a trie of ${size} bytes`);
  const units = Uint32Array.from({ length: size / 4 }, (_, i) => view.getUint32(4 + 4 * i, true));
  const texts = blob.subarray(4 + size);
  const known = new Map<number, string>();
  const textAt = (at: number): string => {
    let text = known.get(at);
    if (text === undefined) {
      const end = texts.indexOf(0, at);
      text = Buffer.from(texts.subarray(at, end === -1 ? texts.length : end)).toString("utf8");
      known.set(at, text);
    }
    return text;
  };
  return {
    find(bytes, start = 0) {
      let [first, last, firstLength, lastLength] = [-1, -1, 0, 0];
      let at = offset(units[0]);
      for (let i = start; i < bytes.length && bytes[i] !== 0; i++) {
        at ^= bytes[i];
        const unit = units[at];
        if (unit === undefined || (unit & 0x800000ff) !== bytes[i]) break; // the label, with the bit that marks a value
        at ^= offset(unit);
        if ((unit & 0x100) === 0) continue; // no rule ends here
        last = units[at] & 0x7fffffff;
        lastLength = i + 1 - start;
        if (first === -1) [first, firstLength] = [last, lastLength];
      }
      if (first === -1) return undefined;
      return { shortest: { length: firstLength, text: textAt(first) }, longest: { length: lastLength, text: textAt(last) } };
    },
  };
}

/** Distance from a unit to its children. */
const offset = (unit: number): number => (unit >>> 10) << ((unit & 0x200) >>> 6);

/**
 * The `Precompiled` step of the tokenizers library: grapheme by grapheme. A rule that matches only the start of a short grapheme
 * replaces all of it (as that library does); a grapheme without a rule is looked up character by character.
 */
export function precompiled(rules: Rules): (text: string) => string {
  const character = (piece: string): string => rules.find(encoder.encode(piece))?.shortest.text ?? piece;
  const grapheme = (piece: string): string => {
    const bytes = encoder.encode(piece);
    const whole = bytes.length < LONG_GRAPHEME ? rules.find(bytes) : undefined;
    return whole ? whole.shortest.text : Array.from(piece, character).join("");
  };
  const ascii = Array.from({ length: 128 }, (_, code) => character(String.fromCharCode(code)));
  const known = new Map<string, string>();
  const kept = (one: string): string => {
    const found = known.get(one) ?? character(one);
    known.set(one, found);
    return found;
  };
  const isPlain = ascii.every((to, code) => code < 32 || code === 127 || to === String.fromCharCode(code));
  return (text) => {
    let out = "";
    for (const [run] of text.matchAll(RUNS)) {
      const isAscii = run.charCodeAt(run.length - 1) < 128 && run !== "\r\n";
      if (isAscii && isPlain && run.charCodeAt(0) >= 32 && run.charCodeAt(0) < 127) out += run;
      else if (isAscii) for (const one of run) out += ascii[one.charCodeAt(0)];
      else if (SINGLE.test(run)) for (const one of run) out += kept(one);
      else for (const { segment } of segmenter.segment(run)) out += grapheme(segment);
    }
    return out;
  };
}

/** Letters with case, Han characters and punctuation: each is a grapheme by itself, whatever stands beside it in such a run. */
const SINGLE = /^[\0-\x7f]?(?:(?!\p{M})[\p{Lu}\p{Ll}\p{P}\p{Script=Han}])+$/u;

/** ASCII characters that are graphemes by themselves, printed or one control, or a run that has to be cut with Unicode's rules. */
const RUNS = /\r\n|[\x20-\x7e]+(?![^\0-\x7f])|[\0-\x7f](?![^\0-\x7f])|[\0-\x7f]?[^\0-\x7f]+/gu;

/**
 * SentencePiece's own normalisation: the longest rule at each place, blanks at both ends dropped and runs of them made one
 * (`removeExtraWhitespaces`), a blank put in front (`addDummyPrefix`), and each blank written as `▁`.
 */
export function normalizeSentence(
  text: string,
  rules: Rules | undefined,
  { addDummyPrefix = true, removeExtraWhitespaces = true }: { addDummyPrefix?: boolean; removeExtraWhitespaces?: boolean } = {},
): string {
  const mapped = rules ? longestRules(text, rules) : text;
  const plain = removeExtraWhitespaces ? mapped.replace(/ +/g, " ").replace(/^ | $/g, "") : mapped;
  return plain === "" ? "" : ((addDummyPrefix ? " " : "") + plain).replaceAll(" ", "▁");
}

function longestRules(text: string, rules: Rules): string {
  const bytes = encoder.encode(text);
  const out: Uint8Array[] = [];
  let copied = 0;
  for (let i = 0; i < bytes.length; ) {
    const match = rules.find(bytes, i)?.longest;
    if (!match) {
      i++;
      while (i < bytes.length && (bytes[i] & 0xc0) === 0x80) i++; // the rest of this character
      continue;
    }
    out.push(bytes.subarray(copied, i), encoder.encode(match.text));
    i += match.length;
    copied = i;
  }
  out.push(bytes.subarray(copied));
  return Buffer.concat(out).toString("utf8");
}
