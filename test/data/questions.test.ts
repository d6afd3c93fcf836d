/** Colours by name, scenes of several emoji, and the questions that they answer. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { colourName, mainColour } from "vitrine/data/colours";
import { dataset } from "vitrine/data/index";
import { compose, drawn, NOTHING, placeName, scatter, single, turnsOf } from "vitrine/data/questions";
import { random } from "vitrine/data/random";
import type { Picture } from "vitrine/image/picture";
import { messageOf } from "../support/close";

const plain = (side: number, ...[r, g, b]: number[]): Picture => ({
  width: side,
  height: side,
  data: Uint8Array.from({ length: side * side * 3 }, (_, i) => [r, g, b][i % 3]),
});
const thing = (caption: string, ...colour: number[]) => drawn({ caption, group: "objects", toned: false }, plain(8, ...colour));

test("colourName() names Twemoji's palette as people do", () => {
  const palette = {
    red: [0xdd, 0x2e, 0x44],
    orange: [0xf4, 0x90, 0x0c],
    yellow: [0xff, 0xcc, 0x4d],
    green: [0x77, 0xb2, 0x55],
    blue: [0x55, 0xac, 0xee],
    purple: [0xaa, 0x8d, 0xd8],
    pink: [0xf4, 0xab, 0xba],
    brown: [0xc1, 0x69, 0x4f],
    black: [0x29, 0x2f, 0x33],
    grey: [0x99, 0xaa, 0xb5],
    white: [0xe1, 0xe8, 0xed],
  };
  for (const [name, [r, g, b]] of Object.entries(palette)) assert.equal(colourName(r, g, b), name);
  assert.equal(colourName(255, 255, 255), undefined, "paper");
});

test("mainColour() gives the colour of at least half of what is drawn, or none", async () => {
  assert.equal(mainColour(plain(4, 255, 255, 255)), undefined);
  assert.equal(mainColour(plain(4, 200, 30, 30)), "red");
  const [left, right] = [plain(2, 200, 30, 30).data, plain(2, 30, 30, 200).data];
  const third = plain(2, 30, 200, 30).data;
  assert.equal(mainColour({ width: 2, height: 6, data: Uint8Array.from([...left, ...right, ...third]) }), undefined);
  const rows = await dataset("emoji", { split: "all" });
  const colourOf = async (caption: string) => mainColour(await rows.find((row) => row.caption === caption)!.image());
  const known = {
    "red apple": "red",
    "green apple": "green",
    frog: "green",
    "blue heart": "blue",
    carrot: "orange",
    "grinning face": "yellow",
  };
  for (const [caption, colour] of Object.entries(known)) assert.equal(await colourOf(caption), colour, caption);
});

test("compose() puts emoji into cells row by row, and turnsOf() asks what the scene answers", async () => {
  const [red, blue] = [thing("ball", 200, 30, 30), thing("box", 30, 30, 200)];
  const scene = compose([red, undefined, undefined, blue], { rows: 2, columns: 2, side: 4 });
  assert.deepEqual([scene.picture.width, scene.picture.height], [8, 8]);
  const at = (x: number, y: number) => [...scene.picture.data.slice((y * 8 + x) * 3, (y * 8 + x) * 3 + 3)];
  assert.deepEqual(
    [at(0, 0), at(7, 0), at(7, 7)],
    [
      [200, 30, 30],
      [255, 255, 255],
      [30, 30, 200],
    ],
  );
  assert.deepEqual(
    turnsOf(scene).map(({ question, answer }) => [question, answer]),
    [
      ["How many are there?", "two"],
      ["What colour is the one at the top left?", "red"],
      ["What colour is the one at the top right?", NOTHING],
      ["What colour is the one at the bottom left?", NOTHING],
      ["What colour is the one at the bottom right?", "blue"],
    ],
  );
  const alone = turnsOf(single(red)).map(({ topic, answer }) => [topic, answer]);
  assert.deepEqual(alone, [
    ["count", "one"],
    ["caption", "ball"],
    ["kind", "objects"],
    ["colour", "red"],
  ]);
  assert.deepEqual(
    [0, 1].map((i) => placeName(i, { rows: 1, columns: 2 })),
    ["left", "right"],
  );
  assert.deepEqual(
    [0, 1].map((i) => placeName(i, { rows: 2, columns: 1 })),
    ["top", "bottom"],
  );
  await messageOf(() => compose([red], { rows: 2, columns: 2, side: 4 }), "1 cells for a grid of 2 x 2, expected 4");
  const many = scatter([red, blue, red], { rows: 2, columns: 2, side: 4 }, random(0));
  assert.equal(many.cells.filter(Boolean).length, 3);
  await messageOf(() => scatter([red, blue, red], { rows: 1, columns: 2, side: 4 }, random(0)), "3 emoji do not fit a grid of 1 x 2");
});
