import assert from "node:assert/strict";
import { test } from "node:test";
import { attentionHeads } from "vitrine/figures/attention-heads";
import { attentionMap } from "vitrine/figures/attention-map";
import { attentionOver } from "vitrine/figures/attention-over";
import { embeddingMap } from "vitrine/figures/embedding-map";
import type { Figure } from "vitrine/figures/figure";
import { imageFigure, imageGrid } from "vitrine/figures/image-grid";
import { lossCurve } from "vitrine/figures/loss-curve";
import { patchGrid } from "vitrine/figures/patch-grid";
import { patchPca } from "vitrine/figures/patch-pca";
import { patchSimilarity } from "vitrine/figures/patch-similarity";
import { positionSimilarity } from "vitrine/figures/position-similarity";
import { retrievalGallery } from "vitrine/figures/retrieval-gallery";
import { rolloutMap } from "vitrine/figures/rollout";
import { similarityMatrix } from "vitrine/figures/similarity-matrix";
import { tileLayout } from "vitrine/figures/tile-layout";
import { zeroShotBars } from "vitrine/figures/zero-shot-bars";
import { tileProcessor } from "vitrine/image/tiles";
import { noise, pattern, plain, rows } from "./inputs";
import { matchesSnapshot } from "./snapshot";

type Trace = { type: string; z: number[][]; x: number[]; y: number[]; text: string[]; customdata: string[]; zmin: number; zmax: number };
type Step = { args: [{ z: number[][][] }, Record<string, number>, number[]]; label: string };
type Layout = {
  title: { text: string; subtitle?: { text: string } };
  images: { source: string }[];
  annotations: { text: string }[];
  sliders: { active: number; steps: Step[] }[];
  updatemenus: { x: number; y: number; buttons: Step[] }[];
  shapes: Record<string, number>[];
};
const traces = (figure: Figure) => figure.data as Trace[];
const layout = (figure: Figure) => figure.layout as Layout;

/** What a hostile data set may hold: plotly reads markup, MathJax reads dollars, and both read newlines. */
const HOSTILE = "<img src=x onerror=alert(1)> <b>&lt;</b> $\\alpha$\n";

/** InternVL's way of cutting: a grid, and a thumbnail last. */
const tiles = tileProcessor({
  view: {
    ...{ pad: false, resizeTo: { height: 8, width: 8 }, size: { height: 8, width: 8 }, filter: "bicubic", scale: 1 / 255 },
    ...{ mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], squeeze: 0, backend: "pil", alpha: "white" },
  },
  scheme: { name: "internvl", crop_to_patches: true, min_patches: 1, max_patches: 12, use_thumbnail: true, pad2square: false },
});

/** One small figure of every kind, every text of it hostile. */
function everyFigure(text: string): Record<string, Figure> {
  const picture = plain(12, 8);
  const loss = Array.from({ length: 40 }, (_, i) => ({
    step: i + 1,
    loss: i === 7 ? NaN : 4 - i / 16,
    learningRate: 1e-4 * (1 - i / 40),
    gradNorm: 1 + (i % 3),
  }));
  return {
    imageFigure: imageFigure(picture, { title: text }),
    imageGrid: imageGrid([picture, plain(6, 6), plain(5, 9)], { titles: [text, "two", "three"], title: text }),
    patchGrid: patchGrid(picture, [2, 3], { title: text }),
    patchPca: patchPca(rows(6, 5), [2, 3], picture, { title: text }),
    patchSimilarity: patchSimilarity(rows(6, 5), [2, 3], picture, { title: text }),
    positionSimilarity: positionSimilarity(rows(6, 5), [2, 3], { title: text }),
    attentionHeads: attentionHeads(pattern(2, 4), { tokens: [text, "a", "a", "cat"], title: text }),
    attentionMap: attentionMap(pattern(1, 7)[0][0], [2, 3], { picture, title: text }),
    attentionOver: attentionOver(pattern(2, 7), [2, 3], picture, { title: text }),
    rolloutMap: rolloutMap([pattern(2, 7), pattern(2, 7, 5)], [2, 3], { picture, title: text }),
    embeddingMap: embeddingMap(rows(4, 2), {
      groups: [text, "b", "b", text],
      labels: [text, "l", "m", "n"],
      pictures: Array(4).fill(picture),
      title: text,
    }),
    similarityMatrix: similarityMatrix(rows(2, 3), [text, "two"], [picture, picture, picture], { title: text, unit: text }),
    lossCurve: lossCurve(loss, { title: text }),
    retrievalGallery: retrievalGallery(
      [
        {
          query: text,
          results: [
            { picture, score: 0.5, correct: true },
            { picture, score: 0.25 },
          ],
        },
      ],
      { title: text },
    ),
    tileLayout: tileLayout(picture, tiles.tile(picture), { tokens: 64, title: text }),
    zeroShotBars: zeroShotBars(
      picture,
      [
        { label: text, score: 0.75 },
        { label: "b", score: 0.25 },
      ],
      { correct: text, title: text },
    ),
  };
}

