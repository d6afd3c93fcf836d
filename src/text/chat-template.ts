/** Chat templates of checkpoints: a conversation as the one text that the model was trained to read. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { readJson } from "../files/json";
import type { Span } from "./added";
import { GuardedTemplate } from "./guarded";
import { plainMessages, type Message, type RenderOptions, type Rendered, withTyped } from "./messages";
import { type Folder, openFolder, ROLES, roleToken } from "./tokenizer-folder";

export type { Message, Part, Rendered, RenderOptions } from "./messages";

/** A template, from a checkpoint or a named one: the same messages go into each. */
export type ChatTemplate = {
  /** Its name: `default` where a checkpoint has one only. */
  name: string;
  /** The file it comes from; for a named one, the model and version that used it. */
  source: string;
  /** What stands for a picture in the text, where that is known. */
  imageToken?: string;
  /** Ends its thread, where it has one; a later render() starts another. */
  close(): void;
  /**
   * The text of a conversation.
   *
   * @throws Error naming the template, and what it refuses or which limit it passed (1 s, 64 MB).
   */
  render(messages: readonly Message[], options?: RenderOptions): Promise<Rendered>;
};

/** The same as `template.render(messages, options)`. */
export const renderChat = (template: ChatTemplate, messages: readonly Message[], options?: RenderOptions): Promise<Rendered> =>
  template.render(messages, options);

/** A template in Jinja. `variables`: what it may name besides the messages, such as `eos_token`. */
export function jinjaTemplate(
  text: string,
  { name = "default", source = "chat template", variables = {} as Record<string, unknown> } = {},
): ChatTemplate {
  const guarded = new GuardedTemplate(source, text);
  return {
    ...{ name, source },
    close: () => guarded.close(),
    async render(messages, { addGenerationPrompt = false, tools, documents, guard, variables: more } = {}) {
      const { messages: plain, restore } = withTyped(plainMessages(messages), guard);
      const filled = await guarded.fill({
        ...{ ...variables, ...more },
        ...{ messages: plain, add_generation_prompt: addGenerationPrompt, tools: tools ?? null, documents: documents ?? null },
      });
      return { template: name, ...restore(filled.text, filled.spans as Span[]) };
    },
  };
}

/** All templates of a checkpoint by name, from wherever its files keep them. */
export function chatTemplates(folder: string): Map<string, ChatTemplate> {
  const from = openFolder(folder);
  const variables = Object.fromEntries(
    ROLES.flatMap((role) => [[`${role}_token`, roleToken(from, role)]]).filter(([, token]) => token !== undefined),
  );
  const found = new Map<string, ChatTemplate>();
  for (const [name, text, source] of sources(from)) if (!found.has(name)) found.set(name, jinjaTemplate(text, { name, source, variables }));
  return found;
}

/**
 * A checkpoint's chat template: `chat_template.jinja`, else `chat_template.json`, else `tokenizer_config.json`, and named ones from
 * `additional_chat_templates/`. Without a name, `default`, or the only one there is.
 *
 * @throws Error where there is none of that name; it lists those there are.
 */
export function loadChatTemplate(folder: string, name?: string): ChatTemplate {
  const all = chatTemplates(folder);
  const names = [...all.keys()];
  const found = name === undefined ? (all.get("default") ?? (all.size === 1 ? all.get(names[0]) : undefined)) : all.get(name);
  if (found) return found;
  if (all.size === 0)
    throw new Error(
      `${folder} holds no chat template (chat_template.jinja, chat_template.json or tokenizer_config.json); take a named one: namedTemplate()`,
    );
  throw new Error(`${folder} holds no chat template ${JSON.stringify(name ?? "default")}; it holds ${names.join(", ")}`);
}

/** Name, text and file of each template, the first of a name counts. */
function* sources({ folder, config }: Folder): Generator<[name: string, text: string, source: string]> {
  const path = join(folder, "chat_template.jinja");
  if (existsSync(path)) yield ["default", readFileSync(path, "utf8"), path];
  const more = join(folder, "additional_chat_templates");
  if (existsSync(more))
    for (const file of readdirSync(more).sort())
      if (file.endsWith(".jinja")) yield [basename(file, ".jinja"), readFileSync(join(more, file), "utf8"), join(more, file)];
  const legacy = join(folder, "chat_template.json");
  if (existsSync(legacy)) yield* entries(readJson(legacy).chat_template, legacy);
  yield* entries(config.chat_template, join(folder, "tokenizer_config.json"));
}

/** A template as text, or a list of named ones. */
function* entries(value: unknown, source: string): Generator<[string, string, string]> {
  if (value === undefined || value === null) return;
  const list: unknown[] = typeof value === "string" ? [{ name: "default", template: value }] : Array.isArray(value) ? value : [value];
  for (const [i, entry] of list.entries()) {
    const { name, template } = (entry ?? {}) as { name?: unknown; template?: unknown };
    if (typeof name !== "string" || typeof template !== "string")
      throw new Error(`${source}: chat_template${Array.isArray(value) ? `[${i}]` : ""}: expected a text, or { name, template }`);
    yield [name, template, source];
  }
}
