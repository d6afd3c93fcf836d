/** The order of the house: a file of src/ imports only from what stands above it, is short, and is no barrel. */
import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { test } from "node:test";
import ts from "typescript";

const ROOT = resolve(__dirname, "..");
const SRC = join(ROOT, "src");

/** From the top to the bottom. Folders and files of src/, without endings; those that do not exist yet have their place too. */
const ORDER = [
  "engine",
  "native",
  "files",
  "image",
  "text",
  "data",
  "nn",
  "models",
  "embed",
  "retrieval",
  "generate",
  "chat",
  "inside",
  "figures",
  "train",
  "jobs",
  "serve",
  "cli",
  "notebook",
];

const files = (readdirSync(SRC, { recursive: true }) as string[])
  .filter((path) => path.endsWith(".ts"))
  .map((path) => path.replaceAll("\\", "/"))
  .sort();
const text = (path: string) => readFileSync(join(SRC, path), "utf8");
const partOf = (path: string) => path.split("/")[0].replace(/\.ts$/, "");
const importsOf = (path: string) => ts.preProcessFile(text(path), true, true).importedFiles.map((one) => one.fileName);

test("every part of src/ has its place in the order", () => {
  assert.ok(files.length > 50);
  const unplaced = [...new Set(files.map(partOf))].filter((part) => part !== "setup" && !ORDER.includes(part));
  assert.deepEqual(unplaced, []);
});

test("a file imports only from what stands above it, or beside it in its own folder", () => {
  const wrong: string[] = [];
  for (const path of files)
    for (const name of importsOf(path).filter((name) => name.startsWith("."))) {
      const target = relative(SRC, resolve(SRC, dirname(path), name)).replaceAll("\\", "/");
      if (target.startsWith("..")) wrong.push(`${path} leaves src/: ${name}`);
      else if (ORDER.indexOf(partOf(target)) > ORDER.indexOf(partOf(path))) wrong.push(`${path} imports ${target}, which stands below it`);
      else if (!existsSync(join(SRC, `${target}.ts`))) wrong.push(`${path} imports ${name}: name the file, without ending`);
    }
  assert.deepEqual(wrong, []);
});

test("no file of src/ imports the package by its own name, and no two files import each other", () => {
  assert.deepEqual(
    files.filter((path) => importsOf(path).some((name) => name.startsWith("vitrine"))),
    [],
  );
  const graph = new Map(
    files.map((path) => [
      path,
      importsOf(path)
        .filter((n) => n.startsWith("."))
        .map((n) => `${relative(SRC, resolve(SRC, dirname(path), n))}.ts`),
    ]),
  );
  const state = new Map<string, "open" | "done">();
  const circles: string[] = [];
  const visit = (path: string, way: string[]) => {
    if (state.get(path) === "done") return;
    if (state.get(path) === "open") {
      circles.push([...way.slice(way.indexOf(path)), path].join(" -> "));
      return;
    }
    state.set(path, "open");
    for (const next of graph.get(path) ?? []) visit(next, [...way, path]);
    state.set(path, "done");
  };
  for (const path of files) visit(path, []);
  assert.deepEqual(circles, []);
});

test("only the notebook's files know tslab", () => {
  assert.deepEqual(
    files.filter((path) => partOf(path) !== "notebook" && importsOf(path).includes("tslab")),
    [],
  );
});

test("every package that src/ imports is a dependency", () => {
  const { dependencies } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));
  const packageOf = (name: string) =>
    name
      .split("/")
      .slice(0, name.startsWith("@") ? 2 : 1)
      .join("/");
  const foreign = files.flatMap((path) =>
    importsOf(path)
      .filter((name) => !name.startsWith(".") && !name.startsWith("node:"))
      .map((name) => `${path}: ${packageOf(name)}`),
  );
  assert.deepEqual(
    foreign.filter((one) => !Object.hasOwn(dependencies, one.split(": ")[1])),
    [],
  );
});

test("no file of src/ has more than 300 lines", () => {
  const long = files.map((path) => [path, text(path).split("\n").length - 1] as const).filter(([, lines]) => lines > 300);
  assert.deepEqual(long, []);
});

test("no file of src/ is a barrel", () => {
  assert.deepEqual(
    files.filter((path) => /^\s*export\s*\*/m.test(text(path))),
    [],
  );
});

test("src/setup needs nothing installed: Node's built-ins alone", () => {
  const scripts = readdirSync(join(SRC, "setup")).filter((name) => /\.[cm]js$/.test(name));
  assert.ok(scripts.length > 5);
  const wrong = scripts.flatMap((name) =>
    ts
      .preProcessFile(readFileSync(join(SRC, "setup", name), "utf8"), true, true)
      .importedFiles.map((one) => one.fileName)
      .filter((n) => !n.startsWith("node:") && !n.startsWith("./"))
      .map((n) => `${name}: ${n}`),
  );
  assert.deepEqual(wrong, []);
});

test("the files that package.json's scripts name are there", () => {
  const { scripts } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as { scripts: { [name: string]: string } };
  const named = Object.values(scripts).flatMap((line) => line.match(/\b(?:src|test|dist|kernels)\/[\w./-]+/g) ?? []);
  assert.ok(named.length > 3);
  const source = (path: string) => path.replace(/^dist\/(.*)\.js$/, "src/$1.ts");
  assert.deepEqual(
    [...new Set(named)].filter((path) => !existsSync(join(ROOT, source(path)))),
    [],
  );
});
