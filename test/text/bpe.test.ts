import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";

import { join } from "node:path";
import { test } from "node:test";
import { scratch } from "../support/scratch";
import { learnBpe, trainBpe } from "vitrine/text/bpe";
import { loadTokenizer } from "vitrine/text/tokenizer";

/** 20,000 short captions in two languages, always the same. */
function captions(): string[] {
  const [en, zh] = ["en", "zh"].map((language) => {
    const entries: { label: string; tags?: string[] }[] = JSON.parse(
      readFileSync(require.resolve(`emojibase-data/${language}/data.json`), "utf8"),
    );
    return entries.flatMap(({ label, tags = [] }) => [label, ...tags, `${label}: ${tags.join(", ")}`]);
  });
  return [...en, ...zh].slice(0, 20_000);
}

/** Strings that test every step: case, Unicode forms, emoji, digits, blanks, specials, control characters. */
const STRINGS = [
  "",
  " ",
  "a",
  "smiling face",
  "Smiling Face with Heart-Eyes",
  "I don't think they've it's we'll I'd you're I'm",
  "DON'T",
  "café",
  "cafe\u0301",
  "ÀÉÎÕÜ ß ẞ",
  "İstanbul ı",
  "ΟΔΟΣ ΣΟΦΟΣ σ",
  "ﬁ ﬂ ① ½ ² Å",
  "笑脸",
  "你好，世界！",
  "图片中有三个人。",
  "红色的苹果 red apple",
  "日本語テスト",
  "ﾊﾝｶｸ",
  "한국어 각",
  "🙂",
  "👍🏽",
  "👨‍👩‍👧‍👦",
  "🇨🇳",
  "cat🐱dog🐶",
  "1234567890",
  "3.14159 1e-5",
  "a  b\t\tc\n\nd",
  "nbsp\u00a0here\u3000wide",
  "zero\u200bwidth\u200djoin\ufeffbom",
  "soft\u00adhyphen",
  "<|startoftext|>",
  "x<|endoftext|>y",
  "<|endoftext|><|endoftext|>",
  "</w>",
  "word</w>",
  "Ġ",
  "<s> </s> <unk>",
  "!!!???...---",
  "http://example.com/a?b=c&d=%20#frag",
  "def f(x):\n    return x ** 2",
  "\u0000 \u0007 \u001b \u007f",
  "\ud7ff\ue000\u{10ffff}",
  "สวัสดี",
  "नमस्ते",
  "עברית العربية",
  "ǅ ǆ Ǆ",
  "wordwordwordwordwordword",
  "'s 't 're",
  "a_b-c.d,e;f",
];

test("trainBpe() learns 4,000 tokens from 20,000 captions in seconds, whatever their order", async () => {
  const texts = captions();
  assert.equal(texts.length, 20_000);
  const [one, two] = [scratch(), scratch()];
  const start = performance.now();
  assert.deepEqual(await trainBpe(texts, { vocabSize: 4000, folder: one }), { vocabSize: 4000, merges: 3486 });
  assert.ok(performance.now() - start < 10_000);
  await trainBpe([...texts].reverse(), { vocabSize: 4000, folder: two });
  const files = ["merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"];
  assert.deepEqual(readdirSync(one).sort(), files);
  for (const name of files) assert.equal(readFileSync(join(one, name), "utf8"), readFileSync(join(two, name), "utf8"), name);
  const tokenizer = await loadTokenizer(one);
  const plain = texts.reduce((sum, text) => sum + tokenizer.encode(text, { addSpecialTokens: false }).length, 0);
  const bytes = texts.reduce((sum, text) => sum + Buffer.byteLength(text.replace(/\s/g, "")), 0);
  assert.ok(plain * 2.5 < bytes, `${plain} tokens for ${bytes} bytes`); // it does compress
});

test("loadTokenizer() reads what trainBpe() wrote, the same from tokenizer.json and from vocab.json", async () => {
  const folder = scratch();
  await trainBpe(captions().slice(0, 2000), { vocabSize: 900, folder, modelMaxLength: 32 });
  const full = await loadTokenizer(folder);
  assert.deepEqual([full.vocabSize, full.modelMaxLength], [900, 32]);
  assert.deepEqual({ ...full.special }, { bos: 898, eos: 899, pad: 899, unk: 899 });
  const ids = STRINGS.map((text) => full.encode(text));
  rmSync(join(folder, "tokenizer.json"));
  const older = await loadTokenizer(folder);
  assert.deepEqual(
    STRINGS.map((text) => older.encode(text)),
    ids,
  );
  const lossless = STRINGS.filter((text) => /^[a-z ]+$/.test(text) && text.trim() === text);
  assert.ok(lossless.length >= 3);
  for (const text of lossless) assert.equal(full.decode(full.encode(text)), text);
});

