import assert from "node:assert/strict";
import { test } from "node:test";
import sharp from "sharp";
import { attentionHeads } from "vitrine/figures/attention-heads";
import type { Figure } from "vitrine/figures/figure";
import { imageGrid } from "vitrine/figures/image-grid";
import { patchSimilarity } from "vitrine/figures/patch-similarity";
import { toPng, toSvg } from "vitrine/figures/static";
import { pattern, plain, rows } from "./inputs";

async function pixels(figure: Figure, options: { width?: number; height?: number; scale?: number } = {}) {
  const { data, info } = await sharp(await toPng(figure, options))
    .raw()
    .toBuffer({ resolveWithObject: true });
  const at = (x: number, y: number) => [...data.subarray((y * info.width + x) * info.channels, (y * info.width + x) * info.channels + 3)];
  return { width: info.width, height: info.height, at };
}

const bare = { visible: false };
const full = { margin: { l: 0, r: 0, t: 0, b: 0 }, xaxis: bare, yaxis: bare };

test("toPng() draws a heatmap in its colours, without smoothing", async () => {
  const figure = {
    data: [
      {
        type: "heatmap",
        z: [
          [0, 1],
          [1, 0],
        ],
        colorscale: [
          [0, "#ff0000"],
          [1, "#0000ff"],
        ],
        showscale: false,
      },
    ],
    layout: full,
  };
  const { width, height, at } = await pixels(figure, { width: 200, height: 100 });
  assert.deepEqual([width, height], [200, 100]);
  assert.deepEqual(
    [at(20, 80), at(180, 80), at(20, 20), at(180, 20), at(95, 45)],
    [
      [255, 0, 0],
      [0, 0, 255],
      [0, 0, 255],
      [255, 0, 0],
      [0, 0, 255],
    ],
  );
});

test("toPng() draws bars, points and pictures", async () => {
  const bars = {
    data: [{ type: "bar", x: [0, 1], y: [1, 0.25], marker: { color: "#00ff00" } }],
    layout: { ...full, yaxis: { ...bare, range: [0, 1] } },
  };
  const drawn = await pixels(bars, { width: 200, height: 100 });
  assert.deepEqual(
    [drawn.at(50, 10), drawn.at(150, 90), drawn.at(150, 50)],
    [
      [0, 255, 0],
      [0, 255, 0],
      [255, 255, 255],
    ],
  );
  const points = { data: [{ type: "scatter", mode: "markers", x: [1], y: [1], marker: { size: 30, color: "#123456" } }], layout: full };
  assert.deepEqual((await pixels(points, { width: 100, height: 100 })).at(50, 50), [0x12, 0x34, 0x56]);
  const pictures = await pixels(imageGrid([plain(8, 8, [10, 20, 30]), plain(8, 8, [90, 20, 30])], { columns: 2 }));
  assert.deepEqual([pictures.width, pictures.at(100, 150), pictures.at(350, 150)], [900, [10, 20, 30], [90, 20, 30]]);
});

test("toPng() takes the figure's own size, and scale multiplies pixels", async () => {
  const figure = { data: [{ type: "scatter", x: [1, 2], y: [1, 2] }], layout: { width: 300, height: 120 } };
  assert.deepEqual(await pixels(figure).then(({ width, height }) => [width, height]), [300, 120]);
  assert.deepEqual(await pixels(figure, { scale: 2 }).then(({ width, height }) => [width, height]), [600, 240]);
  await assert.rejects(toPng(figure, { width: 1e6 }), /width is 1000000, expected a whole number of pixels from 10 to 8192/);
});

test("toPng() draws several figures asked for at once, each its own", async () => {
  const one = (color: string) => ({
    data: [
      {
        type: "heatmap",
        z: [[1]],
        colorscale: [
          [0, color],
          [1, color],
        ],
        showscale: false,
      },
    ],
    layout: full,
  });
  const drawn = await Promise.all(["#ff0000", "#00ff00", "#0000ff"].map((color) => pixels(one(color), { width: 40, height: 40 })));
  assert.deepEqual(
    drawn.map(({ at }) => at(20, 20)),
    [
      [255, 0, 0],
      [0, 255, 0],
      [0, 0, 255],
    ],
  );
});

test("toSvg() shows the texts of data as texts", async () => {
  const hostile = "<img src=x onerror=alert(1)>";
  const svg = await toSvg(attentionHeads(pattern(1, 3), { tokens: ["<b>bold", "$x$", "a"], title: hostile }));
  const texts = [...svg.matchAll(/<text[^>]*>([^<]*)<\/text>/g)].map(([, text]) => text.replace(/&#60;/g, "<").replace(/&#62;/g, ">"));
  for (const text of [hostile, "0 <b>bold", "1 $x$", "2 a"]) assert.ok(texts.includes(text), `${text} is shown as it is`);
  assert.doesNotMatch(svg, /<img|<script|\son\w+="/);
});

test("toPng() leaves the figure as it was, and leaves out what cannot be clicked in print", async () => {
  const figure = patchSimilarity(rows(4, 3), [2, 2], plain(8, 8));
  const before = structuredClone(figure);
  assert.doesNotMatch(await toSvg(figure), /updatemenu|slider/);
  assert.deepEqual(figure, before);
});
