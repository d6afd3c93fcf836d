import assert from "node:assert/strict";
import { test } from "node:test";
import { captionsOf, type Captioned, trainingCaption } from "vitrine/data/captions";
import { random } from "vitrine/data/random";

const cow: Captioned = {
  caption: "cow face",
  tags: ["animal", "farm", "milk", "moo"],
  subgroup: "mammals",
  group: "animals & nature",
  language: "en",
};
const heart: Captioned = { caption: "红心", tags: ["心", "爱"], subgroup: "心", group: "笑脸", language: "zh" };
const flag: Captioned = { caption: "flag: Norway", tags: [], subgroup: "country flags", group: "flags", language: "en" };

test("captionsOf() begins with the name and repeats nothing", () => {
  assert.deepEqual(captionsOf(cow), [
    "cow face",
    "cow face, animal, farm, milk, moo",
    "a picture of cow face",
    "a drawing of cow face",
    "an emoji of cow face",
    "cow face, mammals",
    "cow face, animals & nature",
  ]);
  assert.deepEqual(captionsOf(heart).slice(0, 3), ["红心", "红心，心，爱", "一张红心的图片"]);
  assert.equal(captionsOf(flag).length, 6); // without tags the second is the first
  assert.ok(captionsOf(flag).includes("a picture of the flag of Norway"));
});

test("trainingCaption() depends only on the seed and always says the name", () => {
  const draws = (seed: number, of: Captioned) => {
    const next = random(seed);
    return Array.from({ length: 2000 }, () => trainingCaption(of, next));
  };
  assert.deepEqual(draws(1, cow), draws(1, cow));
  assert.notDeepEqual(draws(1, cow), draws(2, cow));
  assert.ok(draws(1, cow).every((caption) => caption.includes("cow face")));
  assert.ok(draws(1, heart).every((caption) => caption.includes("红心")));
  assert.ok(draws(1, flag).every((caption) => caption.includes("Norway") && !caption.endsWith(", ")));
});

test("trainingCaption() draws its kinds as often as it says", () => {
  const next = random(9);
  const draws = Array.from({ length: 10_000 }, () => trainingCaption(cow, next));
  const share = (kind: (caption: string) => boolean) => draws.filter(kind).length / draws.length;
  const near = (value: number, expected: number) => assert.ok(Math.abs(value - expected) < 0.025, `${value}, expected ${expected}`); // 5 sd
  near(
    share((caption) => caption === "cow face"),
    0.4,
  );
  near(
    share((caption) => /^cow face(, (animal|farm|milk|moo)){1,3}$/.test(caption)),
    0.3,
  );
  near(
    share((caption) => / of cow face$/.test(caption)),
    0.2,
  );
  near(
    share((caption) => caption === "cow face, mammals"),
    0.1,
  );
});
