/** Figures of what is inside a model: snapshots, hostile texts, sizes, and what each computes. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { ablationCheck } from "vitrine/figures/ablation-check";
import { activationLayers } from "vitrine/figures/activation-statistics";
import { attentionShares } from "vitrine/figures/attention-shares";
import type { Figure } from "vitrine/figures/figure";
import { gradCam, gradCamMap, gradCamOfPattern } from "vitrine/figures/grad-cam";
import { gradientRollout, gradientRolloutMap } from "vitrine/figures/gradient-rollout";
import { headView } from "vitrine/figures/head-view";
import { logitLensGrid } from "vitrine/figures/logit-lens";
import { modelView } from "vitrine/figures/model-view";
import { patchingMap } from "vitrine/figures/patching-map";
import { gridPlaces, spreadOver } from "vitrine/figures/picture-map";
import { attentionRollout } from "vitrine/figures/rollout";
import { tokenStrip } from "vitrine/figures/token-strip";
import { topWords, visualWords } from "vitrine/figures/visual-words";
import { whereItLooks } from "vitrine/figures/where-it-looks";
import { attentionShare, foldTokens, meanPattern } from "vitrine/inside/looks";
import { noise, pattern, plain, rows } from "./inputs";
import { matchesSnapshot } from "./snapshot";

const HOSTILE = "<img src=x onerror=alert(1)> <b>&lt;</b> $\\alpha$\n";
const picture = plain(12, 8);
/** A token that shows nothing, six tokens of a grid, a thumbnail's token over all of it. */
const image = {
  picture,
  start: 1,
  places: [undefined, ...gridPlaces([2, 3], picture), { left: 0, top: 0, width: 12, height: 8, tile: 1 }],
};
const shares = (n: number, width: number, seed = 1) =>
  pattern(1, Math.max(n, width), seed)[0]
    .slice(0, n)
    .map((row) => normal(row.slice(0, width)));
const normal = (row: number[]) => row.map((x) => x / row.reduce((a, b) => a + b, 0));
const numbers = { norm: 2, mean: 0.1, std: 1, max: 3, dead: 0.25 };

function everyFigure(text: string): Record<string, Figure> {
  return {
    headView: headView([pattern(2, 4), pattern(2, 4, 5)], [text, "a", "a", "cat"], { title: text }),
    modelView: modelView([pattern(2, 4), pattern(2, 4, 5)], { title: text }),
    gradientRolloutMap: gradientRolloutMap([pattern(2, 7)], [pattern(2, 7, 9)], [2, 3], { picture, title: text }),
    gradCamMap: gradCamMap(gradCam(rows(7, 4), rows(7, 4, 3)), [2, 3], { picture, title: text }),
    whereItLooks: whereItLooks(shares(2, 12), [text, "b"], image, { title: text }),
    attentionShares: attentionShares(shares(2, 12), [text, "b"], { length: 11, images: [{ start: 1, end: 9 }] }, { title: text }),
    tokenStrip: tokenStrip([text, "p", "p", " b", "\n"], { labels: [-100, -100, -100, 5, 6], images: [{ start: 1, end: 3 }], title: text }),
    logitLensGrid: logitLensGrid({ texts: [[[text, "b"]], [["c", text]]], probabilities: [[[0.5, 0.25]], [[0.75, 0.125]]] }, [text], {
      title: text,
    }),
    visualWords: visualWords(shares(7, 9), image, { title: text, names: () => text }),
    activationLayers: activationLayers(
      [
        { name: `vision.blocks.0.resid_post${text}`, ...numbers },
        { name: "vision.blocks.1.mlp.post", ...numbers },
        { name: "vision.out", ...numbers },
      ],
      { title: text },
    ),
    patchingMap: patchingMap(
      {
        base: 1,
        source: 3,
        names: ["blocks.0.resid_pre", "blocks.1.resid_pre"],
        positions: [[0], [1]],
        values: [
          [1, 2],
          [3, 0],
        ],
      },
      [text, "b"],
      { measure: text, title: text },
    ),
    ablationCheck: ablationCheck([{ label: text, intact: -1, chosen: -3, random: [-1.5, -1, -3.5], size: 2, of: 8 }], {
      unit: text,
      title: text,
    }),
  };
}

