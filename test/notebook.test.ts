import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import * as aq from "arquero";
import sharp from "sharp";
import { html, live, show } from "vitrine/notebook";
import { bundleOf } from "vitrine/notebook/bundle";
import { fit, LIMIT } from "vitrine/notebook/fit";
import { textOfHtml } from "vitrine/notebook/html";

type Trace = { x: number[]; y: number[]; z: number[][]; text: string[]; marker: { color: number[] }; x0: number; dx: number };
const only = (figure: { data: object[] }) => figure.data[0] as Trace;
const EVIL = `<img src=x onerror="alert(1)">`;
const picture = (width: number, height: number) => ({
  width,
  height,
  data: Uint8Array.from({ length: width * height * 3 }, (_, i) => (i * 7) % 256),
});
const pixels = async (png: unknown) => {
  const { data, info } = await sharp(Buffer.from(String(png), "base64"))
    .removeAlpha()
    .raw()
    .toBuffer({ resolveWithObject: true });
  return { data: Uint8Array.from(data), width: info.width, height: info.height };
};

test("fit() leaves a small figure as it is, but for digits float32 does not have", () => {
  const { figure, note, bytes } = fit({ data: [{ y: Float32Array.of(0.1, 2, Number.NaN) }], layout: { title: { text: "a" } } });
  assert.deepEqual(figure, { data: [{ y: [0.1, 2, Number.NaN] }], layout: { title: { text: "a" } } });
  assert.equal(note, undefined);
  assert.equal(bytes, JSON.stringify(figure).length);
});

test("fit() keeps lows, highs and the places of a long line", () => {
  const y = new Float32Array(1_000_000);
  y[123_457] = 5;
  y[654_321] = -3;
  const { figure, bytes, note } = fit({ data: [{ y, text: Array.from(y, (_, i) => `p${i}`), mode: "lines" }], layout: {} });
  const { x, y: kept, text } = only(figure);
  assert.ok(bytes <= LIMIT);
  assert.match(note!, /^The figure was \d+\.\d MB \(1,000,000 values\) and an output may have 800 kB/);
  assert.equal(kept[x.indexOf(123_457)], 5);
  assert.equal(kept[x.indexOf(654_321)], -3);
  assert.deepEqual([x[0], x.at(-1)], [0, 999_999]);
  assert.ok(
    text.every((label, i) => label === `p${x[i]}`),
    "labels stay with their points",
  );
});

test("fit() thins points together with everything that belongs to them", () => {
  const count = 300_000;
  const range = Array.from({ length: count }, (_, i) => i);
  const { figure } = fit({
    data: [{ type: "scatter", mode: "markers", x: range, y: range.map((i) => 2 * i), marker: { color: range.map((i) => 3 * i) } }],
    layout: {},
  });
  const { x, y, marker } = only(figure);
  assert.ok(x.length > 1000 && x.length < count);
  assert.ok(x.every((value, i) => y[i] === 2 * value && marker.color[i] === 3 * value));
});

test("fit() averages blocks of a matrix, and they stand where the cells stood", () => {
  const side = 1024;
  const z = Array.from({ length: side }, (_, r) => Float32Array.from({ length: side }, (_, c) => r + c));
  const { figure, bytes } = fit({ data: [{ type: "heatmap", z }], layout: {} });
  const { z: small, x0, dx } = only(figure);
  assert.ok(bytes <= LIMIT);
  assert.equal(small.length, Math.ceil(side / dx));
  assert.equal(x0, (dx - 1) / 2);
  // The mean of r + c over a block is the sum of the block's centres.
  assert.ok(Math.abs(small[3]![5]! - (3 * dx + x0 + 5 * dx + x0)) < 1e-3);
});

test("fit() refuses what it cannot thin, naming size and part", () => {
  assert.throws(
    () =>
      fit({
        data: [
          { type: "scatter", y: [1] },
          { type: "image", source: "x".repeat(3e6) },
        ],
        layout: {},
      }),
    /^RangeError: show: the figure is 3\.0 MB as JSON, an output may have 800 kB, .*The largest part is data\[1\] \(image\) with 3\.0 MB/,
  );
});

