import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { createCanvas, loadImage } from "@napi-rs/canvas";
import { type Drawings, indexSprite, openDrawings, rasterise, type Style } from "vitrine/data/svg";

let cache = "";
const open = new Map<Style, Drawings>();
before(async () => {
  cache = await mkdtemp(join(tmpdir(), "vitrine-svg-"));
  for (const style of ["twemoji", "noto"] as const) open.set(style, await openDrawings(style, cache));
});
after(() => rm(cache, { recursive: true }));

test("openDrawings() finds 3720 Twemoji and 3547 Noto drawings, the second time from its index", async () => {
  assert.deepEqual(
    [...open.values()].map(({ ids }) => ids.length),
    [3720, 3547],
  );
  const again = await openDrawings("noto", cache);
  assert.deepEqual(again.ids, open.get("noto")!.ids);
  assert.equal(await again.svg("2764-FE0F"), await open.get("noto")!.svg("2764"));
  await assert.rejects(async () => again.svg("1FAE0"), /the style noto has no picture of 1FAE0/);
});

test("indexSprite() steps over drawings inside drawings", () => {
  const inner = '<svg viewBox="0 0 1 1"><path/></svg>';
  const [a, b] = [`<svg id="0031-FE0F-20E3">${inner}<svg/></svg>`, '<svg viewBox="0 0 2 2" id="2764"></svg>'];
  const sprite = `<svg><style>x</style>${a}${b}</svg>`;
  const found = [...indexSprite(sprite)].map(([id, { start, end }]) => [id, sprite.slice(start, end)]);
  assert.deepEqual(found, [
    ["0031-20E3", a],
    ["2764", b],
  ]);
  assert.throws(() => indexSprite('<svg><svg id="heart"></svg></svg>'), /no code points as its id, at byte 5/);
});

/** The drawing as Skia paints it: another program's answer. */
async function painted(svg: string, size: number): Promise<Uint8ClampedArray> {
  const sized = svg.replace("<svg", `<svg width="${size}" height="${size}" xmlns:xlink="http://www.w3.org/1999/xlink"`);
  const context = createCanvas(size, size).getContext("2d");
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, size, size);
  context.drawImage(await loadImage(Buffer.from(sized)), 0, 0, size, size);
  return context.getImageData(0, 0, size, size).data;
}

for (const style of ["twemoji", "noto"] as const)
  test(`rasterise() agrees with Skia on ${style}: mean difference below 2/255, edges included`, async () => {
    const { ids, svg } = open.get(style)!;
    const qatar = "1F1F6-1F1E6"; // Noto's asks to be stretched to a square, and we keep its proportions
    for (const id of ids.filter((id, i) => i % 90 === 0 && id !== qatar)) {
      const [ours, theirs] = [(await rasterise(await svg(id), 64)).data, await painted(await svg(id), 64)];
      let difference = 0;
      for (let i = 0; i < 64 * 64; i++) for (let c = 0; c < 3; c++) difference += Math.abs(ours[3 * i + c] - theirs[4 * i + c]);
      assert.ok(difference / ours.length < 2, `${id}: ${difference / ours.length}`);
    }
  });

test("rasterise() keeps proportions on white and takes any size", async () => {
  const wide =
    '<svg viewBox="0 0 20 10" preserveAspectRatio="none" xmlns="http://www.w3.org/2000/svg"><path fill="#00f" d="M0 0h20v10H0z"/></svg>';
  for (const size of [8, 50, 200]) {
    const { width, height, data } = await rasterise(wide, size);
    assert.deepEqual([width, height, data.length], [size, size, size * size * 3]);
    const at = (x: number, y: number) => [...data.subarray((y * size + x) * 3, (y * size + x) * 3 + 3)];
    assert.deepEqual(
      [at(0, 0), at(0, size / 2), at(size - 1, size / 2), at(size - 1, size - 1)],
      [
        [255, 255, 255],
        [0, 0, 255],
        [0, 0, 255],
        [255, 255, 255],
      ],
    );
  }
});
