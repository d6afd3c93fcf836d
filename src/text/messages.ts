/** Conversations as transformers takes them, and what becomes of them. */
import type { Span } from "./added";

/** A part of a message. A picture may carry anything (its path, its pixels): templates see only that it is one. */
export type Part = { type: string; text?: string; [key: string]: unknown };
export type Message = { role: string; content: string | readonly Part[]; [key: string]: unknown };

export type RenderOptions = {
  /** Whether the text ends where the model is to answer. */
  addGenerationPrompt?: boolean;
  /** Functions that the model may call, as JSON schemas. */
  tools?: readonly unknown[];
  documents?: readonly unknown[];
  /** What must not work where somebody typed it: special tokens, and what stands for a picture. It is found again in `typed`. */
  guard?: Iterable<string>;
  /** Further variables of the template (`enable_thinking`). */
  variables?: Record<string, unknown>;
};

/** A conversation as text. */
export type Rendered = {
  text: string;
  /** The template's name. */
  template: string;
  /** What the model says itself, for the labels of training (`{% generation %}`); empty where the template does not mark it. */
  generated: Span[];
  /** Guarded words that stand in messages: give them to `encode(text, { literal: typed })`, and expand no picture there. */
  typed: Span[];
};

/** Messages as plain data: what cannot be sent to another thread (pixels, functions) is left out. @throws TypeError for what is no message. */
export function plainMessages(messages: readonly Message[]): Message[] {
  if (!Array.isArray(messages)) throw new TypeError("renderChat: expected a list of messages { role, content }");
  return messages.map((message, i) => {
    const { role, content } = (message ?? {}) as Partial<Message>;
    if (typeof role !== "string") throw new TypeError(`renderChat: messages[${i}].role is ${show(role)}, expected a text such as "user"`);
    if (typeof content !== "string" && !Array.isArray(content))
      throw new TypeError(`renderChat: messages[${i}].content is ${show(content)}, expected a text or a list of parts { type, … }`);
    if (Array.isArray(content))
      content.forEach((part: Partial<Part> | null, k) => {
        const isPart = typeof part?.type === "string" && (part.type !== "text" || typeof part.text === "string");
        if (!isPart)
          throw new TypeError(
            `renderChat: messages[${i}].content[${k}] is ${show(part)}, expected { type: "text", text } or { type: "image" }`,
          );
      });
    return plain(message) as Message;
  });
}

const show = (value: unknown): string => JSON.stringify(value)?.slice(0, 60) ?? String(value);

/** Texts, numbers, lists and plain objects; everything else goes. */
function plain(value: unknown): unknown {
  if (value === null || ["string", "number", "boolean"].includes(typeof value)) return value;
  if (Array.isArray(value)) return value.map(plain).map((one) => one ?? null);
  const isPlain = typeof value === "object" && [Object.prototype, null].includes(Object.getPrototypeOf(value));
  if (!isPlain) return undefined;
  return Object.fromEntries(Object.entries(value as object).flatMap(([key, one]) => (plain(one) === undefined ? [] : [[key, plain(one)]])));
}

type Restored = Omit<Rendered, "template">;

/** Before each guarded word and after it, while the template is filled. Private-use characters, which no template tests for. */
const [OPEN, CLOSE] = ["\u{10fff0}", "\u{10fff1}"];

/**
 * Messages whose guarded words carry marks, and a function that takes the marks out of the rendered text again and says where they were.
 * Messages without such words are not touched.
 */
export function withTyped(
  messages: Message[],
  guard: Iterable<string> = [],
): { messages: Message[]; restore: (text: string, spans: Span[]) => Restored } {
  const words = [...new Set(guard)].filter((word) => word !== "").sort((a, b) => b.length - a.length);
  const pattern =
    words.length > 0 ? new RegExp(words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|"), "gu") : undefined;
  const mark = (value: unknown): unknown => {
    if (typeof value === "string") return markWords(value, words, pattern as RegExp);
    if (Array.isArray(value)) return value.map(mark);
    if (typeof value !== "object" || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, key === "type" ? one : mark(one)]));
  };
  const marked = pattern ? messages.map((message) => ({ ...(mark(message) as Message), role: message.role })) : messages;
  return { messages: marked, restore: (text, spans) => (pattern ? takeOut(text, spans) : { text, generated: spans, typed: [] }) };
}

/** A word that only begins in a text may end in the next one: what could be its beginning is guarded too. */
function markWords(text: string, words: string[], pattern: RegExp): string {
  const plain = text.replaceAll(OPEN, "\uFFFD").replaceAll(CLOSE, "\uFFFD");
  const begun = (count: number) => words.some((word) => word.length > count && word.startsWith(plain.slice(plain.length - count)));
  let tail = Math.min(plain.length, words[0].length - 1);
  while (tail > 0 && !begun(tail)) tail--;
  const body = plain.slice(0, plain.length - tail).replace(pattern, `${OPEN}$&${CLOSE}`);
  return tail === 0 ? body : `${body}${OPEN}${plain.slice(plain.length - tail)}${CLOSE}`;
}

function takeOut(marked: string, spans: Span[]): Restored {
  const typed: Span[] = [];
  const gone: number[] = []; // where in the marked text a mark stood
  let text = "";
  let from = -1;
  for (const match of marked.matchAll(new RegExp(`${OPEN}|${CLOSE}|[^${OPEN}${CLOSE}]+`, "gu"))) {
    if (match[0] === OPEN) from = text.length;
    else if (match[0] === CLOSE) {
      if (from !== -1) typed.push([from, text.length]);
      from = -1;
    } else {
      text += match[0];
      continue;
    }
    gone.push(match.index);
  }
  const moved = (at: number): number => at - OPEN.length * gone.filter((mark) => mark < at).length;
  return { text, generated: spans.map(([a, b]): Span => [moved(a), moved(b)]), typed };
}

/** Where `token` stands in a rendered text, outside what was typed: as many places as the conversation has pictures. */
export function places({ text, typed }: Pick<Rendered, "text" | "typed">, token: string): Span[] {
  const found: Span[] = [];
  for (let at = text.indexOf(token); at !== -1; at = text.indexOf(token, at + token.length)) {
    const end = at + token.length;
    if (!typed.some(([from, to]) => at < to && end > from)) found.push([at, end]);
  }
  return found;
}