test("bad input 42: html escapes values, not markup of its own", () => {
  assert.equal(html`<b title="${`"'`}">${EVIL}</b>`.markup, `<b title="&#34;&#39;">&#60;img src=x onerror=&#34;alert(1)&#34;&#62;</b>`);
  assert.equal(html`<ul>${["<", "&"].map((each) => html`<li>${each}</li>`)}</ul>`.markup, "<ul><li>&#60;</li><li>&#38;</li></ul>");
  assert.equal(textOfHtml(html`<b>${EVIL}</b>`), EVIL);
});

test("bundleOf() of a table: escaped, limited rows, aligned text", async () => {
  const table = aq.table({ [EVIL]: [EVIL, "b", "c"], score: [0.123456, 1, null], picture: [picture(2, 2), null, null] });
  const { bundle } = await bundleOf(table, { rows: 2 });
  const markup = String(bundle["text/html"]);
  assert.doesNotMatch(markup, /<img src=x/);
  assert.match(markup, /<th style="text-align:left">&#60;img src=x/);
  assert.match(markup, /<td style="text-align:right">0\.1235<\/td>/);
  assert.match(markup, /<td><img alt="" width="2" height="2" src="data:image\/png;base64,/);
  assert.match(markup, /<p>2 of 3 rows/);
  assert.deepEqual(bundle["text/plain"].split("\n").slice(1), [
    `${EVIL}  0.1235  picture 2 x 2`,
    `${"b".padEnd(EVIL.length)}       1`,
    "2 of 3 rows; show(table, { rows: … }) shows more.",
  ]);
});

test("bundleOf() of a table follows its order and filter", async () => {
  const table = aq
    .table({ n: [3, 1, 2] })
    .filter((row: { n: number }) => row.n < 3)
    .orderby("n");
  assert.equal((await bundleOf(table)).bundle["text/plain"], "n\n1\n2");
});

test("bundleOf() of a picture: the same pixels, each `scale` wide", async () => {
  const source = picture(5, 3);
  assert.deepEqual(await pixels((await bundleOf(source)).bundle["image/png"]), { data: source.data, width: 5, height: 3 });
  const large = await pixels((await bundleOf(source, { scale: 4 })).bundle["image/png"]);
  assert.deepEqual([large.width, large.height], [20, 12]);
  for (const [x, y] of [
    [0, 0],
    [19, 0],
    [7, 9],
    [19, 11],
  ] as const)
    for (let c = 0; c < 3; c++) assert.equal(large.data[(y * 20 + x) * 3 + c], source.data[((y >> 2) * 5 + (x >> 2)) * 3 + c]);
});

test("bundleOf() of pictures: one sheet, captions escaped", async () => {
  const { bundle } = await bundleOf([picture(8, 8), picture(16, 8), picture(8, 16)], { columns: 2, captions: [EVIL, "b", "c"] });
  const sheet = await pixels(bundle["image/png"]);
  assert.deepEqual([sheet.width, sheet.height], [2 * 20 + 4, 2 * 20 + 4]);
  assert.equal(String(bundle["text/html"]).match(/<img /g)?.length, 3);
  assert.match(String(bundle["text/html"]), /<br>&#60;img src=x/);
  assert.equal(bundle["text/plain"], `3 pictures\n  0: ${EVIL}\n  1: b\n  2: c`);
});

test("bundleOf() of a figure: interactive and still of the same size, and a line of text", async () => {
  const { bundle } = await bundleOf(
    {
      data: [
        { type: "bar", y: [1, 2] },
        { type: "bar", y: [2, 1] },
      ],
      layout: { title: { text: "<b>Counts</b>" } },
    },
    { width: 400, height: 300 },
  );
  const { layout } = bundle["application/vnd.plotly.v1+json"] as { layout: object };
  assert.deepEqual(layout, { title: { text: "<b>Counts</b>" }, width: 400, height: 300 });
  const { width, height } = await pixels(bundle["image/png"]);
  assert.deepEqual([width, height], [400, 300]);
  assert.equal(bundle["text/plain"], "Figure: Counts (bar x 2)");
});

test("bundleOf() refuses what does not fit, and says what would", async () => {
  await assert.rejects(
    bundleOf({ data: [], layout: {} }, { scale: 2 }),
    /"scale" goes with a picture\. This is a figure and takes width, height/,
  );
  await assert.rejects(bundleOf("text", { rows: 2 }), /"rows" goes with a table\. This is a plain value and takes no options/);
  await assert.rejects(bundleOf(picture(2, 2), { bogus: 1 } as object), /"bogus" is no option\. This is a picture and takes scale/);
  await assert.rejects(bundleOf({ width: 3, height: 2, data: new Uint8Array(5) }), /a picture of 3 x 2 has 5 bytes, expected 18/);
  await assert.rejects(bundleOf(picture(2, 2), { scale: 1.5 }), /scale is 1\.5, expected a whole number/);
  await assert.rejects(bundleOf([picture(2, 2)], { captions: [] }), /0 captions for 1 pictures/);
  await assert.rejects(bundleOf([picture(2, 2)], { columns: 0 }), /columns is 0, expected a whole number from 1 to 100/);
  await assert.rejects(show("text", { width: 1 }), /"width" goes with a figure/);
  assert.throws(() => live(() => ({ data: [], layout: {} }), { every: 10 }), /every is 10, expected at least 250 ms/);
});

test("show() outside of a kernel prints text", () => {
  const script = `const { show, live } = require("vitrine/notebook"); (async () => {
    await show({ data: [{ y: [1] }], layout: { title: { text: "T" } } }); await show([1, 2]); await show(Promise.resolve("later"));
    const curve = live((rows) => ({ data: [{ y: rows }], layout: {} })); curve.add(1); curve.add(2); await curve.done(); })();`;
  const printed = execFileSync(process.execPath, ["-e", script], {
    cwd: join(__dirname, ".."),
    encoding: "utf8",
    env: { ...process.env, NODE_OPTIONS: "" },
  });
  assert.equal(printed, "Figure: T (scatter)\n[ 1, 2 ]\nlater\nFigure (scatter)\n");
});