for (const [name, figure] of Object.entries(everyFigure("a plain title")))
  test(`${name}() is the figure that was looked at`, () => matchesSnapshot(name, figure));

test("every figure escapes the texts of data", () => {
  for (const [name, figure] of Object.entries(everyFigure(HOSTILE))) {
    const json = JSON.stringify(figure);
    assert.ok(json.includes("&lt;img"), `${name}: the text is shown`);
    assert.doesNotMatch(json, /<(?!\/?b>|br>|\/?extra>)/, `${name}: only our own markup`);
    assert.doesNotMatch(json, /\$|&lt;\/?b>/, `${name}: no TeX, no half escaped tag`);
  }
});

test("every figure leaves its input alone and gives plain data", () => {
  const [first, second] = [everyFigure("t"), everyFigure("t")];
  assert.deepEqual(first, second);
  for (const figure of Object.values(first)) assert.deepEqual(Object.keys(figure), ["data", "layout"]);
});

test("every figure stays below the 1 MB a second that Jupyter lets through", () => {
  const photo = noise(700, 500);
  const large: Record<string, Figure> = {
    imageFigure: imageFigure(photo),
    imageGrid: imageGrid(Array(120).fill(noise(80, 60))),
    patchGrid: patchGrid(photo, [32, 32]),
    patchPca: patchPca(rows(576, 16), [24, 24], photo),
    tileLayout: tileLayout(photo, tiles.tile(photo), { tokens: 256 }),
    patchSimilarity: patchSimilarity(rows(576, 16), [24, 24], photo),
    positionSimilarity: positionSimilarity(rows(576, 16), [24, 24]),
    attentionHeads: attentionHeads(pattern(16, 257)),
    attentionOver: attentionOver(pattern(16, 577), [24, 24], photo),
    embeddingMap: embeddingMap(rows(20_000, 2), {
      pictures: Array(20_000).fill(noise(40, 40)),
      labels: Array(20_000).fill("a caption of usual length"),
    }),
    similarityMatrix: similarityMatrix(rows(40, 40), Array(40).fill("a caption of usual length"), Array(40).fill(noise(60, 60))),
    lossCurve: lossCurve(rows(100_000, 2).map(([loss, gradNorm], step) => ({ step, loss, gradNorm, learningRate: 1e-4 }))),
    retrievalGallery: retrievalGallery(Array(12).fill({ query: "q", results: Array(8).fill({ picture: noise(99, 99), score: 0.3 }) })),
  };
  for (const [name, figure] of Object.entries(large)) {
    const size = JSON.stringify(figure).length;
    assert.ok(size < 1_000_000, `${name} has ${size} characters`);
  }
});

test("attentionMap() puts the weights of the patches in their places", () => {
  assert.deepEqual(traces(attentionMap([0.2, 0.1, 0.2, 0.3, 0.2], [2, 2]))[0].z, [
    [0.1, 0.2],
    [0.3, 0.2],
  ]);
  assert.throws(() => attentionMap([0.5, 0.5], [2, 2]), {
    message: "attentionMap: 2 weights for a 2x2 grid, expected 5 ([CLS] and the patches)",
  });
});

test("attentionOver() shows the mean of the heads first", () => {
  const figure = attentionOver(
    [
      [
        [0, 0.2, 0.8],
        [1, 0, 0],
        [1, 0, 0],
      ],
      [
        [0, 0.6, 0.4],
        [1, 0, 0],
        [1, 0, 0],
      ],
    ],
    [1, 2],
    plain(4, 2),
  );
  assert.deepEqual(
    traces(figure).map((trace) => trace.z),
    [[[0.4, 0.6]], [[0.2, 0.8]], [[0.6, 0.4]]],
  );
  assert.throws(() => attentionOver(pattern(2, 5), [2, 2], plain(4, 4), { heads: [2] }), /head is 2, expected a whole number from 0 to 1/);
  assert.throws(() => attentionOver(pattern(2, 4), [2, 2], plain(4, 4)), /4 keys for a 2x2 grid, expected 5/);
});

test("attentionHeads() averages a pattern of 4096 x 4096 and says so", () => {
  const row = new Float32Array(4096).fill(1 / 4096);
  const figure = attentionHeads([Array(4096).fill(row)]);
  const { z, x } = traces(figure)[0];
  assert.equal(x.length, z[0].length);
  assert.match(layout(figure).title.subtitle?.text ?? "", /^4096 × 4096 tokens, averaged over blocks of 14 × 14 to fit$/);
  assert.ok(JSON.stringify(figure).length < 1_000_000);
  assert.ok(
    z.flat().every((v) => Math.abs(v - 1 / 4096) < 1e-5),
    "the mean of equal weights is that weight",
  );
});