test("learnBpe() joins the most frequent pair first, the older symbols among equals", async () => {
  const { vocab, merges } = await learnBpe(["ab ab ab ab", "cd cd cd"], { vocabSize: 516 });
  assert.deepEqual(merges, [
    ["a", "b</w>"],
    ["c", "d</w>"],
  ]);
  assert.deepEqual(
    [vocab.get("!"), vocab.get("a"), vocab.get("!</w>"), vocab.get("ab</w>"), vocab.get("<|endoftext|>")],
    [0, 64, 256, 512, 515],
  );
  const few = await learnBpe(["ab"], { vocabSize: 600 });
  assert.equal(few.vocab.size, 514); // no pair occurs twice
  assert.equal((await learnBpe(["ab"], { vocabSize: 600, minCount: 1 })).vocab.size, 515);
  const overlap = await learnBpe(["aaaaa ".repeat(9)], { vocabSize: 520 });
  assert.equal(new Set(overlap.vocab.values()).size, overlap.vocab.size);
});

test("learnBpe() refuses sizes that hold no vocabulary, and stops when asked", async () => {
  await assert.rejects(learnBpe([], { vocabSize: 513 }), /vocabSize is 513; the bytes and the specials alone need 514/);
  await assert.rejects(learnBpe([], { vocabSize: Number.NaN }), /vocabSize is NaN/);
  await assert.rejects(learnBpe([], { vocabSize: 600, minCount: 0 }), /minCount is 0/);
  await assert.rejects(learnBpe(["ab ab"], { vocabSize: 600, signal: AbortSignal.abort(new Error("enough")) }), /enough/);
});

const python = process.env.VITRINE_PEER_PYTHON;
const PEER = `
import json, sys
from transformers import AutoTokenizer, CLIPTokenizer
folder = sys.argv[1]
strings = json.load(open(folder + "/strings.json"))
t = CLIPTokenizer.from_pretrained(folder)
assert type(AutoTokenizer.from_pretrained(folder)).__name__.startswith("CLIPTokenizer")
out = [t(s).input_ids for s in strings]
batch = t(strings, padding=True, truncation=True)
print(json.dumps({"ids": out, "decoded": [t.decode(i) for i in out], "skipped": [t.decode(i, skip_special_tokens=True) for i in out],
  "batch": batch.input_ids, "mask": batch.attention_mask, "length": t.model_max_length, "size": len(t)}))
`;

test(
  "transformers' CLIPTokenizer opens what trainBpe() wrote and gives the same ids on 50 strings",
  { skip: python ? false : "VITRINE_PEER_PYTHON is not set to a Python with transformers" },
  async () => {
    const folder = scratch();
    await trainBpe(captions(), { vocabSize: 2000, folder, modelMaxLength: 24 });
    writeFileSync(join(folder, "strings.json"), JSON.stringify(STRINGS));
    const peer = JSON.parse(
      execFileSync(python as string, ["-c", PEER, folder], {
        encoding: "utf8",
        env: { ...process.env, HF_HUB_OFFLINE: "1" },
        stdio: ["ignore", "pipe", "ignore"],
      }),
    );
    const tokenizer = await loadTokenizer(folder);
    assert.equal(STRINGS.length, 50);
    STRINGS.forEach((text, i) => {
      assert.deepEqual(tokenizer.encode(text), peer.ids[i], JSON.stringify(text));
      assert.equal(tokenizer.decode(peer.ids[i], { skipSpecialTokens: false }), peer.decoded[i]);
      assert.equal(tokenizer.decode(peer.ids[i]), peer.skipped[i]);
    });
    const { ids, mask } = tokenizer.batch(STRINGS, { truncation: true });
    assert.deepEqual({ ids, mask }, { ids: peer.batch, mask: peer.mask });
    assert.deepEqual([tokenizer.modelMaxLength, tokenizer.vocabSize], [peer.length, peer.size]);
  },
);