for (const [name, figure] of Object.entries(everyFigure("a plain title")))
  test(`${name}() is the figure that was looked at`, () => matchesSnapshot(name, figure));

test("figures of the inside escape the texts of data, leave their input alone and give plain data", () => {
  for (const [name, figure] of Object.entries(everyFigure(HOSTILE))) {
    const json = JSON.stringify(figure);
    assert.ok(json.includes("&lt;img"), `${name}: the text is shown`);
    assert.doesNotMatch(json, /<(?!\/?b>|br>|\/?extra>)/, `${name}: only our own markup`);
    assert.doesNotMatch(json, /\$|&lt;\/?b>|&quot;/, `${name}: no TeX, no half escaped tag`);
    assert.deepEqual(Object.keys(figure), ["data", "layout"]);
  }
  assert.deepEqual(everyFigure("t"), everyFigure("t"));
});

test("figures of the inside stay below the 1 MB a second that Jupyter lets through", () => {
  const photo = noise(700, 500);
  const places = gridPlaces([32, 32], photo);
  const large: Record<string, Figure> = {
    headView: headView(Array(24).fill(pattern(14, 60)), Array(60).fill("token")),
    modelView: modelView(Array(24).fill(pattern(16, 257))),
    whereItLooks: whereItLooks(rows(32, 1100), Array(32).fill("token"), { picture: photo, start: 5, places }),
    attentionShares: attentionShares(rows(80, 300), Array(80).fill("token"), { length: 200, images: [{ start: 3, end: 90 }] }),
    tokenStrip: tokenStrip(Array(5000).fill("token")),
    logitLensGrid: logitLensGrid(
      {
        texts: Array(48).fill(Array(50).fill(Array(5).fill("a long token"))),
        probabilities: Array(48).fill(Array(50).fill(Array(5).fill(0.123456))),
      },
      Array(50).fill("token"),
    ),
    visualWords: visualWords(rows(1024, 64), { picture: photo, places }),
    patchingMap: patchingMap(
      {
        base: 0,
        source: 1,
        names: Array(48).fill("blocks.0.x"),
        positions: Array(200).fill([0]),
        values: Array(48).fill(Array(200).fill(0.123456)),
      },
      Array(200).fill("token"),
    ),
  };
  for (const [name, figure] of Object.entries(large)) {
    const size = JSON.stringify(figure).length;
    assert.ok(size < 1_000_000, `${name} has ${size} characters`);
  }
});

const traces = (figure: Figure) =>
  figure.data as { x: (number | null)[]; y: (number | null)[]; z: (number | null)[][]; name: string; text: string[] }[];

test("headView() draws a line for each weight of a head, stronger with more weight, and a step for each layer", () => {
  const layers = [[[[1, 0], [0.3, 0.7]]], [[[1, 0], [0.04, 0.96]]]]; // biome-ignore format: a matrix
  const figure = headView(layers, ["a", "b"], { layer: 0 });
  assert.deepEqual(
    traces(figure)
      .slice(0, 4)
      .map(({ x, y }) => [x, y]),
    [
      [[0, 1, null, 0, 1, null], [0, 0, null, 1, 1, null]],
      [[0, 1, null], [1, 0, null]],
      [[null], [null]],
      [[null], [null]],
    ], // biome-ignore format: a table
  );
  const { sliders } = figure.layout as { sliders: { active: number; steps: { args: [{ y: number[][] }] }[] }[] };
  assert.deepEqual([sliders[0].active, sliders[0].steps.length], [0, 2]);
  assert.deepEqual(sliders[0].steps[1].args[0].y[1], [null], "0.04 is below 5 %");
  assert.throws(() => headView([pattern(1, 65)], Array(65).fill("a")), /65 tokens, expected at most 64; fold pictures with foldTokens/);
  assert.throws(() => headView([pattern(1, 3)], ["a"]), /layer 0 is 3x3, the tokens are 1 that look and 1/);
});

