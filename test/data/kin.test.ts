import assert from "node:assert/strict";
import { test } from "node:test";
import { baseIds, neutralId, plainId, splitOf } from "vitrine/data/kin";

test("plainId() drops U+FE0F, pads to four digits and writes capitals", () => {
  assert.equal(plainId("2764-fe0f"), "2764");
  assert.equal(plainId("31-20e3"), "0031-20E3");
  assert.equal(plainId("0031-FE0F-20E3"), "0031-20E3");
});

test("neutralId() drops skin tone, gender and direction, and keeps what is something else", () => {
  assert.equal(neutralId("1F469-1F3FD-200D-1F373"), "1F9D1-200D-1F373"); // woman cook: cook
  assert.equal(neutralId("1F3C3-1F3FB-200D-2640-FE0F-200D-27A1-FE0F"), "1F3C3"); // woman running, facing right
  assert.equal(neutralId("1F468-200D-1F469-200D-1F467"), "1F9D1-200D-1F9D1-200D-1F9D2"); // family: adult, adult, child
  assert.equal(neutralId("2640-FE0F"), "2640"); // the sign itself
  assert.equal(neutralId("1F3FD"), "1F3FD"); // the swatch itself
  assert.equal(neutralId("2764-FE0F-200D-1F525"), "2764-200D-1F525"); // heart on fire
});

test("baseIds() joins kin through any of their forms, and twins", () => {
  const kiss = ["1F48F", "1F9D1-1F3FB-200D-2764-FE0F-200D-1F48B-200D-1F9D1-1F3FC"];
  const womanManKiss = ["1F469-200D-2764-FE0F-200D-1F48B-200D-1F468"];
  const bases = baseIds([["1F600"], kiss, womanManKiss, ["1F1F3-1F1F4"], ["1F1F8-1F1EF"]], [["1F1F8-1F1EF", "1F1F3-1F1F4"]]);
  assert.equal(bases.get(womanManKiss[0]), "1F48F");
  assert.equal(bases.get(kiss[1]), "1F48F");
  assert.equal(bases.get("1F1F8-1F1EF"), "1F1F3-1F1F4");
  assert.equal(bases.get("1F600"), "1F600");
  assert.throws(() => baseIds([["1F600"]], [["1F600", "1F601"]]), /twins 1F600 and 1F601 are not both/);
});

test("splitOf() is the first 32 bits of SHA-256 as a fraction, cut at 0.8 and 0.9", () => {
  // int(hashlib.sha256(id).hexdigest()[:8], 16) / 2**32 of Python: 0.649, 0.873, 0.956, 0.623
  const sides = ["1F600", "2764", "1F643", "1F9D1-200D-1F373"].map(splitOf);
  assert.deepEqual(sides, ["train", "validation", "test", "train"]);
});
