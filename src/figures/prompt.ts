/** A rendered conversation as the model reads it: special tokens marked, runs of image tokens folded; and the difference of two. */
import type { ChatPrompt } from "../chat/answer";
import type { Span } from "../text/added";
import type { Rendered } from "../text/messages";
import type { Tokenizer } from "../text/tokenizer";
import { changes } from "./diff";
import { type Drawn, drawRuns, type PromptRun } from "./prompt-draw";

export type { PromptRun } from "./prompt-draw";

export type PromptOptions = {
  /** Whose added tokens are special. Without one, words that look like the usual ones are (`<|im_end|>`, `[INST]`, `</s>`). */
  tokenizer?: Pick<Tokenizer, "added">;
  /** What stands for a picture; by default the usual ones. */
  imageTokens?: readonly string[];
  title?: string;
};

/** A prompt that a notebook displays: as a cell's last value, or with `show()`. */
export type PromptFigure = Drawn & { title: string; runs: PromptRun[] };

const IMAGE_TOKENS = ["<image>", "<IMG_CONTEXT>", "<ImageHere>", "<image_soft_token>", "<|image_pad|>"];
const TOKEN_LIKE = /<\|[^|<>\s]{1,40}\|>|<\/?(?:s|unk|pad|img|Img)>|\[\/?INST\]|<<\/?SYS>>/gu;

/** What a pipeline's `prompt()` or a chat template gave (the latter tells typed words and answers apart), or a text. */
export type Shown = ChatPrompt | Rendered | string;

/**
 * The runs of a prompt, and how to display them: of a pipeline's prompt every picture with the number of its tokens, of a text whose image tokens are
 * already repeated for every tile each run of them once.
 *
 * @example showPrompt(await pipe.prompt(["What is this?", picture]))
 */
export function showPrompt(rendered: Shown, options: PromptOptions = {}): PromptFigure {
  const { title = typeof rendered === "string" ? "Prompt" : `Prompt of the template ${rendered.template}` } = options;
  const runs = promptRuns(rendered, options);
  return { title, runs, ...drawRuns(title, runs, []) };
}

/** Prompt a beside prompt b: words and tokens of both, of a alone (`left`), of b alone (`right`). */
export function diffPrompts(a: Shown, b: Shown, options: PromptOptions = {}): PromptFigure {
  const names = [a, b].map((one, i) => (typeof one === "string" ? `prompt ${i + 1}` : one.template));
  const { title = `${names[0]} against ${names[1]}` } = options;
  const [left, right] = [a, b].map((one) => promptRuns(one, options).flatMap(words));
  const found = changes(left, right, (x, y) => x.kind === y.kind && x.text === y.text && x.count === y.count);
  const runs = found.flatMap(({ side, items }) => joined(items).map((run): PromptRun => (side === "both" ? run : { ...run, side })));
  return { title, runs, ...drawRuns(title, runs, names) };
}

/** A prompt cut at its tokens. Everything of it is in the runs, in order. */
export function promptRuns(rendered: Shown, options: PromptOptions = {}): PromptRun[] {
  const shown: Partial<Rendered & ChatPrompt> = typeof rendered === "string" ? { text: rendered } : rendered;
  const { text = "", typed = [], generated = [], images, imageMark } = shown;
  const { tokenizer, imageTokens = imageMark ? [imageMark] : IMAGE_TOKENS } = options;
  const pictures = images?.map(({ start, end }) => end - start);
  const runs: PromptRun[] = [];
  const inside = (spans: readonly Span[], at: number, end: number) => spans.some(([from, to]) => at < to && end > from);
  const plain = (from: number, to: number) => {
    let at = from;
    for (const [start, end] of generated) {
      const [a, b] = [Math.max(start, at), Math.min(end, to)];
      if (a >= b) continue;
      push(runs, "text", text.slice(at, a));
      push(runs, "answer", text.slice(a, b));
      at = b;
    }
    push(runs, "text", text.slice(at, to));
  };
  let last = 0;
  for (const { index, 0: token } of text.matchAll(tokenPattern(tokenizer, imageTokens))) {
    plain(last, index);
    last = index + token.length;
    const kind = inside(typed, index, last) ? "typed" : imageTokens.includes(token) ? "image" : "special";
    const tokens = kind === "image" ? pictures?.shift() : undefined;
    if (tokens === undefined) push(runs, kind, token);
    else runs.push({ kind, text: token, count: tokens });
  }
  plain(last, text.length);
  return runs;
}

function tokenPattern(tokenizer: PromptOptions["tokenizer"], imageTokens: readonly string[]): RegExp {
  const escaped = (token: string) => token.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const named = tokenizer ? [...tokenizer.added.values()].map(({ content }) => content) : [];
  const sources = [...new Set([...imageTokens, ...named])].sort((a, b) => b.length - a.length).map(escaped);
  return new RegExp([...sources, ...(tokenizer ? [] : [TOKEN_LIKE.source])].join("|"), "gu");
}

/** Adds a run; image tokens beside equal ones are counted. */
function push(runs: PromptRun[], kind: PromptRun["kind"], text: string): void {
  if (text === "") return;
  const last = runs.at(-1);
  if (kind === "image" && last?.kind === "image" && last.text === text) last.count = (last.count as number) + 1;
  else runs.push(kind === "image" ? { kind, text, count: 1 } : { kind, text });
}

/** A run as the words that a difference is told in; a line end is a word by itself. */
const words = (run: PromptRun): PromptRun[] =>
  run.kind === "text" || run.kind === "answer" ? (run.text.match(/\n|[^\S\n]+|\S+/gu) ?? []).map((text) => ({ ...run, text })) : [run];

/** Neighbouring words of one kind as one run. */
function joined(runs: PromptRun[]): PromptRun[] {
  const out: PromptRun[] = [];
  for (const run of runs) {
    const last = out.at(-1);
    if (last && last.kind === run.kind && (run.kind === "text" || run.kind === "answer")) last.text += run.text;
    else out.push({ ...run });
  }
  return out;
}
