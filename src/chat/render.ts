/** From messages to a prompt's text, in which nobody but the template speaks for the template. */
import type { VisionLanguageModel } from "../models/loaded";
import type { Message, Role } from "./messages";

/** A conversation as a chat template gets it. */
export type RenderMessage = { role: Role; content: ({ type: "text"; text: string } | { type: "image" })[] };

/** Writes a conversation as the model was taught to read it, with the model's image mark for each picture, up to where its answer begins. */
export type Render = (messages: RenderMessage[]) => Promise<string> | string;

/** A chat template at work. */
export type Renderer = {
  render: Render;
  /** What ends an answer under this template besides the checkpoint's end tokens, such as `<|im_end|>`. */
  stopWords?: readonly string[];
};

/** No character that is seen; between the letters of a special token it makes the token a text like any other. */
const JOINER = "\u2060";

type Model = Pick<VisionLanguageModel, "tokenizer" | "imageMark">;

/** What a text must not hold as tokens: roles, ends, image marks. */
function guarded({ tokenizer, imageMark }: Model): string[] {
  const special = [...tokenizer.added.values()].filter((token) => token.special).map(({ content }) => content);
  return [...new Set([imageMark, ...special])].filter((mark) => mark.length > 1).sort((a, b) => b.length - a.length);
}

/** Cuts every mark in a text in two. */
function disarm(text: string, marks: readonly string[]): string {
  let safe = text;
  for (const mark of marks) {
    const first = String.fromCodePoint(mark.codePointAt(0)!);
    safe = safe.replaceAll(mark, first + JOINER + mark.slice(first.length));
  }
  return safe;
}

const plainOf = (messages: readonly Message[], change: (text: string) => string): RenderMessage[] =>
  messages.map(({ role, content }) => ({
    role,
    content: content.map((part) => (part.type === "text" ? { type: "text", text: change(part.text) } : { type: "image" })),
  }));

/**
 * A conversation's text. Special tokens and image marks that stand in what somebody said are no tokens in it: an invisible U+2060 parts them.
 *
 * @throws RangeError where the tokenizer would still read more special tokens than the template wrote
 */
export async function renderSafely(model: Model, render: Render, messages: readonly Message[]): Promise<string> {
  const marks = guarded(model);
  let changed = false;
  const safe = plainOf(messages, (text) => {
    const result = disarm(text, marks);
    changed ||= result !== text;
    return result;
  });
  const rendered = await render(safe);
  if (!changed) return rendered;
  const own = specials(model, await render(plainOf(messages, () => "a")));
  const found = specials(model, rendered);
  if (String(own) !== String(found))
    throw new RangeError(
      `chat: what was said holds special tokens that the tokenizer reads as such (${found.length} in the prompt, the template writes ${own.length}); leave out ${marks.slice(0, 8).join(" ")}`,
    );
  return rendered;
}

const specials = ({ tokenizer }: Model, text: string): number[] =>
  tokenizer.encode(text, { addSpecialTokens: false }).filter((id) => tokenizer.added.get(id)?.special);
