import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setProgressRenderer } from "vitrine/engine/progress";
import { emojiPictures, LARGEST_KEPT } from "vitrine/data/pixels";
import { openDrawings, rasterise } from "vitrine/data/svg";

const SIZE = 8; // the smallest: drawing them all takes seconds
const previous = process.env.VITRINE_CACHE;
let cache = "";
before(async () => {
  cache = await mkdtemp(join(tmpdir(), "vitrine-pixels-"));
  process.env.VITRINE_CACHE = cache;
});
after(async () => {
  setProgressRenderer(undefined);
  if (previous === undefined) delete process.env.VITRINE_CACHE;
  else process.env.VITRINE_CACHE = previous;
  await rm(cache, { recursive: true });
});
const pixelFiles = async () => (await readdir(join(cache, "emoji"))).filter((name) => name.endsWith(".pixels"));

test("emojiPictures() stops when asked and leaves no file", async () => {
  await assert.rejects(emojiPictures("twemoji", SIZE, AbortSignal.abort(new Error("enough"))), /enough/);
  assert.deepEqual(await readdir(join(cache, "emoji")), []);
});

test("emojiPictures() kept on disk are those drawn afresh, every one", async () => {
  const bars = new Set<string>();
  setProgressRenderer(({ label, done, finished }) => void (finished && bars.add(`${label} ${done} ${bars.size}`)));
  const [drawn] = await Promise.all([emojiPictures("twemoji", SIZE), emojiPictures("twemoji", SIZE)]);
  assert.deepEqual([...bars], ["drawing the twemoji emoji at 8 px (once) 3720 0"]); // two callers, one drawing
  const kept = await emojiPictures("twemoji", SIZE);
  const { ids, svg } = await openDrawings("twemoji", cache);
  assert.equal((await pixelFiles()).length, 1);
  for (const [i, id] of ids.entries()) {
    const picture = await kept.read(id);
    assert.deepEqual(picture, await drawn.read(id));
    if (i % 20 === 0) assert.deepEqual(picture, await rasterise(await svg(id), SIZE), id);
  }
  assert.ok(kept.has("2764-FE0F") && kept.has("2764") && !kept.has("41"));
  await assert.rejects(kept.read("41"), /no picture of 41/);
});

test("emojiPictures() makes a cut file again, and names a damaged picture", async () => {
  const [name] = await pixelFiles();
  const file = join(cache, "emoji", name);
  const whole = await readFile(file);
  await truncate(file, whole.length - 1000);
  const again = await emojiPictures("twemoji", SIZE);
  assert.deepEqual(await readFile(file), whole);
  const damaged = Buffer.from(whole);
  damaged[0] ^= 1; // the first picture's first byte
  await writeFile(file, damaged);
  await assert.rejects(again.read("1F004"), /picture of 1F004 in .* is damaged; delete the file/);
});

test("emojiPictures() above the largest kept size are drawn when asked for", async () => {
  const files = await pixelFiles();
  const { width, height, data } = await (await emojiPictures("noto", LARGEST_KEPT + 1)).read("2764");
  assert.deepEqual([width, height, data.length], [129, 129, 129 * 129 * 3]);
  assert.deepEqual(await pixelFiles(), files);
});
