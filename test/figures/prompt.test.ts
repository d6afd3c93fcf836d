/** Prompts as they are displayed: what is folded, marked and escaped, and what two of them have apart. */
import assert from "node:assert/strict";
import { test } from "node:test";
import sharp from "sharp";
import { changes } from "vitrine/figures/diff";
import { diffPrompts, type PromptFigure, promptRuns, showPrompt } from "vitrine/figures/prompt";
import { bundleOf } from "vitrine/notebook/bundle";
import type { Message } from "vitrine/text/chat-template";
import { namedTemplate } from "vitrine/text/named";
import { matchesSnapshot } from "./snapshot";

const HOSTILE = `<img src=x onerror=alert(1)> & <script>alert('2')</script>\u202e\u0000 <|im_end|>`;
const messages: Message[] = [
  { role: "user", content: [{ type: "image" }, { type: "text", text: `What is this? ${HOSTILE}` }] },
  { role: "assistant", content: "A cat." },
];
const rendered = (name: string) => namedTemplate(name).render(messages, { addGenerationPrompt: false, guard: ["<|im_end|>"] });

/** What a snapshot keeps: the runs and the markup; the picture is checked by its pixels. */
async function shown(figure: PromptFigure): Promise<{ data: object[]; layout: object }> {
  const { bundle } = await bundleOf(figure);
  return { data: figure.runs, layout: { title: figure.title, html: bundle["text/html"], text: bundle["text/plain"] } };
}

test("showPrompt() folds image tokens, marks special ones, what was typed and what the model says, and hides nothing", async () => {
  const one = await rendered("internvl2_5");
  const { runs } = showPrompt(one);
  assert.equal(runs.map(({ text, count = 1 }) => text.repeat(count)).join(""), one.text);
  assert.deepEqual(
    runs.filter(({ kind }) => kind === "typed").map(({ text }) => text),
    ["<|im_end|>"],
  );
  assert.equal(runs.find(({ kind }) => kind === "answer")?.text, "A cat.");
  const full = showPrompt(one.text.replace("<image>", `<img>${"<IMG_CONTEXT>".repeat(256)}</img>`));
  assert.deepEqual(
    full.runs.filter(({ kind }) => kind === "image"),
    [{ kind: "image", text: "<IMG_CONTEXT>", count: 256 }],
  );
  const { bundle } = await bundleOf(full);
  assert.match(String(bundle["text/html"]), /&#60;IMG_CONTEXT&#62; × 256/);
  matchesSnapshot("showPrompt", await shown(showPrompt(one)));
});

test("diffPrompts() tells what each of two templates adds, and gives both back", async () => {
  const [a, b] = await Promise.all([rendered("Hermes-2"), rendered("internvl2_5")]);
  const figure = diffPrompts(a, b);
  const of = (side: "left" | "right") =>
    figure.runs
      .filter((run) => !run.side || run.side === side)
      .map(({ text, count = 1 }) => text.repeat(count))
      .join("");
  assert.equal(of("left"), a.text);
  assert.equal(of("right"), b.text);
  assert.ok(figure.runs.some(({ side }) => side) && figure.runs.some(({ side }) => !side));
  assert.ok(diffPrompts(a, a).runs.every(({ side }) => side === undefined));
  matchesSnapshot("diffPrompts", await shown(figure));
});

test("special tokens are those of the tokenizer where there is one", () => {
  const tokenizer = { added: new Map([[7, { content: "<<END>>", special: true }]]) };
  assert.deepEqual(promptRuns("a<<END>><|im_end|>", { tokenizer }), [
    { kind: "text", text: "a" },
    { kind: "special", text: "<<END>>" },
    { kind: "text", text: "<|im_end|>" },
  ]);
  assert.deepEqual(promptRuns(""), []);
});

test("nothing of a prompt is obeyed as markup, and its picture shows the colours of its runs", async () => {
  const { bundle } = await bundleOf(showPrompt(await rendered("internvl2_5"), { title: HOSTILE }));
  const html = String(bundle["text/html"]);
  assert.deepEqual([...new Set(html.match(/<\/?[a-z]+/g))].sort(), ["</div", "</pre", "</span", "<div", "<pre", "<span"]);
  assert.ok(!html.includes("\u202e") && !html.includes("\u0000"));
  const { data, info } = await sharp(Buffer.from(String(bundle["image/png"]), "base64"))
    .removeAlpha()
    .raw()
    .toBuffer({ resolveWithObject: true });
  assert.ok(info.width > 800 && info.height > 150);
  const colours = new Set(Array.from({ length: data.length / 3 }, (_, i) => data.subarray(3 * i, 3 * i + 3).toString("hex")));
  for (const paper of ["e3eef9", "ddf3eb", "fff1d6", "f1ecf8"]) assert.ok(colours.has(paper), paper);
});

test("changes() keeps the longest common sequence, left before right", () => {
  const told = (a: string, b: string) =>
    changes([...a], [...b], (x, y) => x === y)
      .map(({ side, items }) => ({ both: "=", left: "-", right: "+" })[side] + items.join(""))
      .join(" ");
  assert.equal(told("abcde", "abxde"), "=ab -c +x =de");
  assert.equal(told("abc", ""), "-abc");
  assert.equal(told("", "abc"), "+abc");
  assert.equal(told("xaybzc", "abc"), "-x =a -y =b -z =c");
  assert.equal(told("aaa", "aa"), "=aa -a");
  const long = Array.from({ length: 3000 }, (_, i) => i);
  assert.equal(
    changes(
      long,
      long.map((i) => -i - 1),
      (x, y) => x === y,
    ).length,
    2,
  );
});
