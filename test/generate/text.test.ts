/** Tokens as text while they come: whole characters, stop words. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { random } from "vitrine/data/random";
import { textStream } from "vitrine/generate/text";
import { loadTokenizer, type Tokenizer } from "vitrine/text/tokenizer";

const FOLDER = join(__dirname, "..", "oracle", "internvl_hf", "model");

/** A tokenizer of single characters: what a stop word is to a stream does not depend on tokens. */
const LETTERS = {
  decode: (ids: ArrayLike<number>) => Array.from(ids, (id) => String.fromCodePoint(id)).join(""),
  vocabSize: 0x110000,
  added: new Map(),
} as unknown as Tokenizer;

function spell(text: string, stopWords: string[], mayStop: (i: number) => boolean = () => true) {
  const stream = textStream(LETTERS, stopWords, true);
  const pieces: string[] = [];
  for (const [i, letter] of Array.from(text).entries()) {
    const { text, stopped } = stream.push(letter.codePointAt(0)!, mayStop(i));
    pieces.push(text);
    if (stopped) return { pieces, text: pieces.join(""), stopped };
  }
  pieces.push(stream.end());
  return { pieces, text: pieces.join(""), stopped: false };
}

test("text that may become a stop word is held back, and let out when it does not", () => {
  assert.deepEqual(spell("a###b", ["####"]).pieces, ["a", "", "", "", "###b", ""]);
  assert.deepEqual(spell("a####b", ["####"]), { pieces: ["a", "", "", "", ""], text: "a", stopped: true });
  assert.deepEqual(spell("xababac", ["abac"]), { pieces: ["x", "", "", "", "ab", "", ""], text: "xab", stopped: true });
  assert.deepEqual(spell("one two", ["two three"]).text, "one two", "an end lets out what was held");
  assert.deepEqual(spell("say END now", ["now", "END"]).text, "say ", "the first of several");
  assert.deepEqual(spell("ENDEND", ["END"], (i) => i > 2).text, "END", "a stop word counts from where it may");
  assert.equal(spell("no stop", []).text, "no stop");
});

test("a stop word is found wherever the tokens are cut", async () => {
  const tokenizer = await loadTokenizer(FOLDER);
  const text = "What is in this image? 请描述 them 🙂 and STOP here";
  const ids = tokenizer.encode(text, { addSpecialTokens: false });
  for (const [word, want] of [
    ["STOP", "What is in this image? 请描述 them 🙂 and "],
    ["描", "What is in this image? 请"],
    ["🙂 and", "What is in this image? 请描述 them "],
    ["is  image", text],
  ]) {
    const stream = textStream(tokenizer, [word], true);
    let said = "";
    let stopped = false;
    for (const id of ids) {
      const one = stream.push(id, true);
      said += one.text;
      if ((stopped = one.stopped)) break;
    }
    if (!stopped) said += stream.end();
    assert.equal(said, want);
  }
});

test("pieces hold whole characters, and together are what decode() gives", async () => {
  const tokenizer = await loadTokenizer(FOLDER);
  const text = "naïve 请描述 🙂👩‍👩‍👧  two blanks\n\nend";
  const ids = tokenizer.encode(text, { addSpecialTokens: false });
  const stream = textStream(tokenizer, [], true);
  const pieces = ids.map((id) => stream.push(id, true).text);
  pieces.push(stream.end());
  assert.equal(pieces.join(""), text);
  assert.ok(pieces.some((piece) => piece === "") && pieces.every((piece) => !piece.includes("\uFFFD")));
  const next = random(5);
  for (let round = 0; round < 20; round++) {
    const some = Array.from({ length: 30 }, () => Math.floor(next() * tokenizer.vocabSize));
    const stream = textStream(tokenizer, [], true);
    assert.equal(some.map((id) => stream.push(id, true).text).join("") + stream.end(), tokenizer.decode(some), String(some));
  }
});

test("special tokens are left out, or shown", async () => {
  const tokenizer = await loadTokenizer(FOLDER);
  const ids = tokenizer.encode("hi<|im_end|> there", { addSpecialTokens: false });
  for (const [skip, want] of [
    [true, "hi there"],
    [false, "hi<|im_end|> there"],
  ] as const) {
    const stream = textStream(tokenizer, [], skip);
    assert.equal(ids.map((id) => stream.push(id, true).text).join("") + stream.end(), want);
  }
});
