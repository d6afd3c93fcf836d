/**
 * Compares a figure with the committed file of its name. `UPDATE_SNAPSHOTS=1` writes the file instead: look at the difference
 * (and at the picture) before you commit it. Numbers are rounded, and a PNG stands as its size, because zlib's bytes differ by version.
 */
import assert from "node:assert/strict";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Figure } from "vitrine/figures/figure";

export function matchesSnapshot(name: string, figure: Figure): void {
  const file = join(__dirname, `${name}.json`);
  const now = JSON.parse(JSON.stringify(figure, tidy)) as unknown;
  if (process.env.UPDATE_SNAPSHOTS === "1") writeFileSync(file, `${oneLineArrays(JSON.stringify(now, null, 1))}\n`);
  assert.ok(existsSync(file), `${file} is missing: run this test once with UPDATE_SNAPSHOTS=1`);
  assert.deepEqual(now, JSON.parse(readFileSync(file, "utf8")));
}

function tidy(_key: string, value: unknown): unknown {
  if (typeof value === "number") return Number(value.toPrecision(5));
  if (typeof value !== "string" || !value.startsWith("data:image/png;base64,")) return value;
  const png = Buffer.from(value.slice(22), "base64");
  return `png ${png.readUInt32BE(16)} x ${png.readUInt32BE(20)}`;
}

const oneLineArrays = (json: string): string => json.replace(/\[[^[\]{}]*\]/g, (list) => list.replace(/\s*\n\s*/g, " "));
