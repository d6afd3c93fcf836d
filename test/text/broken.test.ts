/** Tokenizer files of every family that talks, broken: an error at once, which names the file and the entry. */
import assert from "node:assert/strict";
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { readJson } from "vitrine/files/json";
import { loadTokenizer } from "vitrine/text/tokenizer";
import { ORACLE, scratch } from "../support/clip";
import { messageOf } from "../support/close";
import { folderOf, TALKERS } from "../support/talkers";

const FOLDERS: { [family: string]: string } = {
  ...Object.fromEntries(TALKERS.map((family) => [family, folderOf(family)])),
  minigpt4: join(folderOf("minigpt4"), "llama"),
  siglip: join(ORACLE, "siglip", "model"), // by its spiece.model alone, whatever a tokenizer.json says
};
const having = (file: string) =>
  Object.entries(FOLDERS).filter(
    ([family, folder]) => existsSync(join(folder, file)) && !(family === "siglip" && file === "tokenizer.json"),
  );

function copyOf(folder: string): string {
  const copy = join(scratch(), "model");
  cpSync(folder, copy, { recursive: true, filter: (path) => !/\.(safetensors|pth|bin)$/.test(path) });
  return copy;
}

/** Refused within so many seconds of this process. */
async function refused(folder: string, seconds: number, ...parts: (string | RegExp)[]): Promise<void> {
  const from = process.cpuUsage();
  await messageOf(() => loadTokenizer(folder), ...parts);
  assert.ok(process.cpuUsage(from).user < seconds * 1e6);
}

// biome-ignore lint/suspicious/noExplicitAny: a tokenizer.json is what its test makes of it
type Json = any;
const isUnigram = (json: Json): boolean => json.model.type === "Unigram";

const BREAKS: [what: string, change: (json: Json) => boolean | undefined, says: RegExp][] = [
  ["an unknown type", (json) => void (json.model.type = "Magic"), /model\.type: "Magic", expected BPE, WordPiece, Unigram/],
  [
    "a hole in the vocabulary",
    (json) => void json.added_tokens.push({ id: 100_000, content: "<far>", special: true }),
    /no token has id \d+ \(\d+ ids up to the largest, 100000, are free\)/,
  ],
  [
    "an id beyond 2^31",
    (json) => void json.added_tokens.push({ id: 2 ** 31, content: "<far>", special: true }),
    /"<far>" has id 2147483648, expected a whole number of 0 to 2147483647/,
  ],
  [
    "merges of unknown tokens",
    (json) => isUnigram(json) || void json.model.merges.unshift(["zz", "qq"]),
    /"zz" \+ "qq": not in the vocabulary/,
  ],
  [
    "a piece without a score",
    (json) => !isUnigram(json) || void (json.model.vocab[5] = ["x"]),
    /model\.vocab\[5\]: \["x"\], expected \[piece, score\]/,
  ],
  [
    "an unknown piece's place",
    (json) => !isUnigram(json) || void (json.model.unk_id = 1e6),
    /model\.unk_id: 1000000, expected null or the place/,
  ],
  [
    "a pattern without an end",
    (json) =>
      json.model.byte_fallback || // Llama's first steps are made anew, whatever the file says
      void (json.pre_tokenizer = { type: "Split", pattern: { Regex: "(a+)+$" }, behavior: "Removed", invert: true }),
    /a pattern in it takes exponential time/,
  ],
];

for (const [what, change, says] of BREAKS)
  test(`a tokenizer.json with ${what} is refused, in every family that has one`, async () => {
    let count = 0;
    for (const [family, from] of having("tokenizer.json")) {
      const folder = copyOf(from);
      const path = join(folder, "tokenizer.json");
      const json = readJson(path) as Json;
      if (change(json)) continue; // another kind of model
      writeFileSync(path, JSON.stringify(json));
      await refused(folder, /exponential/.test(says.source) ? 4 : 1, path, says).catch((error) =>
        assert.fail(`${family}: ${error.message}`),
      );
      count++;
    }
    assert.ok(count > 1);
  });

for (const file of ["tokenizer.model", "spiece.model"])
  test(`a ${file} that is cut off, empty, or a web page is refused by its name`, async () => {
    const all = having(file);
    assert.ok(all.length > 1);
    for (const [, from] of all) {
      const bytes = readFileSync(join(from, file));
      for (const broken of [bytes.subarray(0, bytes.length >> 1), bytes.subarray(0, 0), Buffer.from("<html>not found</html>")]) {
        const folder = copyOf(from);
        rmSync(join(folder, "tokenizer.json"), { force: true });
        writeFileSync(join(folder, file), broken);
        await refused(folder, 1, join(folder, file), /is not a usable (SentencePiece model|tokenizer)/);
      }
    }
  });
