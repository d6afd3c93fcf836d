import assert from "node:assert/strict";
import { test } from "node:test";
import { duration, failureParagraph, SetupError, size, stepLine } from "../../src/setup/say.mjs";
import { tool } from "../../src/setup/tool.mjs";
import { sink } from "./support";

test("failureParagraph() is one paragraph: the failure, the tool's own last lines, what to do", async () => {
  const chatter =
    "for (let i = 0; i < 50; i++) console.log('line ' + i); console.error('\\x1b[31mno space left\\x1b[0m\\n\\n'); process.exit(3)";
  const error = await tool(process.execPath, ["-e", chatter]).catch((e: Error) => e);
  const text = failureParagraph(error, { step: "npm packages", advice: "free some space." });
  const lines = text.split("\n");
  assert.match(lines[0], /^Set-up stopped at "npm packages": .*ended with code 3\. It said:$/);
  assert.equal(lines.length, 14); // head, 12 lines, advice
  assert.ok(lines.includes("  no space left"));
  assert.ok(!lines.includes("  line 10") && lines.includes("  line 49"));
  assert.equal(lines.at(-1), "What to do: free some space.");
  assert.doesNotMatch(text, /^\s*at |\x1b|\n\n/m);
});

test("failureParagraph() prefers the advice of who knows best", () => {
  const error = new SetupError("it broke", { advice: "do this." });
  assert.equal(failureParagraph(error, { advice: "do that." }), "it broke.\nWhat to do: do this.");
});

test("tool() names a program that is not there, and one that takes too long", async () => {
  await assert.rejects(tool("no-such-program-here", []), /no-such-program-here was not found/);
  await assert.rejects(tool(process.execPath, ["-e", "setInterval(() => {}, 1000)"], { timeout: 200 }), /did not end within 0\.2 s/);
});

test("tool() passes arguments as they are", async () => {
  const odd = ["a b", "it's", '"x"', "$HOME", "*", "a;b"];
  const said = await tool(process.execPath, ["-e", "console.log(JSON.stringify(process.argv.slice(1)))", "--", ...odd]);
  assert.deepEqual(JSON.parse(said), odd);
});

test("size() and duration() read as a person writes them", () => {
  assert.deepEqual([0, 999, 1000, 1_234_567, 98_768, 4.2e9].map(size), ["0 B", "999 B", "1.0 kB", "1.2 MB", "99 kB", "4.2 GB"]);
  assert.deepEqual([400, 12_300, 125_000].map(duration), ["0.4 s", "12 s", "2 min 5 s"]);
});

test("stepLine() is two lines where there is no terminal", () => {
  const out = sink();
  const line = stepLine("compile", out);
  line.word("ignored");
  line.done("99 kB");
  assert.match(out.text, /^compile …\ncompile: done in 0\.\d s, 99 kB\n$/);
});