test("modelView() lays layers down and heads across, each to its own largest weight", () => {
  const half = [[0.5, 0.5], [0.5, 0.5]]; // biome-ignore format: a matrix
  const eye = [[1, 0], [0, 1]]; // biome-ignore format: a matrix
  assert.deepEqual(
    traces(
      modelView([
        [eye, half],
        [half, eye],
      ]),
    )[0].z,
    [
      [100, 0, null, 100, 100],
      [0, 100, null, 100, 100],
      [null, null, null, null, null],
      [100, 100, null, 100, 0],
      [100, 100, null, 0, 100],
    ],
  );
});

test("gradientRollout() with gradients of 1 is attentionRollout(); what speaks against is left out", () => {
  const [a, b] = [pattern(2, 5), pattern(2, 5, 9)];
  const ones = a.map((head) => head.map((row) => row.map(() => 1)));
  assert.deepEqual(gradientRollout([a, b], [ones, ones], { headFusion: "max" }), attentionRollout([a, b], { headFusion: "max" }));
  const against = ones.map((head) => head.map((row) => row.map(() => -1)));
  const stays = gradientRollout([a], [against]);
  assert.deepEqual(
    stays.map((row) => [...row]),
    stays.map((_, i) => stays.map((_v, j) => (i === j ? 1 : 0))),
  );
  assert.throws(() => gradientRollout([a, b], [ones]), /1 layers of gradients for 2 of patterns/);
  assert.throws(() => gradientRollout([a], [pattern(2, 4)]), /layer 0 has a pattern of 2x5x5 and a gradient of 2x4x4/);
});

test("gradCam() and gradCamOfPattern() by hand", () => {
  // mean gradients 1 and -2: token 0 gives 3 - 2 = 1, token 1 gives 1 - 8 < 0
  assert.deepEqual([...gradCam([[3, 1], [1, 4]], [[2, -4], [0, 0]])], [1, 0]); // biome-ignore format: matrices
  const cam = gradCamOfPattern([[[0.5, 0.5]], [[0.2, 0.8]]], [[[2, -1]], [[1, 1]]]); // biome-ignore format: matrices
  assert.deepEqual(
    [...cam[0]].map((x) => Number(x.toFixed(9))),
    [0.6, 0.4],
  );
  assert.throws(() => gradCam([[1]], [[1, 2]]), /activation is 1x1, gradient 1x2/);
});

test("spreadOver() lays weights by area, keeps their sum, and leaves out what shows nothing of the picture", () => {
  const size = { width: 4, height: 2 };
  const whole = { left: 0, top: 0, width: 4, height: 2, tile: 0 };
  const even = spreadOver([0.5], [whole], size, 4);
  assert.deepEqual(even.cells.map((row) => [...row]), [[1, 1, 1, 1], [1, 1, 1, 1]]); // biome-ignore format: a matrix
  // half of the second token lies on padding left of the picture; the third shows nothing
  const map = spreadOver([0.5, 0.25, 0.25], [whole, { left: -1, top: 0, width: 2, height: 2, tile: 0 }, undefined], size, 4);
  assert.deepEqual([map.total, map.onPicture], [1, 0.625]);
  assert.deepEqual(map.cells.map((row) => [...row]), [[1, 0.5, 0.5, 0.5], [1, 0.5, 0.5, 0.5]]); // biome-ignore format: a matrix
  // tokens finer and coarser than cells
  const fine = spreadOver(Array(24).fill(1 / 24), gridPlaces([4, 6], size), size, 4);
  for (const x of fine.cells.flatMap((row) => [...row])) assert.ok(Math.abs(x - 1) < 1e-12);
  assert.throws(() => spreadOver([1, 2], [undefined], size), /2 weights for 1 image tokens/);
});

test("whereItLooks() shows the mean first, then each token with its share on the picture", () => {
  const places = gridPlaces([1, 2], { width: 4, height: 2 });
  const figure = whereItLooks(
    [[0.4, 0.6, 0, 0], [0.4, 0, 0.2, 0.4]], // biome-ignore format: a matrix
    ["a", "b"],
    { picture: plain(4, 2), start: 1, places },
  );
  const [mean, a, b] = traces(figure).map(({ z }) => [z[0][0], z[0].at(-1)]);
  assert.deepEqual([mean, a, b], [[1.5, 0.5], [2, 0], [0, 2]]); // biome-ignore format: a matrix
  const { annotations } = figure.layout as { annotations: { text: string }[] };
  assert.deepEqual(
    annotations.map(({ text }) => text),
    ["mean of all · 40 %", "a · 60 %", "b · 20 %"],
  );
  assert.throws(
    () => whereItLooks([[1, 0]], ["a", "b"], { picture: plain(4, 2), start: 1, places }),
    /2 tokens for 1 rows; the picture's tokens reach to 3, the rows have 2 keys/,
  );
});

