import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { loadTokenizer } from "vitrine/text/tokenizer";
import { folder } from "./folder";

const CLIP = join(__dirname, "..", "oracle", "clip");
const read = (path: string) => JSON.parse(readFileSync(path, "utf8"));
type Case = { text: string; ids: number[]; ids_plain: number[]; decoded: string; decoded_raw: string };
const oracle = read(join(CLIP, "cases.json")).tokenization[0]; // transformers 5.23
const cases: Case[] = oracle.cases;

const model = (name: string) => join(CLIP, "model", name);

const SOURCES: Record<string, Record<string, string>> = {
  "tokenizer.json": { "tokenizer.json": model("tokenizer.json"), "tokenizer_config.json": model("tokenizer_config.json") },
  "vocab.json and merges.txt": {
    "vocab.json": model("vocab.json"),
    "merges.txt": model("merges.txt"),
    "tokenizer_config.json": model("tokenizer_config.json"),
    "special_tokens_map.json": model("special_tokens_map.json"),
  },
  "tokenizer.json with the settings of transformers 5": {
    "tokenizer.json": model("tokenizer.json"),
    "tokenizer_config.json": join(CLIP, "v5_layout", "tokenizer_config.json"),
  },
  "vocab.json and merges.txt with the settings of transformers 5": {
    "vocab.json": model("vocab.json"),
    "merges.txt": model("merges.txt"),
    "tokenizer_config.json": join(CLIP, "v5_layout", "tokenizer_config.json"),
  },
  "vocab.json, merges.txt and config.json alone": {
    "vocab.json": model("vocab.json"),
    "merges.txt": model("merges.txt"),
    "config.json": model("config.json"),
  },
};

for (const [name, files] of Object.entries(SOURCES))
  test(`encode() and decode() equal transformers on all 30 strings, from ${name}`, async () => {
    const tokenizer = await loadTokenizer(folder(files));
    assert.equal(cases.length, 30);
    for (const c of cases) {
      assert.deepEqual(tokenizer.encode(c.text), c.ids, JSON.stringify(c.text));
      assert.deepEqual(tokenizer.encode(c.text, { addSpecialTokens: false }), c.ids_plain, JSON.stringify(c.text));
      assert.equal(tokenizer.decode(c.ids), c.decoded);
      assert.equal(tokenizer.decode(Int32Array.from(c.ids), { skipSpecialTokens: false }), c.decoded_raw);
    }
    assert.equal(tokenizer.vocabSize, oracle.vocab_size);
    if (files["tokenizer_config.json"]) assert.deepEqual({ ...tokenizer.special }, oracle.special_ids);
  });

test("batch() pads, cuts and masks as transformers does, keeping the end-of-text token", async () => {
  const tokenizer = await loadTokenizer(join(CLIP, "model"));
  const { texts, max_length, input_ids, attention_mask } = oracle.batch;
  const got = tokenizer.batch(texts, { maxLength: max_length, padding: "max_length", truncation: true });
  assert.deepEqual([got.ids, got.mask], [input_ids, attention_mask]);
  const longest = tokenizer.batch(texts.slice(0, 3));
  assert.deepEqual(
    longest.ids.map((row) => row.length),
    [7, 7, 7],
  );
  assert.deepEqual(longest.ids[1], input_ids[1].slice(0, 7));
  const ragged = tokenizer.batch(texts.slice(0, 3), { padding: false });
  assert.deepEqual(
    ragged.ids.map((row) => row.length),
    [7, 3, 2],
  );
  assert.deepEqual(tokenizer.batch([]), { ids: [], mask: [], typeIds: [] });
  const full = tokenizer.batch(["x"], { padding: "max_length" });
  assert.equal(full.ids[0].length, 77);
});

test("batch() pads and cuts on the left where the checkpoint says so", async () => {
  const config = { ...read(model("tokenizer_config.json")), padding_side: "left", truncation_side: "left" };
  const tokenizer = await loadTokenizer(folder({ "tokenizer.json": model("tokenizer.json"), "tokenizer_config.json": config }));
  const plain = tokenizer.encode("the quick brown fox", { addSpecialTokens: false });
  const { ids, mask } = tokenizer.batch(["the quick brown fox", ""], { maxLength: 5, truncation: true });
  assert.deepEqual(ids, [
    [712, ...plain.slice(-3), 713],
    [713, 713, 713, 712, 713],
  ]);
  assert.deepEqual(mask[1], [0, 0, 0, 1, 1]);
});

