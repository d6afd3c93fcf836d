/** Runs of a prompt as HTML, as a still picture, and as plain text. Whatever comes from a prompt is escaped. */
import sharp from "sharp";
import { CHOSEN, INK, QUIET } from "./style";

/**
 * A stretch of a prompt. `special`: a token of the vocabulary; `image`: `count` equal tokens that stand for a picture; `typed`: looks like a token,
 * but somebody typed it, so it is text; `answer`: what the model says.
 */
export type PromptRun = { kind: "text" | "special" | "image" | "typed" | "answer"; text: string; count?: number; side?: "left" | "right" };

const DISPLAY = Symbol.for("Jupyter.display");

/** What a notebook shows: MIME type to content. */
export type Drawn = { [DISPLAY]: () => Promise<Record<string, string>> };

const BLUE = "#0072B2";
const LOOKS: { [kind in PromptRun["kind"]]: { ink: string; paper?: string } } = {
  text: { ink: INK },
  special: { ink: "#08519C", paper: "#E3EEF9" },
  image: { ink: "#00664A", paper: "#DDF3EB" },
  typed: { ink: "#8A4B00", paper: "#FFF1D6" },
  answer: { ink: INK, paper: "#F1ECF8" },
};
const SIDES = { left: { paper: "#FBE3D6", line: CHOSEN, mark: "−" }, right: { paper: "#D9EAF7", line: BLUE, mark: "+" } };

/** names: of the two prompts of a difference, or none. */
export function drawRuns(title: string, runs: readonly PromptRun[], names: readonly string[]): Drawn {
  return {
    [DISPLAY]: async () => ({
      "text/html": htmlOf(title, runs, names),
      "image/png": (
        await sharp(Buffer.from(svgOf(title, runs, names)))
          .png()
          .toBuffer()
      ).toString("base64"),
      "text/plain": runs.map(textOf).join(""),
    }),
  };
}

/** Control characters are shown as Unicode's pictures of them; those that turn the direction of writing as a box. */
const visible = (text: string): string =>
  text
    .replace(/[\u0000-\u0009\u000b-\u001f]/g, (one) => String.fromCharCode(0x2400 + one.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]|\p{Cs}/gu, "\u25a1");
const escapeMarkup = (text: string): string => visible(text).replace(/[&<>"']/g, (one) => `&#${one.charCodeAt(0)};`);

/** A run's own words: an image token with its count, a special token with its line ends shown. */
const label = ({ kind, text, count = 1 }: PromptRun): string => (kind === "image" && count > 1 ? `${text} × ${count}` : text);

const textOf = (run: PromptRun): string => {
  const words = run.kind === "typed" ? `⟦${run.text}⟧` : label(run);
  return run.side ? `{${SIDES[run.side].mark}${words}}` : words;
};

function htmlOf(title: string, runs: readonly PromptRun[], names: readonly string[]): string {
  const spans = runs.map((run) => {
    const look = LOOKS[run.kind];
    const side = run.side && SIDES[run.side];
    const style = [
      `color:${look.ink}`,
      ...(side || look.paper ? [`background:${side ? side.paper : look.paper}`, "border-radius:3px"] : []),
      ...(side ? [`border-bottom:2px solid ${side.line}`] : []),
      ...(run.side === "left" ? ["text-decoration:line-through"] : []),
    ].join(";");
    const words = escapeMarkup(label(run)).replace(/\n/g, `<span style="color:${QUIET}">↵</span>\n`);
    return `<span style="${style}">${words}</span>`;
  });
  const legend =
    names.length === 2 ? `<div style="color:${QUIET};margin-bottom:6px">${legendOf(names).map(escapeMarkup).join(" · ")}</div>` : "";
  return (
    `<div><div style="font-weight:600;margin-bottom:4px">${escapeMarkup(title)}</div>${legend}` +
    `<pre style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.55;background:#fff;padding:8px">${spans.join("")}</pre></div>`
  );
}

const legendOf = ([a, b]: readonly string[]): string[] => [`− only in ${a}`, `+ only in ${b}`];

/** The still picture: characters on a grid, COLUMNS to a line. */
const [COLUMNS, CELL, LINE, MARGIN, HEAD] = [104, 8.43, 22, 18, 52];
/** Lines of the still picture, at most. */
const MOST_LINES = 120;

type Placed = { run: PromptRun; text: string; line: number; from: number; to: number };

const isWide = (character: string): boolean =>
  /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\uffe0-\uffe6]|\p{Extended_Pictographic}/u.test(
    character,
  );

/** Where each piece of each run stands. */
function place(runs: readonly PromptRun[]): Placed[] {
  const placed: Placed[] = [];
  let [line, column] = [0, 0];
  for (const run of runs) {
    let [text, from] = ["", column];
    const flush = () => {
      if (text !== "") placed.push({ run, text, line, from, to: column });
      [text, from] = ["", column];
    };
    const turn = () => {
      flush();
      line++;
      from = column = 0;
    };
    for (const character of label(run)) {
      const shown = character === "\n" ? "↵" : character;
      const width = isWide(shown) ? 2 : 1;
      if (column + width > COLUMNS) turn();
      text += shown;
      column += width;
      if (character === "\n") turn();
    }
    flush();
  }
  return placed;
}

function svgOf(title: string, runs: readonly PromptRun[], names: readonly string[]): string {
  const all = place(runs);
  const shown = all.filter(({ line }) => line < MOST_LINES);
  const lines = Math.max(1, ...shown.map(({ line }) => line + 1));
  const width = Math.round(COLUMNS * CELL + 2 * MARGIN);
  const height = HEAD + lines * LINE + MARGIN;
  const note = [...(names.length === 2 ? legendOf(names) : []), ...(shown.length < all.length ? ["the rest is left out"] : [])].join(" · ");
  const words = (x: number, y: number, text: string, more: string) =>
    `<text x="${x.toFixed(1)}" y="${y}" xml:space="preserve" ${more}>${escapeMarkup(text)}</text>`;
  const body = shown.map(({ run, text, line, from, to }) => {
    const [x, y] = [MARGIN + from * CELL, HEAD + line * LINE];
    const side = run.side && SIDES[run.side];
    const paper = side ? side.paper : LOOKS[run.kind].paper;
    const box = paper
      ? `<rect x="${x.toFixed(1)}" y="${y + 1}" width="${((to - from) * CELL).toFixed(1)}" height="${LINE - 3}" rx="3" fill="${paper}"/>`
      : "";
    const rule = side
      ? `<rect x="${x.toFixed(1)}" y="${y + LINE - 4}" width="${((to - from) * CELL).toFixed(1)}" height="2" fill="${side.line}"/>`
      : "";
    return box + rule + words(x, y + 15, text, `fill="${LOOKS[run.kind].ink}"`);
  });
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="DejaVu Sans Mono, Noto Sans Mono, monospace" font-size="14">` +
    `<rect width="100%" height="100%" fill="#fff"/>${words(MARGIN, 24, title, `fill="${INK}" font-family="DejaVu Sans, sans-serif" font-size="16"`)}` +
    `${words(MARGIN, 42, note, `fill="${QUIET}" font-family="DejaVu Sans, sans-serif" font-size="12"`)}${body.join("")}</svg>`
  );
}
