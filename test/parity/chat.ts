/** Rendered conversations and their ids against transformers' templates and against the original programs' prompts: equal to the letter, or not. */
import { join } from "node:path";
import { loadChatTemplate, type Message } from "vitrine/text/chat-template";
import { places } from "vitrine/text/messages";
import { namedTemplate } from "vitrine/text/named";
import { loadTokenizer } from "vitrine/text/tokenizer";
import type { Cases, Checks, Oracle } from "./check";

const same = (a: unknown, b: unknown): boolean => JSON.stringify(a) === JSON.stringify(b);

export async function checkChat(oracle: Oracle, checks: Checks): Promise<void> {
  const cases: Cases[] = oracle.cases.chat ?? [];
  if (cases.length === 0) return;
  const tokenizer = await loadTokenizer(join(oracle.folder, "model"));
  const isNamed = cases[0].template !== undefined;
  const own = isNamed ? undefined : loadChatTemplate(join(oracle.folder, "model"));
  const wrong: { [check: string]: string[] } = { rendered: [], "rendered to be answered": [], ids: [] };
  for (const one of cases) {
    const { name, rendered, rendered_with_generation_prompt, ids_plain } = one;
    if (own) {
      const [plain, prompt] = await Promise.all([
        own.render(one.messages),
        own.render(one.messages, { addGenerationPrompt: true, guard: guardOf(tokenizer) }),
      ]);
      if (plain.text !== rendered) wrong.rendered.push(name);
      if (prompt.text !== rendered_with_generation_prompt) wrong["rendered to be answered"].push(name);
      if (!same(tokenizer.encode(prompt.text, { addSpecialTokens: false, literal: prompt.typed }), ids_plain)) wrong.ids.push(name);
    } else {
      const prompt = await namedTemplate(one.template).render(messagesOf(one), { addGenerationPrompt: true });
      if (prompt.text !== rendered_with_generation_prompt) wrong["rendered to be answered"].push(name);
      const full = expanded(prompt.text, one);
      if (full !== one.expanded || !same(tokenizer.encode(full), one.ids)) wrong.ids.push(name);
    }
  }
  own?.close();
  for (const [check, names] of Object.entries(wrong)) if (own || check !== "rendered") checks.exact(`chat: ${check}`, cases.length, names);
}

const guardOf = (tokenizer: Awaited<ReturnType<typeof loadTokenizer>>) => [...tokenizer.added.values()].map(({ content }) => content);

/** The oracle's turns, whose last one is still to be said. */
function messagesOf({ turns, system }: { turns: [string, string | null][]; system: string | null }): Message[] {
  const said = turns.flatMap(([role, content]): Message[] => (content === null ? [] : [{ role, content }]));
  return system === null ? said : [{ role: "system", content: system }, ...said];
}

/** InternVL's prompt with the tokens of each tile; how many a tile has is what the oracle's own text says. */
function expanded(text: string, { expanded: wanted, tiles_per_image: tiles }: { expanded: string; tiles_per_image: number[] }): string {
  const all = wanted.split("<IMG_CONTEXT>").length - 1;
  const each = all / tiles.reduce((sum, count) => sum + count, 0);
  return places({ text, typed: [] }, "<image>").reduceRight(
    (rest, [from, to], i) => `${rest.slice(0, from)}<img>${"<IMG_CONTEXT>".repeat(each * tiles[i])}</img>${rest.slice(to)}`,
    text,
  );
}
