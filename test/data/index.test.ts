import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { dataset, type ImageText } from "vitrine/data";

const SPLITS = ["train", "validation", "test"] as const;
const NAMES = ["emoji", "emoji-noto"] as const;
const readme = () => readFile(join(__dirname, "../../data/README.md"), "utf8");

test("dataset() has as many rows as data/README.md says", async () => {
  const text = await readme();
  for (const name of NAMES)
    for (const skinTones of [false, true]) {
      const counts = await Promise.all(
        [...SPLITS, "all" as const].map(async (split) => (await dataset(name, { split, skinTones })).length),
      );
      assert.equal(counts[0] + counts[1] + counts[2], counts[3]);
      const row = `| \`${name}\` | ${skinTones ? "yes" : "no"} | ${counts.map((n) => n.toLocaleString("en")).join(" | ")} |`;
      assert.ok(text.includes(row), `data/README.md lacks the row ${row}`);
    }
});

test("dataset() has no base, caption or picture on two sides, and none twice", async () => {
  for (const name of NAMES) {
    const owner = new Map<string, string>();
    const pictures = new Map<string, string>();
    for (const split of SPLITS)
      for (const row of await dataset(name, { split, skinTones: true })) {
        assert.equal(owner.get(row.base) ?? split, split);
        owner.set(row.base, split);
        assert.ok(!owner.has(`caption ${row.caption}`), row.caption);
        owner.set(`caption ${row.caption}`, split);
        const hash = createHash("sha256")
          .update((await row.image()).data)
          .digest("hex");
        assert.equal(pictures.get(hash), undefined, `${row.caption} has the picture of ${pictures.get(hash)}`);
        pictures.set(hash, row.caption);
      }
  }
});

test("dataset() gives the same rows in both styles and languages where a style has the emoji", async () => {
  const options = { split: "test" } as const;
  const [twemoji, noto] = [await dataset("emoji", options), await dataset("emoji-noto", options)];
  const text = ({ image, ...rest }: ImageText) => rest;
  const ids = new Set(noto.map(({ id }) => id));
  assert.deepEqual(twemoji.filter(({ id }) => ids.has(id)).map(text), noto.map(text));
  const chinese = await dataset("emoji", { ...options, language: "zh" });
  assert.deepEqual(
    chinese.map(({ id }) => id),
    twemoji.map(({ id }) => id),
  );
  assert.notDeepEqual(
    chinese.map(({ caption }) => caption),
    twemoji.map(({ caption }) => caption),
  );
});

test("dataset() with skinTones adds toned emoji and nothing else", async () => {
  const [plain, toned] = [await dataset("emoji", { split: "test" }), await dataset("emoji", { split: "test", skinTones: true })];
  assert.ok(plain.every((row) => !row.toned));
  assert.deepEqual(
    toned.filter((row) => !row.toned).map(({ id }) => id),
    plain.map(({ id }) => id),
  );
  assert.ok(toned.filter((row) => row.toned).every((row) => / skin tone/.test(row.caption)));
});

test("image() shows what the caption says: colours of the drawings' own fills at the centre, white corners", async () => {
  const rows = await dataset("emoji", { split: "all" });
  const folder = dirname(require.resolve("@twemoji/svg/package.json"));
  for (const [caption, file, fill] of [
    ["red heart", "2764", "#DD2E44"],
    ["blue circle", "1f535", "#55ACEE"],
    ["green square", "1f7e9", "#78B159"],
  ]) {
    assert.ok((await readFile(join(folder, `${file}.svg`), "utf8")).toUpperCase().includes(`FILL="${fill}"`));
    const { width, height, data } = await rows.find((row) => row.caption === caption)!.image();
    assert.deepEqual([width, height, data.length], [64, 64, 64 * 64 * 3]);
    const hex = (i: number) =>
      `#${Buffer.from(data.subarray(3 * i, 3 * i + 3))
        .toString("hex")
        .toUpperCase()}`;
    assert.equal(hex(32 * 64 + 32), fill, caption);
    for (const corner of [0, 63, 63 * 64, 64 * 64 - 1]) assert.equal(hex(corner), "#FFFFFF", caption);
  }
});

test("dataset() names every unknown word and the one that was meant", async () => {
  const wrong = { splt: "trian", language: "cn", size: 3.5, skinTones: "yes" } as never;
  await assert.rejects(dataset("emojis" as never, wrong), (error: Error) => {
    for (const part of [
      /"emojis" is not a data set.*mean "emoji"/,
      /"splt" is not an option.*mean "split"/,
      /split is missing/,
      /"cn" is not a language/,
      /size is 3\.5, expected whole pixels from 8 to 1024/,
      /skinTones is "yes", expected true or false/,
    ])
      assert.match(error.message, part);
    return true;
  });
  await assert.rejects(
    dataset("emoji", { split: "tset" as never }),
    /"tset" is not a split; did you mean "test"\? \(train, validation, test, all\)/,
  );
  await assert.rejects(dataset("emoji", undefined as never), /split is missing/);
});

test("data/README.md has the SHA-256 of every part, and the installed parts are those", async () => {
  const text = await readme();
  const modules = dirname(dirname(dirname(require.resolve("@twemoji/svg/package.json"))));
  const sum = (parts: Uint8Array[]) => parts.reduce((hash, part) => hash.update(part), createHash("sha256")).digest("hex");
  const files = ["@svgmoji/noto/sprites/all.svg", "emojibase-data/meta/groups.json"];
  for (const language of ["en", "zh"]) files.push(`emojibase-data/${language}/data.json`, `emojibase-data/${language}/messages.json`);
  for (const file of files) assert.ok(text.includes(`\`${file}\` | \`${sum([await readFile(join(modules, file))])}\``), file);
  const drawings = (await readdir(join(modules, "@twemoji/svg"))).filter((name) => name.endsWith(".svg")).sort();
  const parts = await Promise.all(drawings.map((name) => readFile(join(modules, "@twemoji/svg", name))));
  assert.ok(text.includes(`\`${sum(parts)}\``), "@twemoji/svg");
});
