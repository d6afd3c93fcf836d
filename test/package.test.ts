/** The package as others get it: `npm pack` of dist, installed into an empty folder elsewhere, where a script and a notebook cell use it. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { before, test } from "node:test";
import { promisify } from "node:util";
import { scratch } from "./support/clip";
import { type Kernel, noJupyter, ROOT, startKernel, textOf } from "./support/kernel";

const run = promisify(execFile);
const DIST = join(ROOT, "dist");
/** A path with a space in it, and nothing of this checkout above it. */
const elsewhere = join(scratch(), "somebody's project");
const installed = join(elsewhere, "node_modules", "vitrine");
let packed: string[] = [];

before(async () => {
  assert.ok(existsSync(join(DIST, "package.json")), "dist/ is no package yet: run `npm run build`");
  mkdirSync(elsewhere);
  const { stdout } = await run("npm", ["pack", "--json", "--pack-destination", elsewhere], { cwd: DIST, maxBuffer: 1 << 26 });
  const [{ filename, files }] = JSON.parse(stdout) as [{ filename: string; files: { path: string }[] }];
  packed = files.map((file) => file.path);
  await install(join(elsewhere, filename));
});

/**
 * What `npm install --ignore-scripts` of the tarball leaves, without the network and the copying of 700 MB: the tarball unpacked, and as hard links every
 * package that our lockfile holds for running (those for developing are absent, so that a dependency nobody declared is missed here).
 */
async function install(tarball: string): Promise<void> {
  mkdirSync(installed, { recursive: true });
  await run("tar", ["-xzf", tarball, "-C", installed, "--strip-components=1"]);
  const lock = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8")).packages as {
    [path: string]: { dev?: boolean; optional?: boolean };
  };
  const wanted = Object.entries(lock).filter(
    ([path, one]) => /^node_modules\/(?!.*\/node_modules\/)/.test(path) && !one.dev && existsSync(join(ROOT, path)),
  );
  const missing = Object.entries(lock)
    .filter(([path, one]) => path && !one.dev && !one.optional && !existsSync(join(ROOT, path)))
    .map(([path]) => path);
  assert.deepEqual(missing, [], "packages of the lockfile that are not installed: run `npm run setup`");
  const byScope = new Map<string, string[]>();
  for (const [path] of wanted) byScope.set(dirname(path), [...(byScope.get(dirname(path)) ?? []), join(ROOT, path)]);
  for (const [scope, paths] of byScope) {
    mkdirSync(join(elsewhere, scope), { recursive: true });
    await run("cp", ["-al", ...paths, join(elsewhere, scope)]).catch(() => run("cp", ["-a", ...paths, join(elsewhere, scope)])); // another file system
  }
  // What our set-up compiles and npm does not bring.
  for (const part of ["lib/napi-v8", "deps"])
    rmSync(join(elsewhere, "node_modules", "@tensorflow", "tfjs-node-gpu", part), { recursive: true, force: true });
}

test("the package holds what it needs, and nothing of the workshop", () => {
  for (const path of [
    "package.json",
    "models/index.js",
    "models/index.d.ts",
    "data/models/emoji-clip/model.safetensors",
    "data/models/emoji-clip/config.json",
    "kernels/vitrine/kernel.json",
    "kernels/vitrine/launch.cjs",
    "setup/doctor.mjs",
    "LICENSE",
  ])
    assert.ok(packed.includes(path), `no ${path}`);
  assert.deepEqual(
    packed.filter((path) => /\.map$|\.ts$/.test(path) && !path.endsWith(".d.ts")),
    [],
  );
  assert.deepEqual(
    packed.filter((path) => /(^|\/)(test|node_modules|\.cache|\.venv)(\/|$)|\.tgz$|\.tmp/.test(path)),
    [],
  );
  const manifest = JSON.parse(readFileSync(join(installed, "package.json"), "utf8"));
  assert.equal(manifest.name, "vitrine");
  assert.equal(manifest.scripts, undefined, "nothing runs on installation");
  assert.ok(
    Object.values<string>(manifest.dependencies).every((version) => /^\d+\.\d+\.\d+$/.test(version)),
    "pinned exactly",
  );
});

test("the installed package stands alone: no link leads back to this checkout", () => {
  const names = readdirSync(join(elsewhere, "node_modules"), { withFileTypes: true });
  assert.ok(names.length > 50);
  assert.deepEqual(
    names.filter((entry) => entry.isSymbolicLink()).map((entry) => entry.name),
    [],
  );
});

test("a plain Node script there loads emoji-clip and encodes a text", async () => {
  const script = join(elsewhere, "script.cjs");
  writeFileSync(
    script,
    `const { load } = require("vitrine/models");
     const { embedImages, embedTexts } = require("vitrine/embed");
     const { engine } = require("vitrine/engine");
     (async () => {
       const clip = await load("emoji-clip");
       const { values, count, width } = await embedTexts(clip, ["red heart", "cat face"]);
       const grey = { width: 6, height: 4, data: new Uint8Array(72).fill(128) };
       const { count: pictures } = await embedImages(clip, Array(40).fill(grey)); // more than one thread prepares itself
       const length = Math.hypot(...values.subarray(0, width));
       console.log(JSON.stringify({ count, pictures, width, length, folder: clip.folder, ...(await engine()) }));
     })();`,
  );
  const { stdout } = await run(process.execPath, [script], { cwd: elsewhere });
  const { count, pictures, width, length, folder, backend, why } = JSON.parse(stdout.trim().split("\n").pop()!);
  assert.deepEqual([count, pictures, width > 0, Math.abs(length - 1) < 1e-5], [2, 40, true, true]);
  assert.ok(folder.startsWith(installed), `${folder} is not in the package`);
  if (backend !== "tensorflow")
    assert.match(why, /passed over tensorflow \(.+`vitrine doctor` tells how to get the better one/, "no silent fall-back");
});

test("a notebook there uses the package's own kernel, with types", { skip: noJupyter ?? false }, async () => {
  const kernel = await startKernel(elsewhere, installed);
  try {
    await inKernel(kernel);
  } finally {
    await kernel.close();
  }
});

async function inKernel(kernel: Kernel): Promise<void> {
  const loaded = await kernel.run(
    `import { load } from "vitrine/models";\nimport { embedTexts } from "vitrine/embed";\nconst clip = await load("emoji-clip");`,
  );
  assert.equal(loaded.status, "ok", textOf(loaded));
  const encoded = await kernel.run(
    `const { count, width } = await embedTexts(clip, ["red heart"]);\n[count, width > 0, clip.folder.startsWith(process.cwd())]`,
  );
  assert.equal(encoded.status, "ok", textOf(encoded));
  assert.match(textOf(encoded), /\[\s*1,\s*true,\s*true\s*\]/);
  const bogus = await kernel.run(`clip.encodeImge`);
  assert.equal(bogus.status, "error");
  assert.match(textOf(bogus), /Property 'encodeImge' does not exist on type 'Clip'.*Did you mean 'encodeImage'/s);
  const { matches } = await kernel.complete("clip.enc");
  assert.deepEqual(
    matches.filter((name) => name.startsWith("encode")),
    ["encodeImage", "encodeText"],
  );
}