test("attentionHeads() says what is wrong with its input", () => {
  assert.throws(
    () => attentionHeads([pattern(2, 3)] as unknown as number[][][]),
    /pattern has 4 axes, expected \[heads\]\[queries\]\[keys\].*\[0\]/,
  );
  assert.throws(() => attentionHeads(pattern(2, 3), { tokens: ["a"] }), /1 tokens for a pattern of 3x3/);
  assert.throws(() => attentionHeads([pattern(1, 3)[0], pattern(1, 4)[0]]), /head 1 is 4x4, head 0 is 3x3/);
});

test("patchSimilarity() carries the map of every patch, for clicks and for the slider", () => {
  const embeddings = [
    [1, 0],
    [0, 1],
    [-1, 0],
    [3, 3],
  ];
  const figure = patchSimilarity(embeddings, [2, 2], plain(8, 8), { patch: 1 });
  const {
    sliders: [slider],
    updatemenus,
    shapes,
  } = layout(figure);
  assert.deepEqual(traces(figure)[0].z, [
    [0, 100],
    [0, 71],
  ]);
  assert.equal(slider.active, 1);
  assert.deepEqual(
    slider.steps.map((step) => step.args[0].z[0]),
    [
      [
        [100, 0],
        [-100, 71],
      ],
      [
        [0, 100],
        [0, 71],
      ],
      [
        [-100, 0],
        [100, -71],
      ],
      [
        [71, 71],
        [-71, 100],
      ],
    ],
  );
  assert.deepEqual(
    updatemenus.map((menu) => menu.buttons[0].args),
    slider.steps.map((step) => step.args),
  );
  assert.ok(updatemenus[1].x > updatemenus[0].x && updatemenus[2].y < updatemenus[0].y, "each button lies over its patch");
  assert.deepEqual([shapes[0].xanchor, shapes[0].yanchor], [1, 0]);
  assert.deepEqual(slider.steps[2].args[1]["shapes[0].yanchor"], 1);
});

test("patchSimilarity() lets every second patch of a fine grid be chosen and says so", () => {
  const figure = patchSimilarity(rows(576, 4), [24, 24], plain(48, 48));
  assert.equal(layout(figure).sliders[0].steps.length, 144);
  assert.equal(layout(figure).title.subtitle?.text, "24 × 24 patches, every 2nd can be chosen");
});

test("patchSimilarity() and patchPca() ask for one embedding a patch, without [CLS]", () => {
  for (const figure of [patchSimilarity, patchPca])
    assert.throws(
      () => figure(rows(10, 4), [3, 3], plain(9, 9)),
      /10 embeddings for a 3x3 grid, expected 9; leave out \[CLS\] with \.slice\(1\)/,
    );
  assert.throws(() => patchSimilarity([[1, NaN]], [1, 1], plain(2, 2)), /embeddings\[0\]\[1\] is NaN/);
});

test("patchPca() gives like patches like colours and unlike patches unlike ones", () => {
  const kinds = [
    [5, 0, 0, 1],
    [0, 5, 0, 1],
    [0, 0, 5, 1],
  ];
  const embeddings = Array.from({ length: 9 }, (_, i) => kinds[i % 3]);
  const colors = (traces(patchPca(embeddings, [3, 3], plain(9, 9)))[1].z as unknown as number[][][]).flat();
  for (let i = 3; i < 9; i++) assert.deepEqual(colors[i], colors[i % 3]);
  assert.notDeepEqual(colors[0], colors[1]);
  assert.notDeepEqual(colors[1], colors[2]);
});

test("positionSimilarity() has the map of each patch at its place", () => {
  const { z } = traces(
    positionSimilarity(
      [
        [1, 0],
        [0, 1],
        [1, 1],
        [-1, 0],
      ],
      [2, 2],
    ),
  )[0];
  assert.deepEqual(z, [
    [1, 0, null, 0, 1],
    [0.71, -1, null, 0.71, 0],
    [null, null, null, null, null],
    [0.71, 0.71, null, -1, 0],
    [1, -0.71, null, -0.71, 1],
  ]);
});

test("embeddingMap() draws at most 150 pictures and 5000 points, and says so", () => {
  const figure = embeddingMap(rows(9000, 2), { pictures: Array(9000).fill(plain(4, 4)) });
  assert.equal(layout(figure).images.length, 150);
  assert.equal(traces(figure)[0].x.length, 5000);
  assert.equal(layout(figure).title.subtitle?.text, "5000 of 9000 points, pictures at 150 of them");
  assert.throws(() => embeddingMap(rows(3, 2), { groups: ["a"], labels: ["b", "c"] }), /1 groups, 2 labels for 3 points/);
  assert.throws(() => embeddingMap(rows(3, 5)), /points have 5 numbers, expected 2/);
});

