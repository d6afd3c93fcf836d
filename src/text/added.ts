/** Tokens that stand outside the vocabulary's own cutting: a text is split at them first, the rest goes through the pipeline. */

/** A range of a text, in UTF-16 units: `text.slice(from, to)`. */
export type Span = [from: number, to: number];

/** Where added tokens are letters like any others: nowhere, everywhere, or in these ranges. */
export type Literal = boolean | readonly Span[];

/** A part of a text: an added token, or what stands between two. `start` is where it begins in the text (UTF-16 units). */
export type Part = { text: string; id?: number; start: number };

export type AddedFlags = { id: number; content: string; lstrip?: boolean; rstrip?: boolean; single_word?: boolean };

type Node = { entry?: AddedFlags; children: Map<number, Node> };

const BLANK = /\p{White_Space}/u;
const WORD = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]/u;

/**
 * A function that splits a text at these tokens: the leftmost one, and of several that start there the longest.
 * `lstrip`/`rstrip` tokens swallow the blanks beside them, `single_word` tokens count only between characters that are no letters.
 */
export function splitter(tokens: readonly AddedFlags[]): (text: string, literal?: Literal) => Part[] {
  const root: Node = { children: new Map() };
  for (const entry of tokens) {
    let node = root;
    for (let i = 0; i < entry.content.length; i++) {
      const code = entry.content.charCodeAt(i);
      let next = node.children.get(code);
      if (!next) {
        next = { children: new Map() };
        node.children.set(code, next);
      }
      node = next;
    }
    node.entry ??= entry;
  }
  const whole = (text: string) => (text === "" ? [] : [{ text, start: 0 }]);
  return (text, literal = false) => (tokens.length === 0 || literal === true ? whole(text) : split(text, root, literal || []));
}

function split(text: string, root: Node, literal: readonly Span[]): Part[] {
  const parts: Part[] = [];
  let start = 0;
  const rest = (end: number) => {
    if (end > start) parts.push({ text: text.slice(start, end), start });
  };
  for (let i = 0; i < text.length; ) {
    const entry = longest(text, i, root);
    const end = i + (entry?.content.length ?? 0);
    const isLiteral = literal.some(([from, to]) => i < to && end > from);
    if (!entry || isLiteral || (entry.single_word && !standsAlone(text, i, end))) {
      i++;
      continue;
    }
    let [left, right] = [i, end];
    if (entry.lstrip) while (left > start && BLANK.test(text[left - 1])) left--;
    if (entry.rstrip) while (right < text.length && BLANK.test(text[right])) right++;
    rest(left);
    parts.push({ text: entry.content, id: entry.id, start: left });
    i = right;
    start = right;
  }
  rest(text.length);
  return parts;
}

function longest(text: string, at: number, root: Node): AddedFlags | undefined {
  let node = root.children.get(text.charCodeAt(at));
  let found: AddedFlags | undefined;
  for (let i = at + 1; node; i++) {
    found = node.entry ?? found;
    node = i < text.length ? node.children.get(text.charCodeAt(i)) : undefined;
  }
  return found;
}

const standsAlone = (text: string, from: number, to: number): boolean =>
  !(from > 0 && WORD.test(text[from - 1])) && !(to < text.length && WORD.test(text[to]));
