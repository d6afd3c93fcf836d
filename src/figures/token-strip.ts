import type { Figure } from "./figure";
import { baseLayout, escapeText, INK } from "./style";

/** Tokens that one figure draws; longer prompts end in "…". */
const MOST = 400;
const WIDE = 860;
const [LINE, GAP, LETTER, PAD] = [30, 4, 7.9, 12];
const COLORS = { trained: "#B7E1CD", prompt: "#E8EBEF", picture: "#F9D9A6" };
const MONO = "DejaVu Sans Mono, Liberation Mono, Menlo, monospace";

/** A piece of the strip: one token, or a picture's tokens as one. */
type Piece = { text: string; hover: string; kind: keyof typeof COLORS };

/**
 * A prompt token by token, in lines: green = trained (its label counts in the loss), grey = read only, orange = a picture's tokens, folded into one piece.
 * tokens: their texts; labels: what the loss compares with, -100 where it does not look (the label of a position is that token itself, as in transformers);
 * images: where pictures stand, of `prompt.images`.
 */
export function tokenStrip(
  tokens: readonly string[],
  {
    labels,
    images = [],
    title = "The prompt as the model reads it",
  }: { labels?: ArrayLike<number>; images?: readonly { start: number; end: number }[]; title?: string } = {},
): Figure {
  if (tokens.length === 0) throw new RangeError("tokenStrip: no tokens, expected at least one");
  if (labels && labels.length !== tokens.length)
    throw new RangeError(
      `tokenStrip: ${labels.length} labels for ${tokens.length} tokens, expected one for each (-100 where nothing is trained)`,
    );
  const odd = images.find(({ start, end }) => !(start >= 0 && start < end && end <= tokens.length));
  if (odd) throw new RangeError(`tokenStrip: a picture stands at ${odd.start} to ${odd.end} of ${tokens.length} tokens`);
  const all = pieces(tokens, labels, images);
  const drawn = all.slice(0, MOST);
  if (drawn.length < all.length) drawn.push({ text: `… ${all.length - MOST} more`, hover: "left out here", kind: "prompt" });
  const { boxes, height } = place(drawn);
  return {
    data: [
      {
        type: "scatter",
        mode: "text",
        x: boxes.map(({ x, w }) => x + w / 2),
        y: boxes.map(({ y }) => y + LINE / 2),
        text: drawn.map(({ text }) => escapeText(text, 40)),
        textfont: { family: MONO, size: 12.5, color: INK },
        customdata: drawn.map(({ hover }) => escapeText(hover, 80)),
        hovertemplate: "%{customdata}<extra></extra>",
      },
    ],
    layout: baseLayout(escapeText(title), note(tokens.length, labels, images), {
      xaxis: { visible: false, range: [0, WIDE], fixedrange: true },
      yaxis: { visible: false, range: [height, 0], fixedrange: true },
      shapes: boxes.map(({ x, y, w }, i) => ({
        type: "rect",
        xref: "x",
        yref: "y",
        x0: x,
        x1: x + w,
        y0: y,
        y1: y + LINE - GAP * 1.5,
        fillcolor: COLORS[drawn[i].kind],
        line: { width: 0 },
        layer: "below",
      })),
      width: WIDE + 36,
      height: Math.round(height + 96),
      margin: { l: 18, r: 18, t: 78, b: 18 },
    }),
  };
}

function note(count: number, labels: ArrayLike<number> | undefined, images: readonly { start: number; end: number }[]): string {
  const pictured = images.reduce((sum, { start, end }) => sum + end - start, 0);
  const trained = labels ? Array.from(labels).filter((label) => label !== -100).length : 0;
  return [
    `${count} tokens`,
    ...(pictured ? [`<b>orange</b>: ${pictured} of pictures`] : []),
    ...(labels ? [`<b>green</b>: ${trained} trained`] : []),
  ].join(" · ");
}

function pieces(
  tokens: readonly string[],
  labels: ArrayLike<number> | undefined,
  images: readonly { start: number; end: number }[],
): Piece[] {
  const out: Piece[] = [];
  for (let i = 0; i < tokens.length; ) {
    const picture = images.findIndex(({ start }) => start === i);
    if (picture >= 0) {
      const { start, end } = images[picture];
      const trained = labels
        ? Array.from(labels)
            .slice(start, end)
            .filter((label) => label !== -100).length
        : 0;
      const hover = `picture ${picture + 1}: tokens ${start} to ${end - 1}${trained ? `, ${trained} of them trained` : ""}`;
      out.push({ text: `⟨picture ${picture + 1} × ${end - start}⟩`, hover, kind: trained ? "trained" : "picture" });
      i = end;
      continue;
    }
    const trained = labels !== undefined && labels[i] !== -100;
    out.push({
      text: visible(tokens[i]),
      hover: `${i} ${tokens[i]}${labels ? (trained ? ", trained" : ", not trained") : ""}`,
      kind: trained ? "trained" : "prompt",
    });
    i++;
  }
  return out;
}

const visible = (token: string): string => token.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";

/** Letters of East Asian scripts and emoji are twice as wide. */
const widthOf = (text: string): number =>
  Array.from(text)
    .slice(0, 40)
    .reduce(
      (sum, letter) =>
        sum +
        LETTER *
          (/[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\u{1f300}-\u{1faff}]/u.test(letter) ? 1.7 : 1),
      PAD,
    );

function place(drawn: Piece[]): { boxes: { x: number; y: number; w: number }[]; height: number } {
  let [x, y] = [0, 0];
  const boxes = drawn.map(({ text }) => {
    const w = widthOf(text);
    if (x > 0 && x + w > WIDE) [x, y] = [0, y + LINE];
    const box = { x, y, w };
    x += w + GAP;
    return box;
  });
  return { boxes, height: y + LINE };
}
