/** Token ids against transformers' tokenizers: equal to the letter, or not. */
import { join } from "node:path";
import { loadTokenizer, type Tokenizer } from "vitrine/text/tokenizer";
import type { Cases, Checks, Oracle } from "./check";

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
      if (cases.some((c) => c.decoded === undefined)) continue; // an emulated tokenizer that only encodes
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
      checkBatches(checks, title, tokenizer, part);
      if (!part.pair) continue;
      const { ids, typeIds } = tokenizer.segments(part.pair.text, part.pair.text_pair);
      const wanted = [part.pair.input_ids, part.pair.token_type_ids ?? typeIds];
      checks.exact(`${title} two texts`, 1, same([ids, typeIds], wanted) ? [] : ["ids or types differ"]);
    }
  }
}

const same = (a: unknown, b: unknown): boolean => JSON.stringify(a) === JSON.stringify(b);

/** Padding and truncation to 12 tokens, and to the model's length where the family pads so. */
function checkBatches(checks: Checks, title: string, tokenizer: Tokenizer, part: Cases): void {
  for (const wanted of [part.batch, part.batch_max_length].filter(Boolean)) {
    const { max_length: maxLength, input_ids, attention_mask, token_type_ids } = wanted;
    const got = tokenizer.batch(wanted.texts, { maxLength, padding: "max_length", truncation: true });
    const rows = [got.ids, attention_mask && got.mask, token_type_ids && got.typeIds];
    checks.exact(
      `${title} batch of ${maxLength}`,
      1,
      same(rows, [input_ids, attention_mask, token_type_ids]) ? [] : ["ids, mask or types differ"],
    );
  }
}
