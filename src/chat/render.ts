/** From messages to a prompt's text, in which nobody but the template speaks for the template. */
import type { VisionLanguageModel } from "../models/loaded";
import { type ChatTemplate, chatTemplates, loadChatTemplate } from "../text/chat-template";
import { plainMessages, withTyped } from "../text/messages";
import { namedTemplate } from "../text/named";
import { NAMED_TEMPLATES } from "../text/named-templates";
import type { Message, Role } from "./messages";

/** A conversation as a function of the caller's gets it. */
export type RenderMessage = { role: Role; content: ({ type: "text"; text: string } | { type: "image" })[] };

/**
 * Writes a conversation as the model was taught to read it, with the model's image mark for each picture, up to where its answer begins.
 * variables: what else is said to a template, such as enable_thinking.
 */
export type Render = (messages: RenderMessage[], variables: { [name: string]: unknown }) => Promise<string> | string;

/** A template by name (of the checkpoint, or of an original program), one that is at hand, or a function. */
export type TemplateChoice = string | ChatTemplate | Render;

/** A chat template at work. */
export type Renderer = {
  template: Pick<ChatTemplate, "name" | "source" | "imageToken" | "render" | "close">;
  /** What ends an answer under this template besides the checkpoint's end tokens, such as `<|im_end|>`. */
  stopWords: readonly string[];
  /** Further variables of the template, such as enable_thinking. */
  variables?: { [name: string]: unknown };
};

/** The original programs' templates, for checkpoints that carry none. */
const BY_TYPE: { [modelType: string]: string } = {
  llava: "vicuna_v1",
  llava_next: "vicuna_v1",
  llava_llama: "vicuna_v1",
  llava_mistral: "mistral_instruct",
  minigpt4: "minigpt4-vicuna",
  ovis: "ovis2_5",
  ovis2: "ovis2",
  ovis2_5: "ovis2_5",
};
/** Families that were taught no conversations: what was said stands one after the other, each picture as its mark. */
const PLAIN = ["blip", "blip-2", "instructblip"];

const fromFunction = (render: Render, name = "function"): ChatTemplate => ({
  ...{ name, source: "a function of the caller" },
  close: () => undefined,
  async render(messages, { guard, variables = {} } = {}) {
    const { messages: marked, restore } = withTyped(plainMessages(messages), guard);
    return { template: name, ...restore(await render(marked as RenderMessage[], variables), []) };
  },
});

const textsOf =
  (mark: string): Render =>
  (messages) =>
    messages.map(({ content }) => content.map((part) => (part.type === "image" ? mark : part.text)).join("")).join(" ");

type Asked = Pick<VisionLanguageModel, "folder" | "modelType" | "imageMark"> & { template?: string };

/**
 * The template of a model: the one that is asked for, the checkpoint's, or the one of its family's original program.
 *
 * @throws Error listing the templates that there are, where none fits
 */
export function rendererOf(model: Asked, choice?: TemplateChoice, variables?: Renderer["variables"]): Renderer {
  const template = typeof choice === "function" ? fromFunction(choice) : typeof choice === "object" ? choice : find(model, choice);
  const named = Object.hasOwn(NAMED_TEMPLATES, template.name) ? NAMED_TEMPLATES[template.name].separators[1].trim() : "";
  return { template, stopWords: named ? [named] : [], variables };
}

function find(model: Asked, name?: string): ChatTemplate {
  const { folder, modelType, imageMark } = model;
  const own = chatTemplates(folder);
  if (name !== undefined) return own.get(name) ?? namedTemplate(name);
  if (own.size > 0) return loadChatTemplate(folder);
  if (PLAIN.includes(modelType)) return fromFunction(textsOf(imageMark), "plain");
  const fallback = model.template ?? BY_TYPE[modelType];
  if (fallback !== undefined) return namedTemplate(fallback);
  throw new Error(
    `${folder} holds no chat template, and none is known for ${modelType}; give { template } a function of the messages, or one of ${Object.keys(NAMED_TEMPLATES).join(", ")}`,
  );
}

/** No character that is seen; between the letters of a special token it makes the token a text like any other. */
const JOINER = "\u2060";

/** What a text must not hold as tokens: roles, ends, image marks. */
function guarded({ tokenizer, imageMark }: Pick<VisionLanguageModel, "tokenizer" | "imageMark">): string[] {
  const special = [...tokenizer.added.values()].filter((token) => token.special).map(({ content }) => content);
  return [...new Set([imageMark, "<image>", ...special])].filter((mark) => mark.length > 1);
}

/** Parts every mark that somebody typed, wholly or in part. typed: ranges of the text */
function part(text: string, typed: readonly (readonly [number, number])[], marks: readonly string[]): string {
  const cuts = new Set<number>();
  for (const mark of marks)
    for (let at = text.indexOf(mark); at !== -1; at = text.indexOf(mark, at + 1))
      if (typed.some(([from, to]) => at < to && at + mark.length > from)) cuts.add(at + String.fromCodePoint(text.codePointAt(at)!).length);
  let safe = "";
  let done = 0;
  for (const cut of [...cuts].sort((a, b) => a - b)) {
    safe += text.slice(done, cut) + JOINER;
    done = cut;
  }
  return safe + text.slice(done);
}

/**
 * A conversation's text, with the model's mark for each picture whatever the template writes. Special tokens and image marks that stand in what somebody
 * said are no tokens in it: an invisible U+2060 parts them.
 */
export async function renderSafely(
  model: Pick<VisionLanguageModel, "tokenizer" | "imageMark">,
  { template, variables }: Renderer,
  messages: readonly Message[],
): Promise<string> {
  const { imageToken } = template;
  const guard = [...new Set([...guarded(model), ...(imageToken ? [imageToken] : [])])];
  const plain = messages.map(({ role, content }) => ({
    role,
    content: content.map((one) => (one.type === "text" ? one : { type: "image" })),
  }));
  const { text, typed } = await template.render(plain, { addGenerationPrompt: true, guard, variables });
  const safe = typed.length ? part(text, typed, guard) : text;
  return imageToken && !imageToken.includes(model.imageMark) ? safe.replaceAll(imageToken, model.imageMark) : safe;
}
