import assert from "node:assert/strict";
import { before, test } from "node:test";
import { emojiEntries, SAME_PICTURE } from "vitrine/data/emoji";

let [english, chinese] = [[], []] as Awaited<ReturnType<typeof emojiEntries>>[];
before(async () => {
  [english, chinese] = await Promise.all([emojiEntries("en"), emojiEntries("zh")]);
});

test("emojiEntries() lists all emoji with their skin tones, each id and each caption once", () => {
  assert.equal(english.length, 3979);
  for (const entries of [english, chinese]) {
    assert.equal(new Set(entries.map(({ id }) => id)).size, entries.length);
    assert.equal(new Set(entries.map(({ caption }) => caption)).size, entries.length);
  }
});

test("emojiEntries() describes the same emoji in both languages", () => {
  const bones = (entries: typeof english) => entries.map(({ id, base, split, toned, emoji }) => ({ id, base, split, toned, emoji }));
  assert.deepEqual(bones(english), bones(chinese));
  const heart = { en: english.find(({ id }) => id === "2764")!, zh: chinese.find(({ id }) => id === "2764")! };
  assert.deepEqual([heart.en.caption, heart.en.group, heart.en.subgroup], ["red heart", "smileys & emotion", "hearts"]);
  assert.ok(heart.en.tags.includes("love"));
  const han = chinese.filter(({ caption }) => /\p{Script=Han}/u.test(caption)).length;
  assert.ok(han > 0.97 * chinese.length, `${han} of ${chinese.length} captions have Chinese characters`);
});

test("emojiEntries() names the right subgroup although two of them have one number in the messages", () => {
  const subgroup = (caption: string) => english.find((entry) => entry.caption === caption)!.subgroup;
  assert.equal(subgroup("doughnut"), "sweets & candy");
  assert.equal(subgroup("cow face"), "mammals");
  assert.equal(subgroup("regional indicator A"), "regional indicators");
});

test("emojiEntries() puts no base emoji on two sides, nor a skin tone, gender or twin apart from it", () => {
  const sides = new Map<string, Set<string>>();
  for (const { base, split } of english) sides.set(base, (sides.get(base) ?? new Set()).add(split));
  assert.ok([...sides.values()].every((splits) => splits.size === 1));
  const byId = new Map(english.map((entry) => [entry.id, entry]));
  for (const { id, base } of english) assert.equal(byId.get(base)!.base, base, id);
  for (const { id, caption, base } of english.filter(({ toned }) => toned)) {
    const plain = english.find((entry) => entry.base === base && !entry.toned)!;
    assert.equal(byId.get(id)!.split, plain.split, caption);
  }
  for (const [a, b] of SAME_PICTURE) assert.equal(byId.get(a)!.base, byId.get(b)!.base);
  const split = (caption: string) => english.find((entry) => entry.caption === caption)!.split;
  for (const role of ["cook", "judge", "astronaut", "singer"]) // three bases would all agree by chance in 2 of 3 cases each
    assert.deepEqual([split(`man ${role}`), split(`woman ${role}`)], [split(role), split(role)]);
});

test("emojiEntries() splits the bases 80 / 10 / 10 within four standard deviations", () => {
  const bases = english.filter(({ id, base }) => id === base);
  for (const [side, share] of [
    ["train", 0.8],
    ["validation", 0.1],
    ["test", 0.1],
  ] as const) {
    const count = bases.filter(({ split }) => split === side).length;
    const deviation = Math.sqrt(bases.length * share * (1 - share));
    assert.ok(Math.abs(count - share * bases.length) < 4 * deviation, `${side}: ${count} of ${bases.length}`);
  }
});
