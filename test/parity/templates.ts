/**
 * Rendered conversations and their ids against transformers' templates and against the original programs' prompts: equal to the letter, or not. Three kinds of
 * cases: a checkpoint's own template (`messages`), a named one with the tokens of each tile (`tiles_per_image`), a named one whose ids are those of the
 * pieces around the pictures (`pieces`).
 */
import { join } from "node:path";
import { readJson } from "vitrine/files/json";
import { OVIS_IDS } from "vitrine/models/ovis25-load";
import { loadChatTemplate, type Message } from "vitrine/text/chat-template";
import { places } from "vitrine/text/messages";
import { namedTemplate } from "vitrine/text/named";
import { loadTokenizer, type Tokenizer } from "vitrine/text/tokenizer";
import type { Cases, Checks, Oracle } from "./check";

/** What is wrong with a case, by check. */
type Wrong = { rendered?: boolean; prompt: boolean; ids: boolean };

export async function checkTemplates(oracle: Oracle, checks: Checks): Promise<void> {
  const cases: Cases[] = oracle.cases.chat ?? [];
  if (cases.length === 0) return;
  const model = join(oracle.folder, "model");
  const own = cases.some((one) => one.messages) ? loadChatTemplate(model) : undefined;
  const wrong = new Map<string, Wrong>();
  const tokenizers = new Map<string, Tokenizer>();
  for (const [i, one] of cases.entries()) {
    const folder = one.tokenizer ? join(oracle.root, one.tokenizer) : model;
    const tokenizer = tokenizers.get(folder) ?? (await loadTokenizer(folder));
    tokenizers.set(folder, tokenizer);
    wrong.set(`${i} ${one.name}`, own ? await ofCheckpoint(one, own, tokenizer) : await ofProgram(one, model, tokenizer));
  }
  own?.close();
  const failing = (is: (one: Wrong) => boolean | undefined) => [...wrong].filter(([, one]) => is(one)).map(([name]) => name);
  if (own)
    checks.exact(
      "templates: rendered",
      cases.length,
      failing(({ rendered }) => rendered),
    );
  checks.exact(
    "templates: rendered to be answered",
    cases.length,
    failing(({ prompt }) => prompt),
  );
  checks.exact(
    "templates: ids",
    cases.length,
    failing(({ ids }) => ids),
  );
}

const same = (a: unknown, b: unknown): boolean => JSON.stringify(a) === JSON.stringify(b);

async function ofCheckpoint(one: Cases, own: ReturnType<typeof loadChatTemplate>, tokenizer: Tokenizer): Promise<Wrong> {
  const guard = [...tokenizer.added.values()].map(({ content }) => content);
  const plain = await own.render(one.messages);
  const prompt = await own.render(one.messages, { addGenerationPrompt: true, guard });
  return {
    rendered: plain.text !== one.rendered,
    prompt: prompt.text !== one.rendered_with_generation_prompt,
    ids: !same(tokenizer.encode(prompt.text, { addSpecialTokens: false, literal: prompt.typed }), one.ids_plain),
  };
}

async function ofProgram(one: Cases, model: string, tokenizer: Tokenizer): Promise<Wrong> {
  const variables = { enable_thinking: one.thinking };
  const { text } = await namedTemplate(one.template ?? "ovis2_5").render(messagesOf(one), { addGenerationPrompt: true, variables });
  const encode = (piece: string, addSpecialTokens = false) => tokenizer.encode(piece, { addSpecialTokens });
  const prompt = text !== one.rendered_with_generation_prompt;
  if (one.pieces) {
    const pieces = text.split(one.image_token).map((piece, i) => encode(piece, i === 0));
    return { prompt, ids: !same(pieces, one.pieces) };
  }
  if (one.tiles_per_image) {
    const full = expanded(text, one.tiles_per_image, tokensOfTile(model));
    return { prompt, ids: full !== one.expanded || !same(tokenizer.encode(full), one.ids) };
  }
  const { begin, atom, end } = OVIS_IDS; // the oracle's pictures have two tokens here
  return {
    prompt,
    ids: !same(
      text.split("<image>").flatMap((piece, i) => [...(i ? [begin, atom, atom, end] : []), ...encode(piece)]),
      one.ids,
    ),
  };
}

const ROLES: { [from: string]: string } = { human: "user", gpt: "assistant" };

/** The oracle's turns, whose last one is still to be said. */
function messagesOf({ turns, system = null }: { turns: [string, string | null][]; system?: string | null }): Message[] {
  const said = turns.flatMap(([role, content]): Message[] => (content === null ? [] : [{ role: ROLES[role] ?? role, content }]));
  return system === null ? said : [{ role: "system", content: system }, ...said];
}

/** Tokens that the original InternVL has for a tile, by its config. */
function tokensOfTile(model: string): number {
  const { force_image_size, vision_config, downsample_ratio } = readJson(join(model, "config.json")) as Cases;
  return Math.floor((force_image_size ?? vision_config.image_size) / vision_config.patch_size) ** 2 * downsample_ratio ** 2;
}

/** InternVL's prompt with the tokens of each picture's tiles. */
const expanded = (text: string, tiles: number[], each: number): string =>
  places({ text, typed: [] }, "<image>").reduceRight(
    (rest, [from, to], i) => `${rest.slice(0, from)}<img>${"<IMG_CONTEXT>".repeat(each * tiles[i])}</img>${rest.slice(to)}`,
    text,
  );
