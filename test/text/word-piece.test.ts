import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { loadTokenizer } from "vitrine/text/tokenizer";
import { trainWordPiece } from "vitrine/text/word-piece";
import { scratch } from "../support/clip";
import { messageOf } from "../support/close";

const TEXTS = ["a cat", "a cat, sat", "the cats sat", "A Café at the sea", "cat cat 12"];

test("trainWordPiece() learns pieces within words, whatever the texts' order, and writes files that our tokenizer opens", async () => {
  const [folder, again] = [scratch(), scratch()];
  const options = { vocabSize: 60, added: ["[DEC]", "<image>"], modelMaxLength: 16 };
  const { vocabSize } = await trainWordPiece(TEXTS, { ...options, folder });
  await trainWordPiece([...TEXTS].reverse(), { ...options, folder: again });
  const [tokenizer, other] = [await loadTokenizer(folder), await loadTokenizer(again)];
  assert.equal(tokenizer.vocabSize, vocabSize);
  assert.deepEqual([tokenizer.modelMaxLength, tokenizer.special.cls, tokenizer.special.sep, tokenizer.special.pad], [16, 2, 3, 0]);
  assert.deepEqual([tokenizer.idOf("[DEC]"), tokenizer.idOf("<image>")], [vocabSize - 2, vocabSize - 1]);
  assert.deepEqual(tokenizer.tokens(tokenizer.encode("CAT")), ["[CLS]", "cat", "[SEP]"]);
  assert.deepEqual(tokenizer.tokens(tokenizer.encode("cafe cats, 1", { addSpecialTokens: false })), [
    "c",
    "##a",
    "##f",
    "##e",
    "cat",
    "##s",
    ",",
    "1",
  ]);
  assert.equal(tokenizer.decode(tokenizer.encode("the cats sat")), "the cats sat");
  for (const text of TEXTS) assert.deepEqual(other.encode(text), tokenizer.encode(text));
  assert.deepEqual(tokenizer.tokens(tokenizer.encode("xyz", { addSpecialTokens: false })), ["[UNK]"]);
  await messageOf(() => trainWordPiece(TEXTS, { vocabSize: 10, folder }), "vocabSize is 10; letters and specials alone need");
});

test("transformers' BertTokenizer reads the files alike", async (t) => {
  const python = process.env.VITRINE_PEER_PYTHON;
  if (!python) return t.skip("VITRINE_PEER_PYTHON names no Python with transformers");
  const folder = scratch();
  await trainWordPiece(TEXTS, { vocabSize: 60, folder, added: ["[DEC]", "<image>"] });
  const tokenizer = await loadTokenizer(folder);
  const program = `import json,sys
from transformers import AutoTokenizer
t=AutoTokenizer.from_pretrained(sys.argv[1])
print(json.dumps([type(t).__name__]+[t(x)["input_ids"] for x in json.loads(sys.argv[2])]))`;
  const { stdout, stderr } = spawnSync(python, ["-c", program, folder, JSON.stringify(TEXTS)], { encoding: "utf8" });
  const [name, ...ids] = JSON.parse(stdout || `["${stderr.slice(-300)}"]`);
  assert.match(name, /^Bert/);
  assert.deepEqual(
    ids,
    TEXTS.map((text) => tokenizer.encode(text)),
  );
});
