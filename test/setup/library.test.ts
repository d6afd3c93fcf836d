import assert from "node:assert/strict";
import { existsSync, readFileSync, readlinkSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { compileStep, mirror, packageManifest, packageStep, removeStale } from "../../src/setup/library.mjs";
import { npmMisfits } from "../../src/setup/npm.mjs";
import { failureParagraph } from "../../src/setup/say.mjs";
import { listFiles } from "../../src/setup/step.mjs";
import { chooseTests } from "../../src/setup/test.mjs";
import { oddFolder, ROOT, write } from "./support";

const tsconfig = {
  compilerOptions: { module: "nodenext", target: "ES2022", strict: true, rootDir: "src", outDir: "dist", types: [] },
  include: ["src"],
};

/** A checkout in small: one source, the real compiler. */
function checkout(root: string, source: string): void {
  write(root, {
    "tsconfig.json": JSON.stringify(tsconfig),
    "package.json": JSON.stringify({ name: "x", version: "1.2.3", engines: { node: ">=20.19" }, dependencies: { arquero: "^8.0.0" } }),
    "package-lock.json": JSON.stringify({ packages: { "": {}, "node_modules/arquero": { version: "8.0.1" } } }),
    "src/one.ts": source,
    "src/setup/run.mjs": "// entry",
    "data/models/tiny/config.json": "{}",
    "kernels/vitrine/kernel.json": "{}",
    LICENSE: "licence",
    "node_modules/.keep": "",
  });
  symlinkSync(join(ROOT, "node_modules", "typescript"), join(root, "node_modules", "typescript"));
}

test("compileStep() compiles, removes what has no source any more, and is done only while its files are there", async (t) => {
  const root = oddFolder(t);
  checkout(root, "export const one = 1;\n");
  write(root, { "dist/old.js": "", "dist/old.d.ts": "", "dist/data/models/keep.json": "{}", "dist/setup/x.js": "" });
  const step = compileStep(root);
  assert.equal(await step.done(), false);
  assert.match((await step.run(() => {}, undefined)) ?? "", /2 old files removed/);
  assert.equal(step.done(), true);
  assert.deepEqual(listFiles(join(root, "dist")), ["data/models/keep.json", "one.js", "setup/x.js"]);
});

test("compileStep() fails with every error that the compiler lists", async (t) => {
  const root = oddFolder(t);
  checkout(root, Array.from({ length: 30 }, (_, i) => `export const n${i}: number = "text";`).join("\n"));
  const error: Error = await compileStep(root)
    .run(() => {}, undefined)
    .then(
      () => assert.fail("it compiled"),
      (e: Error) => e,
    );
  const text = failureParagraph(error, { step: "TypeScript library" });
  assert.match(text, /^Set-up stopped at "TypeScript library": the compiler found 30 errors\. It said:/);
  for (const line of [1, 30]) assert.match(text, new RegExp(`src/one\\.ts\\(${line},14\\): error TS2322`));
});

test("packageStep() makes dist/ the package vitrine and links it", async (t) => {
  const root = oddFolder(t);
  checkout(root, "export {};\n");
  write(root, { "dist/data/code.js": "", "dist/data/models/gone.json": "{}" });
  const step = packageStep(root);
  await step.run();
  assert.equal(step.done(), true);
  assert.equal(readlinkSync(join(root, "node_modules/vitrine")), join("..", "dist"));
  const files = listFiles(join(root, "dist"));
  assert.deepEqual(files, [
    "LICENSE",
    "data/code.js",
    "data/models/tiny/config.json",
    "kernels/vitrine/kernel.json",
    "package.json",
    "setup/run.mjs",
  ]);
  const manifest = JSON.parse(readFileSync(join(root, "dist/package.json"), "utf8"));
  assert.deepEqual(manifest.dependencies, { arquero: "8.0.1" });
  assert.deepEqual([manifest.name, manifest.version, manifest.type, manifest.bin], ["vitrine", "1.2.3", "commonjs", undefined]);
  write(root, { "dist/cli/index.js": "" });
  assert.deepEqual(packageManifest(root).bin, { vitrine: "./cli/index.js" });
});

test("packageManifest() of this checkout pins every dependency exactly", () => {
  const { dependencies, optionalDependencies } = packageManifest(ROOT);
  const all: string[] = Object.values({ ...dependencies, ...optionalDependencies });
  assert.ok(all.length > 10);
  for (const version of all) assert.match(version, /^\d+\.\d+\.\d+$/);
});

test("packageManifest() names a dependency that the lockfile lacks", (t) => {
  const root = oddFolder(t);
  checkout(root, "");
  write(root, { "package-lock.json": '{"packages": {}}' });
  assert.throws(() => packageManifest(root), /arquero is in package\.json but not in package-lock\.json/);
});

test("removeStale() and mirror() leave alone what is not theirs", (t) => {
  const root = oddFolder(t);
  write(root, { "src/a.ts": "", "dist/a.js": "", "dist/a.js.map": "", "dist/b.d.ts": "", "dist/data/c.json": "", "dist/kernels/k.js": "" });
  assert.equal(removeStale(join(root, "src"), join(root, "dist")), 1);
  assert.equal(existsSync(join(root, "dist/b.d.ts")), false);
  mirror(join(root, "nowhere"), join(root, "dist"), (path: string) => path.startsWith("data/"));
  assert.deepEqual(listFiles(join(root, "dist")), ["a.js", "a.js.map", "kernels/k.js"]);
});

test("npmMisfits() names what is missing or of another version, and lets optional packages of other systems be", (t) => {
  const root = oddFolder(t);
  const wanted = {
    "": {},
    "node_modules/a": { version: "1.0.0" },
    "node_modules/b": { version: "2.0.0" },
    "node_modules/mac": { version: "1.0.0", optional: true },
  };
  write(root, { "package-lock.json": JSON.stringify({ packages: wanted }) });
  assert.deepEqual(npmMisfits(root), ["nothing is installed"]);
  const noted = (packages: object) => write(root, { "node_modules/.package-lock.json": JSON.stringify({ packages }) });
  noted({ "node_modules/a": { version: "1.0.1" } });
  write(root, { "node_modules/a/index.js": "" });
  assert.deepEqual(npmMisfits(root), ["node_modules/a: 1.0.1 installed, 1.0.0 wanted", "node_modules/b: missing"]);
  noted({ "node_modules/a": { version: "1.0.0" }, "node_modules/b": { version: "2.0.0" } });
  assert.deepEqual(npmMisfits(root), ["node_modules/b: its folder is gone"]);
  write(root, { "node_modules/b/index.js": "" });
  assert.deepEqual(npmMisfits(root), []);
});

test("chooseTests() lists test files, long ones last, chosen by words, and names the nearest for a stray word", (t) => {
  const root = oddFolder(t);
  const names = ["a.test.ts", "jupyter.test.ts", "nn/lora.test.ts", "oracle/x.test.ts", "support/kernel.ts"];
  write(root, Object.fromEntries(names.map((name) => [`test/${name}`, ""])));
  assert.deepEqual(chooseTests(root), ["test/a.test.ts", "test/nn/lora.test.ts", "test/jupyter.test.ts"]);
  assert.deepEqual(chooseTests(root, ["nn/", "jup"]), ["test/nn/lora.test.ts", "test/jupyter.test.ts"]);
  assert.throws(() => chooseTests(root, ["lroa"]), /no test file has "lroa" in its path; did you mean lora\?/);
});
