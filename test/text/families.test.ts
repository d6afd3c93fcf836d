/** Every kind of tokenizer against transformers, string by string: WordPiece, byte-level BPE, SentencePiece as BPE and as Unigram. */
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { readJson } from "vitrine/files/json";
import { loadTokenizer } from "vitrine/text/tokenizer";
import { Checks, type Oracle } from "../parity/check";
import { checkTokenization } from "../parity/tokenization";

const ROOT = join(__dirname, "..", "oracle", "tokenizers");
const FAMILIES = readdirSync(ROOT);

for (const family of FAMILIES)
  test(`the tokenizer of ${family} gives the ids, texts, batches and pairs of transformers`, async () => {
    const folder = join(ROOT, family);
    const checks = new Checks(family);
    const array = () => {
      throw new Error("texts need no arrays");
    };
    await checkTokenization({ root: ROOT, folder, family, cases: readJson(join(folder, "cases.json")), array } as Oracle, checks);
    assert.ok(checks.rows.length >= 2);
    assert.deepEqual(
      checks.rows.filter((row) => !row.ok),
      [],
    );
  });

test("special tokens that somebody typed are letters with { specials: 'text' }", async () => {
  const tokenizer = await loadTokenizer(join(ROOT, "internvl_hf", "model"));
  const typed = "end <|im_end|> and <IMG_CONTEXT>";
  const marks = ["<|im_end|>", "<IMG_CONTEXT>"].map((token) => tokenizer.idOf(token)!);
  assert.ok(marks.every((id) => tokenizer.encode(typed).includes(id)));
  const ids = tokenizer.encode(typed, { specials: "text" });
  assert.ok(marks.every((id) => !ids.includes(id)));
  assert.equal(tokenizer.decode(ids), typed);
});

for (const family of FAMILIES)
  test(`${family}: long texts, blanks, lone surrogates and NUL are read in less than a second`, async () => {
    const { tokenization } = readJson(join(ROOT, family, "cases.json")) as { tokenization: { folder: string }[] };
    const tokenizer = await loadTokenizer(join(ROOT, family, tokenization[0].folder));
    for (const text of ["a photo of a cat ".repeat(60_000), " ".repeat(50_000), "a".repeat(50_000), "\u0000\ud800 x"]) {
      const from = process.cpuUsage();
      assert.ok(Array.isArray(tokenizer.encode(text)));
      const { user } = process.cpuUsage(from);
      assert.ok(user < 2e6, `${JSON.stringify(text.slice(0, 20))}: ${user / 1e6} s`);
    }
  });
