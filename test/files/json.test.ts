import assert from "node:assert/strict";
import path from "node:path";
import { test } from "node:test";
import { readJson } from "vitrine/files/json";
import { bytes, file, message, scratch } from "./helpers";

test("readJson() reads an object as JSON.parse does", () => {
  const text = '{"a": [1, 2.5e-3, -0, true, null, "\\u00e9\\n"], "__proto__": {"x": 1}, "a b": {}}';
  const value = readJson(file(text));
  assert.deepEqual(value, JSON.parse(text));
  assert.equal((Object.prototype as { x?: number }).x, undefined);
});

test("readJson() names line and column of the first mistake", () => {
  const cases: [string, RegExp][] = [
    ['{\n  "a": 1,\n  "b": }\n', /:3:8: expected a value, got "\}"/],
    ['{"a": 1,}', /:1:9: expected a text in double quotes, got "\}"/],
    ["{'a': 1}", /:1:2: expected a text in double quotes/],
    ['{"a": 1} {}', /:1:10: expected the end, got "\{"/],
    ['{"a": [1, 2', /:1:12: expected "," or "\]", got the end of the text/],
    ['{"a": NaN}', /:1:7: expected a value, got "N"/],
    ['{"a": "b\nc"}', /:1:9: control character U\+000A inside a text/],
    ['{"a": "\\x"}', /:1:7: invalid escape/],
    ['{"a": "x', /:1:7: this text has no end/],
    ["", /:1:1: expected a value, got the end of the text/],
    ["\ufeff{}", /:1:1: expected a value, got U\+FEFF/],
    ["{} // note", /:1:4: expected the end/],
  ];
  for (const [text, says] of cases) {
    const place = file(text, ".json");
    assert.match(
      message(() => readJson(place)),
      says,
      text,
    );
    assert.ok(message(() => readJson(place)).startsWith(place));
  }
});

test("readJson() refuses what is no object, no text, or not there", () => {
  assert.match(
    message(() => readJson(file("[1]"))),
    /expected an object \{…\}, got an array/,
  );
  assert.match(
    message(() => readJson(file("3"))),
    /got a number/,
  );
  assert.match(
    message(() => readJson(file("null"))),
    /got null/,
  );
  assert.match(
    message(() => readJson(file(bytes('{"a":"', 0xff, '"}')))),
    /is not UTF-8 text/,
  );
  assert.match(
    message(() => readJson(path.join(scratch, "none.json"))),
    /none\.json does not exist/,
  );
  assert.match(
    message(() => readJson(scratch)),
    /is not a file/,
  );
  assert.match(
    message(() => readJson(file(`${"[".repeat(1e5)}`))),
    /nested deeper than 127/,
  );
});
