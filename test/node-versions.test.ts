/** The library on other versions of Node than the one that runs the tests, where they are present. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, join } from "node:path";
import { test } from "node:test";

/** Loads the shipped model and embeds one text: the binding, tfjs, the tokenizer and a forward pass. */
const SMOKE = `
  const { load } = require("vitrine/models");
  const { embedTexts } = require("vitrine/embed");
  load("emoji-clip").then(async (clip) => {
    const { values } = await embedTexts(clip, ["a red apple"]);
    console.log(JSON.stringify([process.version, Math.hypot(...values)]));
  });`;

const version = (node: string): string => execFileSync(node, ["--version"], { encoding: "utf8" }).trim();
const major = (text: string): number => Number(text.match(/^v(\d+)/)?.[1]);

/** VITRINE_NODES (paths), node20 to node26 on the PATH, and what nvm installed; one of each major version but the running one. */
function otherNodes(): string[] {
  const onPath = (process.env.PATH ?? "").split(delimiter).flatMap((folder) => [20, 22, 24, 26].map((n) => join(folder, `node${n}`)));
  const nvm = join(homedir(), ".nvm", "versions", "node");
  const installed = existsSync(nvm) ? readdirSync(nvm).map((name) => join(nvm, name, "bin", "node")) : [];
  const named = (process.env.VITRINE_NODES ?? "").split(delimiter).filter(Boolean);
  const byMajor = new Map(
    [...named, ...onPath, ...installed].filter((path) => existsSync(path)).map((path) => [major(version(path)), path]),
  );
  byMajor.delete(major(process.version));
  return [...byMajor].filter(([n]) => n >= 20).map(([, path]) => path);
}

const nodes = otherNodes();
const none = nodes.length === 0 && "no other Node is here: name some in VITRINE_NODES, or put node22 or node24 on the PATH";

test("the library works on the other versions of Node that are here", { skip: none, timeout: 300_000 }, () => {
  for (const node of nodes) {
    const output = execFileSync(node, ["-e", SMOKE], { cwd: join(__dirname, ".."), encoding: "utf8" });
    const [ran, length] = JSON.parse(output.trim().split("\n").at(-1)!);
    assert.equal(ran, version(node));
    assert.ok(Math.abs(length - 1) < 1e-5, `${ran}: the vector's length is ${length}, expected 1`);
  }
});
