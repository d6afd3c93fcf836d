/** trainByteBpe(): a byte-level vocabulary that our reader and transformers' open alike. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

import { join } from "node:path";
import { test } from "node:test";
import { trainByteBpe } from "vitrine/text/byte-bpe";
import { loadTokenizer } from "vitrine/text/tokenizer";
import { messageOf } from "../support/close";
import { scratch } from "../support/scratch";

const TEXTS = ["red apple", "red car", "a red, red rose", "What colour is it?", "What kind of thing is it?", "12 apples"];
const SPECIAL = ["<|pad|>", "<|end|>"];
const settings = { eos_token: "<|end|>", pad_token: "<|pad|>", model_max_length: 64 };

test("trainByteBpe() makes tokens of frequent words with the blank before them, and every text comes back", async () => {
  const folder = scratch();
  const { vocabSize, idOf } = await trainByteBpe(TEXTS, { vocabSize: 300, folder, special: SPECIAL, settings });
  const tokenizer = await loadTokenizer(folder);
  assert.deepEqual([tokenizer.vocabSize, tokenizer.special.eos], [vocabSize, idOf["<|end|>"]]);
  assert.ok(vocabSize <= 300 && vocabSize > 258, `${vocabSize} tokens`);
  assert.deepEqual(tokenizer.tokens(tokenizer.encode("a red apple")), ["a", " red", " apple"]);
  assert.deepEqual(tokenizer.encode("<|end|>red"), [idOf["<|end|>"], ...tokenizer.encode("red")]);
  for (const text of [...TEXTS, "Ünknown 字 🙂\n\n two  blanks", "it's 'S'"])
    assert.equal(tokenizer.decode(tokenizer.encode(text), { skipSpecialTokens: false }), text);
  const again = scratch();
  await trainByteBpe([...TEXTS].reverse(), { vocabSize: 300, folder: again, special: SPECIAL, settings });
  const file = (where: string) => readFileSync(join(where, "tokenizer.json"), "utf8");
  assert.equal(file(again), file(folder), "the order of texts does not matter");
  await messageOf(
    () => trainByteBpe(TEXTS, { vocabSize: 257, folder, special: SPECIAL, settings }),
    "vocabSize is 257; the bytes and the specials alone need 258",
  );
});