test("meanPattern(), foldTokens() and attentionShare() keep rows that sum to 1", () => {
  const layers = [pattern(2, 6), pattern(2, 6, 7)];
  const sum = (row: ArrayLike<number>) => Array.from(row).reduce((a, b) => a + b, 0);
  for (const row of meanPattern(layers)) assert.ok(Math.abs(sum(row) - 1) < 1e-12);
  assert.deepEqual([...meanPattern(layers, { layers: [1], heads: [0] })[2]], layers[1][0][2]);
  const folded = foldTokens(layers, [..."abcdef"], [{ start: 1, end: 4, label: "picture" }]);
  assert.deepEqual(folded.tokens, ["a", "picture", "e", "f"]);
  for (const row of folded.layers.flat(2)) assert.ok(Math.abs(sum(row) - 1) < 1e-12);
  const [share] = attentionShare([[0.1, 0.2, 0.3, 0.15, 0.25]], { length: 4, images: [{ start: 1, end: 3 }] });
  assert.deepEqual(share, { pictures: [0.5], sink: 0.1, text: 0.15, answer: 0.25 });
  assert.throws(() => meanPattern(layers, { heads: [2] }), /heads 2, expected whole numbers from 0 to 1/);
  assert.throws(() => foldTokens(layers, [..."abcdef"], [{ start: 4, end: 9 }]), /span 4 to 9 of 6 tokens/);
});

test("tokenStrip() folds pictures and colours what is trained", () => {
  const figure = tokenStrip(["a", "x", "x", "b c"], { labels: [-100, -100, -100, 7], images: [{ start: 1, end: 3 }] });
  assert.deepEqual(traces(figure)[0].text, ["a", "⟨picture 1 × 2⟩", "b·c"]);
  const { shapes } = figure.layout as { shapes: { fillcolor: string }[] };
  assert.equal(new Set(shapes.map(({ fillcolor }) => fillcolor)).size, 3);
  assert.throws(() => tokenStrip(["a"], { labels: [1, 2] }), /2 labels for 1 tokens/);
});

test("topWords() by hand: entropy in nats, words by falling share", () => {
  const [sure, spread] = topWords([[0, 1, 0, 0], [0.25, 0.25, 0.25, 0.25]], 2); // biome-ignore format: a matrix
  assert.deepEqual(sure, { entropy: 0, words: [{ word: 1, share: 1 }, { word: 0, share: 0 }] }); // biome-ignore format: short
  assert.ok(Math.abs(spread.entropy - Math.log(4)) < 1e-12);
  assert.deepEqual(
    spread.words.map(({ word }) => word),
    [0, 1],
  );
  assert.throws(() => visualWords(rows(3, 4), image), /3 rows for 7 tokens that show a part of the picture/);
});

test("patchingMap() measures the way from base to source", () => {
  const patched = {
    base: 2,
    source: 6,
    names: ["blocks.0.z", "blocks.1.z"],
    positions: [[0], [1]],
    values: [
      [2, 6],
      [4, 0],
    ],
  };
  assert.deepEqual(traces(patchingMap(patched, ["a", "b"]))[0].z, [[0, 1], [0.5, -0.5]]); // biome-ignore format: a matrix
  const same = { ...patched, source: 2 };
  assert.deepEqual(traces(patchingMap(same, ["a", "b"]))[0].z, [[0, 4], [2, -2]]); // biome-ignore format: a matrix
  assert.equal(traces(patchingMap({ ...patched, values: [[2, 6], [4]] }, ["a", "b"]))[0].z.length, 1);
  assert.throws(() => patchingMap({ ...patched, values: [[2]] }, ["a", "b"]), /no layer is complete/);
});
