import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";

import { join } from "node:path";
import { after, before, test } from "node:test";
import { pathToFileURL } from "node:url";
import { crc32, deflateSync } from "node:zlib";
import sharp from "sharp";
import type { PictureErrorCode } from "vitrine/image/bytes";
import { readPicture } from "vitrine/image/picture";
import { ORACLE, readArrays, readCases } from "./arrays";
import { scratch } from "../support/scratch";

const file = (name: string) => join(ORACLE, name);
const is = (code: PictureErrorCode, text: RegExp) => (error: Error & { code?: string }) => {
  assert.equal(error.name, "PictureError");
  assert.equal(error.code, code);
  assert.match(error.message, text);
  return true;
};

test("readPicture() decodes every picture of the oracle to the bytes of the reference", async () => {
  const decoded = readArrays("images/decoded.safetensors"); // PIL: EXIF applied, alpha dropped
  const images: { file: string }[] = readCases("images/images.json");
  assert.equal(images.length, 6);
  for (const { file: name } of images) {
    const got = await readPicture(file(name));
    const want = decoded.get(name) ?? decoded.get(name.replace("images/", ""));
    assert.ok(want, `no array for ${name}: ${[...decoded.keys()]}`);
    assert.deepEqual([got.height, got.width, 3], want.shape, name);
    assert.deepEqual(got.data, want.bytes, name);
  }
});

type Decode = { file: string; mode: string; decoded: string; white?: string };
const DECODE: Decode[] = readCases("resize/cases.json").decode; // test/oracle/resize/make.py
const arrays = readArrays("resize/arrays.safetensors");

test("readPicture() equals Pillow on palettes, grey, alpha, CMYK, WebP, GIF and the eight EXIF orientations", async () => {
  const same = DECODE.filter((c) => c.mode !== "I;16");
  assert.equal(same.length, 18);
  for (const c of same) {
    const got = await readPicture(file(`resize/${c.file}`));
    assert.deepEqual([got.height, got.width, 3], arrays.get(c.decoded)!.shape, c.file);
    assert.deepEqual(got.data, arrays.get(c.decoded)!.bytes, c.file);
  }
});

test("readPicture() with alpha: white composites as Pillow does", async () => {
  const transparent = DECODE.filter((c) => c.white);
  assert.equal(transparent.length, 4);
  for (const c of transparent) {
    const got = await readPicture(file(`resize/${c.file}`), { alpha: "white" });
    assert.deepEqual(got.data, arrays.get(c.white!)!.bytes, c.file);
  }
});

test("readPicture() with alpha: refuse takes no transparency, as the processors of ViT and FLAVA", async () => {
  await assert.rejects(readPicture(file("images/rgba.png"), { alpha: "refuse" }), is("unsupported", /rgba\.png: has transparency/));
  const grey = { width: 1, height: 1, data: Uint8Array.of(1, 2, 3, 4) };
  await assert.rejects(readPicture(grey, { alpha: "refuse" }), is("unsupported", /alpha: "drop" or "white" says what becomes of it/));
  assert.deepEqual(await readPicture(file("images/photo.jpg"), { alpha: "refuse" }), await readPicture(file("images/photo.jpg")));
});

test("readPicture() keeps the upper 8 of 16 bits, grey and RGB", async () => {
  const grey = await readPicture(file("resize/files/grey16.png"));
  const expected = Array.from({ length: 240 }, (_, i) => (i * 271 + 129) >> 8).flatMap((v) => [v, v, v]);
  assert.deepEqual(Array.from(grey.data), expected);
  const values = Uint16Array.from({ length: 5 * 4 * 3 }, (_, i) => i * 1091 + 250);
  const png = await sharp(values, { raw: { width: 5, height: 4, channels: 3 } })
    .toColourspace("rgb16")
    .png()
    .toBuffer();
  assert.equal(png[24], 16); // bits a channel, in the file's header
  const rgb = await readPicture(png);
  assert.deepEqual(
    Array.from(rgb.data),
    Array.from(values, (v) => v >> 8),
  );
});

test("readPicture() with exif: false leaves a photo as it is stored", async () => {
  const stored = await readPicture(file("images/exif_rotated.jpg"), { exif: false });
  assert.deepEqual([stored.width, stored.height], [40, 33]);
  const upright = await readPicture(file("images/exif_rotated.jpg"));
  assert.deepEqual([upright.width, upright.height], [33, 40]);
});