test("lossCurve() averages over a window, and names the step of a loss that is not finite", () => {
  const figure = lossCurve(
    [1, 3, NaN, 5].map((loss, i) => ({ step: i + 1, loss })),
    { window: 2 },
  );
  assert.deepEqual(
    traces(figure).map((trace) => trace.y),
    [
      [1, 3, null, 5],
      [1, 2, 3, 5],
    ],
  );
  assert.match(layout(figure).title.subtitle?.text ?? "", /not finite at step 3/);
  const long = lossCurve(Array.from({ length: 10_000 }, (_, i) => ({ step: i, loss: 1 })));
  assert.equal(traces(long)[0].x.length, 2000);
  assert.match(layout(long).title.subtitle?.text ?? "", /each point is the mean of 5 steps/);
  assert.match(layout(lossCurve([])).title.subtitle?.text ?? "", /no steps yet/);
});

test("similarityMatrix() outlines the best picture of each caption", () => {
  const figure = similarityMatrix(
    [
      [0.1, 0.9],
      [NaN, 0.2],
    ],
    ["a", "b"],
    [plain(3, 3), plain(3, 3)],
  );
  assert.deepEqual(
    layout(figure).shapes.map((shape) => [Math.round(shape.x0 + 0.48), Math.round(shape.y0 + 0.46)]),
    [
      [1, 0],
      [1, 1],
    ],
  );
  assert.throws(() => similarityMatrix([[1, 2]], ["a", "b"], [plain(3, 3)]), /2 captions and 1 pictures for 1x2 scores/);
});

test("zeroShotBars() sorts, and refuses what is not a probability", () => {
  const figure = zeroShotBars(plain(4, 4), [
    { label: "a", score: 0.2 },
    { label: "b", score: 0.8 },
  ]);
  assert.deepEqual(traces(figure)[0].customdata, ["b", "a"]);
  assert.throws(() => zeroShotBars(plain(4, 4), [{ label: "a", score: 21.4 }]), /the score of "a" is 21.4, expected 0 to 1/);
});

test("imageGrid() and patchGrid() say what is wrong with their input", () => {
  assert.throws(() => imageGrid([]), /no pictures/);
  assert.throws(() => imageGrid([plain(2, 2)], { titles: ["a", "b"] }), /2 titles for 1 pictures/);
  assert.throws(
    () => imageFigure({ width: 2, height: 2, data: new Uint8Array(4) }),
    /2 x 2 holds 4 bytes, expected .* 3 bytes \(RGB\) a pixel/,
  );
  assert.throws(() => patchGrid(plain(4, 4), [2.5, 2]), /grid is \[2.5, 2\]/);
});

test("tileLayout() numbers tiles in the order of the model, with their tokens where there is room, and draws what was padded", () => {
  const photo = noise(90, 40);
  const cut = tiles.tile(photo, { max_patches: 2 });
  const figure = layout(
    tileLayout(photo, cut, {
      tokens: [
        [5, 8],
        [9, 12],
        [13, 16],
      ],
    }),
  );
  assert.deepEqual(
    figure.annotations.map(({ text }) => text),
    ["<b>0</b><br>tokens 5–8", "<b>1</b><br>tokens 9–12", "<b>2</b> thumbnail, tokens 13–16"],
  );
  assert.equal(figure.title.text, "2 tiles, 1 × 2, and the whole picture as thumbnail");
  assert.equal(figure.images.length, 2);
  const [, , first] = figure.shapes; // the ground, and two lines for each border
  assert.deepEqual([first.x0, first.x1, first.y0, first.y1], [0, 45, 0, 40]);
  assert.match(traces(tileLayout(photo, cut))[0].customdata[1], /^tile 1, row 0, column 1<br>x 45 to 90<br>y 0 to 40$/);
  const square = tileProcessor({ ...tiles.config, scheme: { ...tiles.config.scheme, crop_to_patches: false, pad2square: true } as never });
  const padded = layout(tileLayout(photo, square.tile(photo)));
  assert.match(padded.title.subtitle!.text, /grey is padding/);
  assert.deepEqual([padded.shapes[0].y0, padded.shapes[0].y1], [-25, 65]);
  assert.throws(() => tileLayout(noise(40, 90), cut), /the picture is 40 x 90, the tiles were cut from 90 x 40/);
  assert.throws(() => tileLayout(photo, cut, { tokens: [[0, 1]] }), /1 token ranges for 3 tiles/);
  assert.throws(() => tileLayout(photo, cut, { tokens: 0.5 }), /tokens is 0.5/);
  for (const [width, height] of [
    [1, 400],
    [400, 1],
  ])
    assert.ok((layout(tileLayout(noise(width, height), tiles.tile(noise(width, height)))) as unknown as { width: number }).width <= 920);
});
