/** Token ids against transformers' tokenizers: equal to the letter, or not. */
import { join } from "node:path";
import { loadTokenizer } from "vitrine/text/tokenizer";
import type { Checks, Oracle } from "./check";

type Case = { text: string; ids: number[]; ids_tokenizer_json?: number[]; ids_plain: number[]; decoded: string; decoded_raw: string };

export async function checkTokenization(oracle: Oracle, checks: Checks): Promise<void> {
  for (const part of oracle.cases.tokenization ?? []) {
    {
      const tokenizer = await loadTokenizer(join(oracle.folder, part.folder));
      const cases: Case[] = part.cases;
      const differing = (got: (c: Case) => unknown, want: (c: Case) => unknown[]) =>
        cases.filter((c) => !want(c).some((w) => JSON.stringify(w) === JSON.stringify(got(c)))).map((c) => JSON.stringify(c.text));
      const title = `${part.label}:`;
      checks.exact(
        `${title} ids`,
        cases.length,
        differing(
          (c) => tokenizer.encode(c.text),
          (c) => [c.ids, c.ids_tokenizer_json],
        ),
      );
      checks.exact(
        `${title} ids without specials`,
        cases.length,
        differing(
          (c) => tokenizer.encode(c.text, { addSpecialTokens: false }),
          (c) => [c.ids_plain],
        ),
      );
      checks.exact(
        `${title} decoded`,
        cases.length,
        differing(
          (c) => tokenizer.decode(c.ids),
          (c) => [c.decoded],
        ),
      );
      checks.exact(
        `${title} decoded with specials`,
        cases.length,
        differing(
          (c) => tokenizer.decode(c.ids, { skipSpecialTokens: false }),
          (c) => [c.decoded_raw],
        ),
      );
      if (!part.batch) continue;
      const { ids, mask } = tokenizer.batch(part.batch.texts, {
        maxLength: part.batch.max_length,
        padding: "max_length",
        truncation: true,
      });
      const same = JSON.stringify([ids, mask]) === JSON.stringify([part.batch.input_ids, part.batch.attention_mask]);
      checks.exact(`${title} batch of ${part.batch.max_length}`, 1, same ? [] : ["ids or mask differ"]);
    }
  }
}
