/** Conversations in the prompts of the original programs; no template language, so no thread is needed. */
import type { Span } from "./added";
import type { ChatTemplate } from "./chat-template";
import { type Message, type Part, plainMessages, withTyped } from "./messages";
import { NAMED_TEMPLATES, type NamedTemplate } from "./named-templates";

type Turn = { role: "user" | "assistant"; text: string };

/** A template by the name that its original program gave it. @throws Error listing the names when it is none. */
export function namedTemplate(name: string): ChatTemplate {
  if (!Object.hasOwn(NAMED_TEMPLATES, name))
    throw new Error(`no chat template is named ${JSON.stringify(name)}; known are ${Object.keys(NAMED_TEMPLATES).join(", ")}`);
  const template = NAMED_TEMPLATES[name];
  const ignored = ["tools", "documents"] as const;
  return {
    ...{ name, source: template.version, imageToken: template.imageToken },
    close: () => undefined,
    async render(messages, options = {}) {
      const unknown = ignored.filter((key) => options[key] !== undefined);
      if (unknown.length > 0) throw new Error(`the chat template ${name} has no place for ${unknown.join(" and ")}`);
      const { messages: plain, restore } = withTyped(plainMessages(messages), options.guard);
      const { system, turns } = conversation(template, plain, name);
      const isQuiet = options.variables?.enable_thinking !== true;
      const { text, spans } = write(template, system, turns, options.addGenerationPrompt ?? false, isQuiet);
      return { template: name, ...restore(text, spans) };
    },
  };
}

/** The system text and the turns of a conversation. */
function conversation(template: NamedTemplate, messages: Message[], name: string): { system?: string; turns: Turn[] } {
  const [first, ...rest] = messages;
  const hasSystem = first?.role === "system";
  const turns = (hasSystem ? rest : messages).map(({ role, content }, i): Turn => {
    const wanted = i % 2 === 0 ? "user" : "assistant";
    if (role !== wanted)
      throw new Error(
        `the chat template ${name} wants ${wanted} at turn ${i}, not ${JSON.stringify(role)}; system comes first, then user and assistant alternate`,
      );
    return { role: wanted, text: textOf(template, content) };
  });
  return { system: hasSystem ? textOf(template, first.content) : template.system, turns };
}

/** A message as text, pictures where they stand in it. */
function textOf({ imageToken, afterImage }: NamedTemplate, content: Message["content"]): string {
  if (typeof content === "string") return content;
  const one = ({ type, text }: Part): string => {
    if (type === "text") return text as string;
    if (type === "image") return imageToken + afterImage;
    throw new Error(`a named chat template has no place for a part of type ${JSON.stringify(type)}, only for text and image`);
  };
  return content.map(one).join("");
}

/** The text, and the ranges that are the assistant's, separators that end them included. */
function write(
  template: NamedTemplate,
  system: string | undefined,
  turns: Turn[],
  isPrompted: boolean,
  isQuiet: boolean,
): { text: string; spans: Span[] } {
  const { style, systemFrame = "{system}", separators, noThinking = "" } = template;
  const [first, second] = separators;
  const spans: Span[] = [];
  let text = style === "llama2" || system === undefined ? "" : systemFrame.split("{system}").join(system) + first;
  const wrapped = system ? `<<SYS>>\n${system}\n<</SYS>>\n\n` : "";
  const answer = (words: string) => {
    spans.push([text.length, text.length + words.length]);
    text += words;
  };
  turns.forEach(({ role, text: words }, i) => {
    if (style === "llama2" && role === "user") text += `${i === 0 ? "" : first}${template.user}${i === 0 ? wrapped : ""}${words} [/INST]`;
    else if (style === "llama2") {
      text += template.assistant;
      answer(`${words} ${second}`);
    } else {
      text += template[role] + (style === "two" ? ": " : "");
      if (role === "user") text += words + first;
      else answer(words + second);
    }
  });
  if (isPrompted && style !== "llama2") text += template.assistant + (style === "two" ? ":" : "") + (isQuiet ? noThinking : "");
  return { text, spans };
}