test("readPicture() gives the same for path, file URL, data URL, bytes and pixels", async () => {
  const path = file("images/photo.jpg");
  const bytes = readFileSync(path);
  const want = await readPicture(path);
  const base64 = bytes.toString("base64");
  for (const source of [
    pathToFileURL(path),
    pathToFileURL(path).href,
    `data:image/jpeg;base64,${base64}`,
    `data:;base64,${encodeURIComponent(base64)}`,
    bytes,
    new Uint8Array(bytes),
    want,
  ])
    assert.deepEqual(await readPicture(source), want);
});

test("readPicture() takes grey and RGBA pixels by their number", async () => {
  const grey = await readPicture({ width: 2, height: 1, data: Uint8Array.of(7, 9) });
  assert.deepEqual(grey, { width: 2, height: 1, data: Uint8Array.of(7, 7, 7, 9, 9, 9) });
  const rgba = { width: 1, height: 1, data: Uint8ClampedArray.of(10, 20, 30, 0) as unknown as Uint8Array };
  assert.deepEqual((await readPicture(rgba)).data, Uint8Array.of(10, 20, 30));
  assert.deepEqual((await readPicture(rgba, { alpha: "white" })).data, Uint8Array.of(255, 255, 255));
  await assert.rejects(
    readPicture({ width: 2, height: 2, data: new Uint8Array(5) }),
    is("not-a-picture", /5 bytes, expected 12 \(RGB\), 4 \(grey\) or 16/),
  );
});