test("batch() refuses what does not fit, and says how to cut it", async () => {
  const tokenizer = await loadTokenizer(join(CLIP, "model"));
  assert.throws(() => tokenizer.batch(["ok", "word ".repeat(90)]), /texts\[1\] \("word word.*has \d+ tokens, 77 fit; .*truncation: true/);
  assert.throws(() => tokenizer.batch(["a"], { maxLength: 2 }), /maxLength 2, expected a whole number above 2/);
  const files = { "tokenizer.json": model("tokenizer.json"), "tokenizer_config.json": { model_max_length: 1e30 } };
  const open = await loadTokenizer(folder(files));
  assert.equal(open.modelMaxLength, Number.POSITIVE_INFINITY);
  assert.throws(() => open.batch(["a"], { padding: "max_length" }), /give maxLength/);
  assert.throws(() => open.batch(["a", "a b c"]), /no pad_token/);
});

test("tokens() shows pieces that a person can read", async () => {
  const tokenizer = await loadTokenizer(join(CLIP, "model"));
  const shown = tokenizer.tokens(tokenizer.encode("A cat, 你🙂"));
  assert.equal(shown[0], "<|startoftext|>");
  assert.equal(shown.at(-1), "<|endoftext|>");
  assert.deepEqual(shown.slice(1, 4), ["a</w>", "cat</w>", ",</w>"]);
  assert.ok(
    shown.some((piece) => /^<([0-9a-f]{2} ?)+>(<\/w>)?$/.test(piece)),
    shown.join("|"),
  ); // a part of a character
  assert.equal(shown.length, tokenizer.encode("A cat, 你🙂").length);
});

test("encode() takes what texts can hold: lone surrogates, NUL, long runs, a megabyte, in under a second", async () => {
  const tokenizer = await loadTokenizer(join(CLIP, "model"));
  assert.deepEqual(tokenizer.encode("a\ud800b"), tokenizer.encode("a\ufffdb"));
  assert.deepEqual(tokenizer.encode("a\udc00"), tokenizer.encode("a\ufffd"));
  assert.notDeepEqual(tokenizer.encode("a\0b"), tokenizer.encode("ab"));
  const prose = "The quick brown fox, 12 lazy dogs & a photo of 三个人. ".repeat(20_000).slice(0, 1e6);
  for (const [what, text] of Object.entries({
    prose,
    spaces: " ".repeat(50_000),
    tabs: "\t\n ".repeat(50_000),
    digits: "7".repeat(1e5),
    word: "ab".repeat(50_000),
    marks: "!".repeat(1e5),
    nul: "\0".repeat(1e5),
    surrogates: "\ud800".repeat(1e5),
  })) {
    const start = process.cpuUsage(); // of this process alone: the machine may have other work
    const ids = tokenizer.encode(text);
    const ms = process.cpuUsage(start).user / 1000;
    assert.equal(ids[0], 712);
    assert.equal(ids.at(-1), 713);
    assert.ok(ms < 1000, `${what}: ${ms} ms`);
  }
  assert.deepEqual(tokenizer.encode(" ".repeat(50_000)), [712, 713]);
  assert.throws(() => tokenizer.encode(undefined as unknown as string), /expected a text, got undefined/);
});

test("encode() lower-cases letter by letter, as the reference does: no final sigma", async () => {
  const tokenizer = await loadTokenizer(join(CLIP, "model"));
  assert.deepEqual(tokenizer.encode("ΟΔΟΣ"), tokenizer.encode("οδοσ"));
  assert.notDeepEqual(tokenizer.encode("ΟΔΟΣ"), tokenizer.encode("οδος"));
});

test("encode() gives the same word by word and as a whole", async () => {
  const tokenizer = await loadTokenizer(join(CLIP, "model"));
  const changed = json();
  changed.normalizer.normalizers.push({ type: "NFC" }); // another pipeline with the same effect: goes the general way
  const general = await loadTokenizer(folder({ "tokenizer.json": changed }));
  for (const { text } of cases) assert.deepEqual(tokenizer.encode(text), general.encode(text), JSON.stringify(text));
  const mixed = cases.map(({ text }) => text).join(" <|endoftext|>\n");
  assert.deepEqual(tokenizer.encode(mixed), general.encode(mixed));
});

test("decode() refuses ids that are none", async () => {
  const tokenizer = await loadTokenizer(join(CLIP, "model"));
  assert.equal(tokenizer.decode([]), "");
  assert.throws(() => tokenizer.decode([5, 714]), /ids\[1\] is 714, expected a whole number of 0 to 713/);
  assert.throws(() => tokenizer.decode([1.5]), /ids\[0\] is 1.5/);
  assert.throws(() => tokenizer.tokens([-1]), /ids\[0\] is -1/);
});

const json = () => read(model("tokenizer.json"));
type Json = ReturnType<typeof json>;

test("loadTokenizer() names the entry of tokenizer.json that is wrong", async () => {
  const broken: [(j: Json) => unknown, RegExp][] = [
    [
      (j) => (j.model.type = "Magic"),
      /tokenizer\.json is not a usable tokenizer:\n {2}model\.type: "Magic", expected BPE, WordPiece, Unigram/,
    ],
    [(j) => delete j.model, /model: undefined, expected an object/],
    [(j) => (j.model.vocab.a = 5000), /model\.vocab: no token has id 64 \(4287 ids up to the largest, 5000, are free\)/],
    [(j) => (j.model.vocab.a = 2 ** 31), /"a" has id 2147483648, expected a whole number of 0 to 2147483647/],
    [(j) => (j.model.vocab.a = "7"), /"a" has id "7", expected/],
    [(j) => (j.model.vocab.a = -1), /"a" has id -1/],
    [(j) => (j.model.vocab.a = 65), /"b" and "a" both have id 65/],
    [(j) => (j.model.merges[3] = ["zz", "q"]), /model\.merges\[3\]: "zz" \+ "q": not in the vocabulary: "zz", "zzq"/],
    [(j) => (j.model.merges[4] = "one"), /model\.merges\[4\]: "one", expected two tokens/],
    [(j) => (j.model.merges = null), /model\.merges: null, expected a list/],
    [(j) => (j.model.unk_token = "<nothing>"), /model\.unk_token: "<nothing>" is not in the vocabulary/],
    [(j) => (j.added_tokens[0].id = 3), /"<\|startoftext\|>" has id 3, but elsewhere id 712/],
    [(j) => (j.added_tokens[0] = 7), /added_tokens\[0\]: 7, expected \{ id, content \}/],
    [(j) => (j.post_processor.sep[1] = 3), /post_processor\.sep: \["<\|endoftext\|>",3\], but that token's id is 713/],
    [(j) => (j.normalizer = { type: "Rot13" }), /tokenizer\.json is not a usable tokenizer: Unknown Normalizer type: Rot13/],
    [
      (j) => (j.pre_tokenizer = { type: "Split", pattern: { Regex: "(" }, behavior: "Removed", invert: true }),
      /not a usable tokenizer: Invalid regular expression/,
    ],
  ];
  for (const [change, message] of broken) {
    const changed = json();
    change(changed);
    await assert.rejects(loadTokenizer(folder({ "tokenizer.json": changed })), message);
  }
  await assert.rejects(loadTokenizer(folder({ "tokenizer.json": "{ no" })), /tokenizer\.json:1:3/);
});

test("loadTokenizer() refuses a pattern that never ends", async () => {
  const changed = json();
  changed.pre_tokenizer = { type: "Split", pattern: { Regex: "(a+)+$" }, behavior: "Removed", invert: true };
  const start = performance.now();
  await assert.rejects(loadTokenizer(folder({ "tokenizer.json": changed })), /a pattern in it takes exponential time/);
  assert.ok(performance.now() - start < 5000);
});

test("loadTokenizer() names file and line of vocab.json and merges.txt, and roles without a token", async () => {
  const base = SOURCES["vocab.json and merges.txt"];
  const vocab = read(model("vocab.json"));
  const merges = readFileSync(model("merges.txt"), "utf8").split("\n");
  const with_ = (extra: Record<string, string | object>) => loadTokenizer(folder({ ...base, ...extra }));
  await assert.rejects(
    with_({ "merges.txt": [...merges.slice(0, 5), "qq zz", ...merges.slice(5)].join("\n") }),
    /merges\.txt is not a usable tokenizer:\n {2}line 6: "qq" \+ "zz": not in the vocabulary: "qq", "zz", "qqzz"/,
  );
  await assert.rejects(
    with_({ "merges.txt": merges.slice(0, 9).concat("lonely").join("\n") }),
    /line 10: \["lonely"\], expected two tokens/,
  );
  await assert.rejects(with_({ "vocab.json": { ...vocab, "!": 9999 } }), /vocab\.json: no token has id 0 /);
  await assert.rejects(with_({ "vocab.json": { ...vocab, "!": vocab.a } }), /"a" and "!" both have id|"!" and "a" both have id/);
  const config = read(model("tokenizer_config.json"));
  await assert.rejects(
    with_({ "tokenizer_config.json": { ...config, pad_token: "<pad>" } }),
    /tokenizer_config\.json is not a usable tokenizer:\n {2}pad_token: "<pad>" is not in the vocabulary/,
  );
  await assert.rejects(
    with_({ "tokenizer_config.json": { ...config, padding_side: "up", model_max_length: 0 } }),
    /model_max_length: 0, expected a number of tokens\n {2}padding_side: "up", expected "left" or "right"/,
  );
  await assert.rejects(
    loadTokenizer(folder({ "notes.txt": "a" })),
    /no tokenizer\.json, and no tokenizer_config\.json that names a tokenizer_class; without tokenizer\.json these can be read: .*CLIPTokenizer \(vocab\.json, merges\.txt\)/,
  );
  await assert.rejects(
    loadTokenizer(folder({ "tokenizer_config.json": { tokenizer_class: "BertTokenizer" } })),
    /tokenizer_class BertTokenizer/,
  );
});

test("loadTokenizer() keeps tokens named __proto__ and constructor apart from JavaScript's", async () => {
  const changed = readFileSync(model("tokenizer.json"), "utf8")
    .replace('"model": {', '"model": {"x":0,')
    .replace('"!": 0', '"__proto__": 0');
  const tokenizer = await loadTokenizer(folder({ "tokenizer.json": changed }));
  assert.equal(tokenizer.tokens([0])[0], "__proto__");
  assert.equal(({} as Record<string, unknown>)["0"], undefined);
});
