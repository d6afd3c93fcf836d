/** Figures of a Q-Former's masks and attention. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Figure } from "vitrine/figures/figure";
import { qFormerAttention } from "vitrine/figures/qformer-attention";
import { maskGrids } from "vitrine/figures/qformer-masks";
import { meanOverHeads, queryHeads, querySheet } from "vitrine/figures/query-maps";
import { tinted } from "vitrine/figures/tinted";
import { tokenMaps } from "vitrine/figures/token-maps";
import { attentionPlaces } from "vitrine/models/qformer-masks";
import { noise, pattern, plain } from "./inputs";
import { matchesSnapshot } from "./snapshot";

type Layout = { images: object[]; annotations: { text: string }[]; shapes: { type: string; x0: number; y0: number }[] };
const layout = (figure: Figure) => figure.layout as Layout;
const texts = (figure: Figure) => layout(figure).annotations.map(({ text }) => text);

const HOSTILE = "<img src=x onerror=alert(1)> <b>&lt;</b> $\\alpha$\n";

/** One small figure of each kind, every text of it given. */
function everyFigure(text: string): Record<string, Figure> {
  const picture = plain(12, 8);
  const tokens = [text, "b"];
  return {
    maskGrids: maskGrids(
      [
        { name: text, places: attentionPlaces("generation", 2, 2), note: text },
        { name: "two", places: attentionPlaces("matching", 2, 2) },
      ],
      { queries: 2, tokens, title: text, before: attentionPlaces("generation", 2, 2) },
    ),
    qFormerAttention: qFormerAttention([pattern(2, 4), pattern(2, 4, 9)], { queries: 2, tokens, title: text }),
    queryHeads: queryHeads(pattern(2, 7), [2, 3], picture, { queries: [0, 6], title: text }),
    querySheet: querySheet(pattern(2, 7), [2, 3], picture, { title: text }),
    tokenMaps: tokenMaps(pattern(1, 7)[0].slice(0, 2), tokens, [2, 3], picture, { title: text, note: text }),
  };
}

for (const [name, figure] of Object.entries(everyFigure("a plain title")))
  test(`${name}() is the figure that was looked at`, () => matchesSnapshot(name, figure));

test("the Q-Former's figures escape the texts of data, leave their input alone and give plain data", () => {
  const [first, second] = [everyFigure(HOSTILE), everyFigure(HOSTILE)];
  assert.deepEqual(first, second);
  for (const [name, figure] of Object.entries(first)) {
    const json = JSON.stringify(figure);
    assert.ok(json.includes("&lt;img"), `${name}: the text is shown`);
    assert.doesNotMatch(json, /<(?!\/?b>|br>|\/?extra>)/, `${name}: only our own markup`);
    assert.doesNotMatch(json, /\$|&lt;\/?b>/, `${name}: no TeX, no half escaped tag`);
    assert.deepEqual(Object.keys(figure), ["data", "layout"]);
  }
});

test("the Q-Former's figures stay below the 1 MB that Jupyter lets through", () => {
  const photo = noise(700, 500);
  const tokens = Array.from({ length: 32 }, (_, i) => `token ${i}`);
  const large = {
    maskGrids: maskGrids(
      (["contrastive", "matching", "generation"] as const).map((name) => ({ name, places: attentionPlaces(name, 32, 32) })),
      { queries: 32, tokens, before: attentionPlaces("matching", 32, 32) },
    ),
    qFormerAttention: qFormerAttention(Array(12).fill(pattern(2, 64)), { queries: 32, tokens }),
    queryHeads: queryHeads(pattern(11, 257), [16, 16], photo),
    querySheet: querySheet(Array(12).fill(pattern(1, 257)[0].slice(0, 32)), [16, 16], photo),
  };
  for (const [name, figure] of Object.entries(large)) assert.ok(JSON.stringify(figure).length < 1_000_000, `${name} is too large`);
});

test("maskGrids() fills what is seen, outlines what differs, and refuses a mask of another size", () => {
  const generation = attentionPlaces("generation", 1, 2);
  const figure = maskGrids(
    [
      {
        name: "leak",
        places: [
          [1, 0, 0],
          [1, 1, 1],
          [1, 1, 1],
        ],
      },
    ],
    { queries: 1, tokens: ["a", "b"], before: generation },
  );
  assert.deepEqual((figure.data[0] as { z: number[][] }).z, [
    [0.4, 0, 0],
    [0.4, 0.8, 0.8],
    [0.4, 0.8, 0.8],
  ]);
  const outlined = layout(figure).shapes.filter(({ type }) => type === "rect");
  assert.deepEqual(
    outlined.map(({ x0, y0 }) => [x0 + 0.5, y0 + 0.5]),
    [[2, 1]],
  );
  assert.throws(() => maskGrids([{ name: "m", places: generation }], { queries: 2, tokens: ["a", "b"] }), {
    message: "maskGrids: m is 3x3, expected 4x4 (2 queries and 2 text tokens)",
  });
});

test("qFormerAttention() says how much of the looks crosses between queries and text", () => {
  const half = [
    [0.75, 0.25, 0],
    [0.5, 0.5, 0],
    [0.2, 0.3, 0.5],
  ];
  const figure = qFormerAttention([[half, half]], { queries: 1, tokens: ["a", "b"] });
  assert.deepEqual(texts(figure), ["layer 0 · queries → text 25 % · text → queries 35 %"]);
  assert.throws(
    () => qFormerAttention([[half]], { queries: 1, tokens: ["a", "b"], head: 1 }),
    /head is 1, expected a whole number from 0 to 0/,
  );
  assert.throws(() => qFormerAttention([[half]], { queries: 1, tokens: ["a"] }), /layer 0 is 3x3, expected 2x2/);
});

test("querySheet() and queryHeads() keep the class token apart", () => {
  const cross = [
    [
      [0.5, 0.5, 0],
      [0, 0.25, 0.75],
    ],
    [
      [0.1, 0.1, 0.8],
      [1, 0, 0],
    ],
  ];
  assert.deepEqual(Array.from(meanOverHeads(cross)[0]), [0.3, 0.3, 0.4]);
  const sheet = querySheet(cross, [1, 2], plain(4, 2));
  assert.deepEqual(texts(sheet), ["query 0", "max 0.4 · class 0.3", "query 1", "max 0.38 · class 0.5"]);
  const each = queryHeads(cross, [1, 2], plain(4, 2), { queries: [1] });
  assert.deepEqual(
    texts(each).filter((_, i) => i % 2 === 0),
    ["query 1 · mean", "head 0", "head 1"],
  );
  assert.throws(() => querySheet(cross, [2, 2], plain(4, 4)), /3 keys for a 2x2 grid, expected 5 \(class token and patches\)/);
  assert.throws(() => queryHeads(cross, [1, 2], plain(4, 2), { queries: [2] }), /query is 2, expected a whole number from 0 to 1/);
  assert.throws(() => tokenMaps([[1, 2, 3]], ["a", "b"], [1, 2], plain(4, 2)), /1 maps for 2 tokens/);
});

test("tinted() blends each cell's colour over its part of the picture, brightest at the largest weight", () => {
  const { data } = tinted(plain(2, 2, [100, 100, 100]), [0, 1, 0, 0.5], [2, 2], 1, 1);
  assert.deepEqual([...data.subarray(0, 6)], [68, 1, 84, 253, 231, 37]);
  assert.deepEqual([...tinted(plain(1, 1, [100, 100, 100]), [0], [1, 1], 0, 0.5).data], [84, 51, 92]);
});