/** A PNG of one colour whose pixel data is all there: zeros compress a thousand times. */
function bomb(width: number, height: number, complete = true): Buffer {
  const chunk = (type: string, data: Uint8Array) => {
    const body = Buffer.concat([Buffer.from(type), data]);
    const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
    length.writeUInt32BE(data.length);
    sum.writeUInt32BE(crc32(body));
    return Buffer.concat([length, body, sum]);
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([1, 0], 8); // 1 bit, grey
  const rows = complete ? Buffer.alloc((Math.ceil(width / 8) + 1) * height) : Buffer.alloc(0);
  return Buffer.concat([
    Buffer.from("\x89PNG\r\n\x1a\n", "latin1"),
    chunk("IHDR", header),
    chunk("IDAT", deflateSync(rows)),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

test("readPicture() refuses decompression bombs by their header, in milliseconds", async () => {
  await readPicture(bomb(8, 8)); // the library is loaded
  const bombs = [bomb(30_000, 30_000), bomb(16_000, 16_000), bomb(60_000, 60_000, false), bomb(8000, 7000)];
  for (const png of bombs) {
    const start = performance.now();
    await assert.rejects(readPicture(png), is("too-large", /limit/));
    assert.ok(performance.now() - start < 200, `${performance.now() - start} ms`);
  }
  await assert.rejects(readPicture(bomb(2 ** 31 - 1, 2 ** 31 - 1, false)), is("damaged", /header/)); // no PNG may be that wide
  await assert.rejects(readPicture(bomb(70_000, 2)), is("too-large", /70000 x 2: no edge may be longer than 65535/));
  await assert.rejects(readPicture(bomb(20, 20), { maxPixels: 399 }), is("too-large", /20 x 20|limit of 0.000399/));
  await assert.rejects(
    readPicture(file("images/photo.jpg"), { maxBytes: 1000 }),
    is("too-large", /photo\.jpg: .* the limit is 0\.0 MB \(maxBytes\)/),
  );
});

test("readPicture() reads the extremes that are allowed", async () => {
  for (const [width, height] of [
    [1, 1],
    [1, 20_000],
    [20_000, 1],
  ]) {
    const got = await readPicture(bomb(width, height));
    assert.deepEqual([got.width, got.height, got.data.length], [width, height, width * height * 3]);
  }
});

test("readPicture() says what is wrong with what is not a picture, naming it", async () => {
  const folder = scratch();
  const put = (name: string, content: string | Uint8Array) => {
    writeFileSync(join(folder, name), content);
    return join(folder, name);
  };
  const jpeg = readFileSync(file("images/photo.jpg"));
  const png = readFileSync(file("images/rgb_wide.png"));
  const svg =
    '<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/hostname">]><svg xmlns="http://www.w3.org/2000/svg"><text>&x;</text></svg>';
  const cases: [string, PictureErrorCode, RegExp][] = [
    [put("cut.jpg", jpeg.subarray(0, jpeg.length >> 1)), "damaged", /cut\.jpg: damaged or cut off JPEG/],
    [put("cut.png", png.subarray(0, png.length >> 1)), "damaged", /cut\.png: damaged or cut off PNG/],
    [put("page.jpg", "<!DOCTYPE html><html><body>404</body></html>"), "not-a-picture", /page\.jpg: an HTML or XML page/],
    [put("empty.png", ""), "not-a-picture", /empty\.png: empty \(0 bytes\)/],
    [put("drawing.svg", svg), "unsupported", /drawing\.svg: an SVG drawing/],
    [put("drawing.png", svg), "unsupported", /SVG/],
    [put("text.jpg", "hello world"), "not-a-picture", /begins with "hello wo"/],
    [put("scan.tif", "II*\0rest"), "unsupported", /TIFF, which is not read; expected JPEG, PNG, WebP or GIF/],
    [put("half.webp", Buffer.from("RIFF\x10\0\0\0WEBP<svg></svg>")), "damaged", /half\.webp: damaged/],
    [folder, "not-a-picture", /not a file/],
    [join(folder, "absent.png"), "not-found", /absent\.png: no such file/],
    ["ftp://host/x.png", "unsupported", /scheme ftp:; expected a path, file:, http:, https: or data:/],
    ["data:image/png;base64", "not-a-picture", /no comma/],
    ["data:image/png;base64,@@@@", "damaged", /not base64/],
    [`data:image/png;base64,${"A".repeat(28e6)}`, "too-large", /data URL.*21 MB, the limit is 20 MB/],
  ];
  for (const [source, code, text] of cases) await assert.rejects(readPicture(source), is(code, text), source.slice(0, 80));
  await assert.rejects(readPicture(null as unknown as string), is("not-a-picture", /expected \{ width, height, data/));
});

let server: Server;
let origin: string;
let sent = 0; // bytes of the endless answer that the client took
before(async () => {
  const photo = readFileSync(file("images/photo.jpg"));
  server = createServer((request, response) => {
    const path = new URL(request.url!, "http://x").pathname;
    const hop = /^\/hop\/(\d+)$/.exec(path)?.[1];
    if (hop) response.writeHead(302, { location: hop === "0" ? "/photo.jpg" : `/hop/${Number(hop) - 1}` }).end();
    else if (path === "/photo.jpg") response.end(photo);
    else if (path === "/to-file") response.writeHead(302, { location: "file:///etc/hostname" }).end();
    else if (path === "/page") response.writeHead(200, { "content-type": "image/jpeg" }).end("<html></html>");
    else if (path === "/slow") response.write(photo.subarray(0, 100));
    else if (path === "/announced") response.writeHead(200, { "content-length": "90000000" }).write("x");
    else if (path === "/endless") {
      const more = () => {
        while (!response.destroyed && response.write(Buffer.alloc(65536))) sent += 65536;
      };
      response.on("drain", more);
      more();
    } else response.writeHead(404).end();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
after(() => {
  server.closeAllConnections();
  server.close();
});

test("readPicture() downloads, following at most three redirects", async () => {
  const want = await readPicture(file("images/photo.jpg"));
  assert.deepEqual(await readPicture(new URL(`${origin}/photo.jpg`)), want);
  assert.deepEqual(await readPicture(`${origin}/hop/2`), want);
  await assert.rejects(readPicture(`${origin}/hop/3`), is("network", /\/hop\/3: more than 3 redirects/));
  await assert.rejects(readPicture(`${origin}/to-file`), is("network", /redirects to file:/));
});

test("readPicture() stops a download at its limits", async () => {
  await assert.rejects(readPicture(`${origin}/endless`, { maxBytes: 1e6 }), is("too-large", /\/endless: .*limit is 1\.0 MB/));
  assert.ok(sent < 20e6, `the server sent ${sent} bytes`);
  await assert.rejects(readPicture(`${origin}/announced`), is("too-large", /90 MB, the limit is 20 MB/));
  await assert.rejects(readPicture(`${origin}/slow`, { timeoutMs: 200 }), is("network", /no complete answer within 0.2 s/));
  await assert.rejects(
    readPicture(`${origin}/absent?token=secret`),
    (error: Error) => is("not-found", /absent: the server answered 404/)(error) && !error.message.includes("secret"),
  );
  await assert.rejects(readPicture(`${origin}/page`), is("not-a-picture", /HTML/));
  await assert.rejects(readPicture(`${origin}/slow`, { signal: AbortSignal.timeout(100) }), { name: "TimeoutError" });
});
