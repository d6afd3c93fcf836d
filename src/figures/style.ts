/** What all figures share: colours that colour-blind readers can tell apart, fonts, margins, and text made safe. */

/** Width in pixels of a figure made of panels; it fits a JupyterLab cell, a page and GitHub. */
export const WIDTH = 900;

/** Categories (Okabe and Ito 2008, without its yellow, which is too light on white). */
export const CATEGORIES = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#5F4690", "#8C6D31", "#666666"];
export const INK = "#22262B";
export const QUIET = "#6B7280";
export const GRIDLINE = "#E5E7EB";
/** Right, chosen, outlined. */
export const RIGHT = "#009E73";
export const CHOSEN = "#D55E00";

type Scale = [number, string][];
/** From nothing (near white) to much (dark blue). */
export const AMOUNT: Scale = [
  [0, "#F7FBFF"],
  [0.2, "#D2E3F3"],
  [0.4, "#9AC8E0"],
  [0.6, "#529DCC"],
  [0.8, "#1D6CB1"],
  [1, "#08306B"],
];
/** From -1 (blue) over 0 (near white) to 1 (vermilion). */
export const SIGNED: Scale = [
  [0, "#08519C"],
  [0.25, "#6BAED6"],
  [0.5, "#F7F7F7"],
  [0.75, "#F4A261"],
  [1, "#B3400A"],
];
/** Over a picture: every step differs in lightness. */
export const OVERLAY = "Viridis";

const FAMILY = "Inter, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif";

/** Layout with a left-aligned title and an optional second line; `more` is added and wins. Both texts must be safe: see `escapeText`. */
export function baseLayout(title: string, note: string | undefined, more: object): object {
  return {
    title: {
      text: title,
      font: { size: 17, color: INK },
      x: 0,
      xref: "container",
      xanchor: "left",
      y: 1,
      yref: "container",
      yanchor: "top",
      pad: { l: 18, t: 16 },
      ...(note ? { subtitle: { text: note, font: { size: 12.5, color: QUIET } } } : {}),
    },
    font: { family: FAMILY, size: 12.5, color: INK },
    colorway: CATEGORIES,
    paper_bgcolor: "#FFFFFF",
    plot_bgcolor: "#FFFFFF",
    showlegend: false,
    hoverlabel: { align: "left" },
    margin: { l: 64, r: 24, t: note ? 78 : 58, b: 52 },
    ...more,
  };
}

/** An axis with numbers and light grid lines. */
export function valueAxis(title: string, more: object = {}): object {
  return {
    title: { text: title, standoff: 10 },
    gridcolor: GRIDLINE,
    zeroline: false,
    linecolor: GRIDLINE,
    ticks: "outside",
    tickcolor: GRIDLINE,
    automargin: false,
    ...more,
  };
}

/** Part of an axis: a small distance between its labels and the plot. */
export const LABELS_APART = { ticks: "outside", ticklen: 5, tickcolor: "rgba(0,0,0,0)" };

/** The colour bar that stands right of the panels. */
export function colorBar(title: string, more: object = {}): object {
  return { title: { text: title, side: "top", font: { size: 11.5 } }, thickness: 12, outlinewidth: 0, len: 0.8, ...more };
}

/**
 * Text from data (tokens, captions, file names) made safe to stand in a figure: plotly reads `<b>`, `<a href>` and entities in every
 * text, and MathJax reads `$...$`. Control characters become a visible space; texts longer than `most` characters end in "…".
 */
export function escapeText(text: string, most = 80): string {
  const letters = Array.from(String(text).replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g, "␣"));
  const short = letters.length > most ? `${letters.slice(0, Math.max(1, most - 1)).join("")}…` : letters.join("");
  return short.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&#34;").replace(/\$/g, "&#36;");
}

/** `escapeText` with line breaks at spaces, each line at most `width` characters, at most `lines` lines. */
export function wrapText(text: string, width: number, lines: number): string {
  const out: string[] = [];
  for (const word of String(text).split(/\s+/)) {
    const last = out[out.length - 1];
    if (last !== undefined && last.length + 1 + word.length <= width) out[out.length - 1] = `${last} ${word}`;
    else out.push(word);
  }
  const kept = out.slice(0, lines);
  if (out.length > lines) kept[lines - 1] = `${kept[lines - 1].slice(0, Math.max(1, width - 1))}…`;
  return kept.map((line) => escapeText(line, width)).join("<br>");
}
