import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { table, verdict, works } from "../../src/setup/doctor.mjs";
import { oddFolder, ROOT } from "./support";

const row = (part: string, found: boolean, needed: boolean) => ({
  part,
  found,
  needed,
  version: "",
  meaning: `what ${part} is for`,
  fix: `get ${part}.`,
});
type Row = ReturnType<typeof row>;

function doctor(root: string): { status: number | null; rows: Row[] } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(root, "src/setup/run.mjs"), "doctor", "--json"], {
    encoding: "utf8",
    cwd: root,
  });
  assert.equal(stderr, "");
  return { status, rows: JSON.parse(stdout) };
}

test("table() has a line for each part, with the fix under what is not found, within the width", () => {
  const text = table([row("Node", true, true), row("kernel", false, true), row("Chromium", false, false)], 60);
  assert.match(text, /^part {6} {2}.*version.*what it means$/m);
  assert.match(text, /^Node +found +- +what Node is for$/m);
  assert.match(text, /^kernel +MISSING +- +what kernel is for\n +-> get kernel\.$/m);
  assert.match(text, /^Chromium +not found/m);
  assert.doesNotMatch(text, /get Node/);
  const wide = { ...row("disk", false, false), fix: "word ".repeat(60) };
  for (const line of table([wide], 80).split("\n")) assert.ok(line.length <= 80, line);
});

test("works() and verdict() depend on the needed parts alone", () => {
  const rows = [row("Node", true, true), row("Chromium", false, false)];
  assert.equal(works(rows), true);
  assert.match(verdict(rows), /^The notebooks can run\. Without Chromium/);
  const broken = [row("kernel", false, true), ...rows];
  assert.equal(works(broken), false);
  assert.match(verdict(broken), /cannot run yet: kernel missing\. What to do first: get kernel\./);
});

test("doctor ends with 0 on this checkout and loads the binding", () => {
  const { status, rows } = doctor(ROOT);
  assert.deepEqual(
    rows.filter(({ needed, found }) => needed && !found),
    [],
  );
  assert.equal(status, 0);
  const binding = rows.find(({ part }) => part === "TensorFlow binding");
  assert.deepEqual([binding?.found, binding?.version], [true, "4.22.0"]);
});

test("doctor ends with 1 on a fresh clone in a folder with spaces, and says what makes each missing part", (t) => {
  const root = oddFolder(t);
  mkdirSync(join(root, "src"));
  cpSync(join(ROOT, "src/setup"), join(root, "src/setup"), { recursive: true });
  for (const name of ["package.json", "package-lock.json"]) cpSync(join(ROOT, name), join(root, name));
  const { status, rows } = doctor(root);
  assert.equal(status, 1);
  const missing = rows.filter(({ found }) => !found);
  const names = missing.map(({ part }) => part);
  for (const part of ["npm packages", "environment .venv", "TensorFlow binding", "library vitrine", "kernel", "JupyterLab"])
    assert.ok(names.includes(part), `${part} is said to be there`);
  for (const { part, fix } of missing) assert.ok(fix.length > 10, part);
});
