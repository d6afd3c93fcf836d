/** Tokens as text while they come: only what will not change any more is let out. */
import type { Tokenizer } from "../text/tokenizer";

/** What stands for bytes that are no character, or not yet. */
const BROKEN = "\uFFFD";
/** A character has at most 4 bytes; what is broken after so many tokens stays broken. */
const PATIENCE = 16;

export type TextStream = {
  /** The text that is certain with one more token. mayStop: whether stop words count; stopped: whether one came. */
  push(id: number, mayStop: boolean): { text: string; stopped: boolean };
  /** What was held back. */
  end(): string;
};

/** A text's ids without those that no token has: an embedding table may have more rows than its tokenizer tokens. */
export const withToken = ({ vocabSize }: Pick<Tokenizer, "vocabSize">, ids: readonly number[]): number[] =>
  ids.filter((id) => id < vocabSize);

/** Text of a tokenizer's tokens, whole characters only, until a stop word comes. A text that might become a stop word is held back. */
export function textStream(tokenizer: Tokenizer, stopWords: readonly string[], skipSpecialTokens: boolean): TextStream {
  const characters = characterStream(tokenizer, skipSpecialTokens);
  let held = "";
  const cut = (mayStop: boolean): { text: string; stopped: boolean } => {
    const found = mayStop ? firstOf(held, stopWords) : -1;
    const safe = found >= 0 ? found : held.length - (mayStop ? beginning(held, stopWords) : 0);
    const text = held.slice(0, safe);
    held = found >= 0 ? "" : held.slice(safe);
    return { text, stopped: found >= 0 };
  };
  return {
    push(id, mayStop) {
      held += characters.push(id);
      return cut(mayStop);
    },
    end() {
      held += characters.end();
      const { text } = cut(true);
      const rest = text + held;
      held = "";
      return rest;
    },
  };
}

/** Where the first of the words stands, or -1. */
function firstOf(text: string, words: readonly string[]): number {
  let first = -1;
  for (const word of words) {
    const at = text.indexOf(word);
    if (at >= 0 && (first < 0 || at < first)) first = at;
  }
  return first;
}

/** How many characters at the end of a text may be the beginning of a word. */
function beginning(text: string, words: readonly string[]): number {
  let most = 0;
  for (const word of words)
    for (let n = Math.min(word.length - 1, text.length); n > most; n--)
      if (text.endsWith(word.slice(0, n))) {
        most = n;
        break;
      }
  return most;
}

/**
 * Characters of tokens. Tokens are decoded together with those before, since a decoder looks at a token's neighbours: blanks at the beginning,
 * characters of several tokens.
 */
function characterStream(tokenizer: Tokenizer, skipSpecialTokens: boolean): { push(id: number): string; end(): string } {
  const decode = (ids: number[]) => tokenizer.decode(ids, { skipSpecialTokens });
  const isSkipped = (id: number) => skipSpecialTokens && decode([id]) === "" && tokenizer.decode([id], { skipSpecialTokens: false }) !== "";
  let [before, waiting, known]: [number[], number[], string] = [[], [], ""]; // known: the text of `before`
  const advance = (text: string): string => {
    const piece = text.slice(known.length);
    [before, waiting] = [waiting, []];
    known = decode(before);
    return piece;
  };
  return {
    push(id) {
      if (id >= tokenizer.vocabSize || isSkipped(id)) return "";
      waiting.push(id);
      const text = decode([...before, ...waiting]);
      if (text.length <= known.length || (text.endsWith(BROKEN) && waiting.length < PATIENCE)) return "";
      return advance(text);
    },
    end: () => (waiting.length ? advance(decode([...before, ...waiting])) : ""),
  };
}
