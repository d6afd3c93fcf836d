import assert from "node:assert/strict";
import { test } from "node:test";
import sharp from "sharp";
import { encodePng, pictureUri, shrink, sideFor } from "vitrine/figures/picture";
import { noise, plain } from "./inputs";

test("encodePng() is read back bit for bit by sharp", async () => {
  const gradient = {
    width: 40,
    height: 30,
    data: Uint8Array.from({ length: 3600 }, (_, i) => ((i % 120) * 2 + Math.floor(i / 120)) & 255),
  };
  for (const picture of [noise(1, 1), noise(17, 5), plain(3, 200), gradient]) {
    const { data, info } = await sharp(encodePng(picture)).raw().toBuffer({ resolveWithObject: true });
    assert.deepEqual([info.width, info.height, info.channels], [picture.width, picture.height, 3]);
    assert.ok(Buffer.from(picture.data).equals(data));
  }
  assert.ok(encodePng(gradient).length < 700, "the filters make a gradient small");
});

test("shrink() is the mean over each area", () => {
  const picture = { width: 2, height: 2, data: Uint8Array.from([0, 0, 0, 100, 0, 0, 200, 0, 9, 100, 4, 0]) };
  assert.deepEqual([...shrink(picture, 1, 1).data], [100, 1, 2]);
  assert.deepEqual([...shrink(plain(31, 17, [5, 6, 7]), 4, 3).data], Array(12).fill([5, 6, 7]).flat());
});

test("pictureUri() shrinks to the side it is given, never enlarges", () => {
  const size = (uri: string) => {
    const png = Buffer.from(uri.split(",")[1], "base64");
    return [png.readUInt32BE(16), png.readUInt32BE(20)];
  };
  assert.deepEqual(size(pictureUri("test", plain(200, 50), 100)), [100, 25]);
  assert.deepEqual(size(pictureUri("test", plain(20, 5), 100)), [20, 5]);
  assert.ok(sideFor(150) * sideFor(150) * 150 <= 250_000);
});
