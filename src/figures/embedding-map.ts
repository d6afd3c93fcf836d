import type { Picture } from "../image/picture";
import type { Figure, Rows } from "./figure";
import { expectFinite, round, shapeOf } from "./numbers";
import { pictureUri, sideFor } from "./picture";
import { baseLayout, CATEGORIES, escapeText, GRIDLINE } from "./style";

/** Points whose pictures are drawn at their places; plotly cannot put a picture into a hover label. */
const MOST_PICTURES = 150;
/** Points in one figure: 0.4 MB of JSON. */
const MOST_POINTS = 5000;

type Options = { groups?: readonly string[]; labels?: readonly string[]; pictures?: readonly Picture[]; size?: number; title?: string };

/**
 * Embeddings as points of a plane; `projectUmap` and `projectPca` make the points. points: [N][2].
 * groups: one name for each point, its colour and legend entry; labels: what hover says; pictures: drawn at the points (up to 150 of
 * them, evenly chosen; the note says so), `size` pixels wide.
 */
export function embeddingMap(points: Rows, { groups, labels, pictures, size = 26, title = "Embeddings" }: Options = {}): Figure {
  const [count, two] = shapeOf("embeddingMap", "points", points);
  if (two !== 2) throw new RangeError(`embeddingMap: points have ${two} numbers, expected 2; projectUmap or projectPca make them`);
  expectFinite("embeddingMap", "points", points);
  const odd = Object.entries({ groups, labels, pictures }).filter(([, list]) => list && list.length !== count);
  if (odd.length > 0)
    throw new RangeError(
      `embeddingMap: ${odd.map(([name, list]) => `${list?.length} ${name}`).join(", ")} for ${count} points, expected one for each`,
    );
  const shown = evenly(count, MOST_POINTS);
  const pictured = pictures ? evenly(count, MOST_PICTURES) : [];
  const notes = [
    shown.length < count ? `${shown.length} of ${count} points` : `${count} points`,
    ...(pictured.length > 0 && pictured.length < count ? [`pictures at ${pictured.length} of them`] : []),
  ];
  const named = groups ? [...new Set(groups)] : [""];
  const plain = { showticklabels: false, ticks: "", gridcolor: GRIDLINE, zeroline: false, title: { text: "" }, showline: false };
  return {
    data: named.map((name, i) =>
      cloud(
        points,
        shown.filter((p) => !groups || groups[p] === name),
        i,
        name,
        labels,
        new Set(pictured),
        size,
      ),
    ),
    layout: baseLayout(escapeText(title), notes.join(", "), {
      xaxis: { ...plain, range: padded(points, 0) },
      yaxis: { ...plain, range: padded(points, 1) },
      images: thumbnails(points, pictured, pictures ?? [], size),
      showlegend: groups !== undefined,
      legend: { itemsizing: "constant", y: 1, yanchor: "top", font: { size: 12 } },
      margin: { l: 18, r: 18, t: 78, b: 18 },
      width: 900,
      height: 620,
    }),
  };
}

/** One group as a trace. A point with a picture is a disc under it, ringed in the group's colour. */
function cloud(
  points: Rows,
  members: number[],
  i: number,
  name: string,
  labels: readonly string[] | undefined,
  pictured: Set<number>,
  size: number,
): object {
  const color = CATEGORIES[i % CATEGORIES.length];
  const symbols = ["circle", "square", "diamond", "triangle-up", "cross"]; // more groups than colours: another shape
  const by = <T>(disc: T, dot: T): T | T[] => (pictured.size === 0 ? dot : members.map((p) => (pictured.has(p) ? disc : dot)));
  return {
    type: "scatter",
    mode: "markers",
    name: escapeText(name, 28) || "all",
    x: members.map((p) => round(points[p][0])),
    y: members.map((p) => round(points[p][1])),
    marker: {
      color: by("#FFFFFF", color),
      size: by(Math.round(size * 1.4), 8),
      opacity: pictured.size > 0 ? 1 : 0.8,
      symbol: pictured.size > 0 ? "circle" : symbols[Math.floor(i / CATEGORIES.length) % symbols.length],
      line: { color: by(color, "#FFFFFF"), width: by(2.5, 0.5) },
    },
    text: members.map((p) => (labels ? escapeText(labels[p]) : `point ${p}`)),
    hovertemplate: `%{text}<extra>${escapeText(name, 28)}</extra>`,
  };
}

/** The pictures over their discs. */
function thumbnails(points: Rows, members: number[], pictures: readonly Picture[], size: number): object[] {
  const spans = [0, 1].map((k) => {
    const [low, high] = padded(points, k);
    return high - low;
  });
  const side = Math.min(2 * size, sideFor(2 * members.length));
  return members.map((p) => ({
    source: pictureUri("embeddingMap", pictures[p], side),
    xref: "x",
    yref: "y",
    x: round(points[p][0]),
    y: round(points[p][1]),
    sizex: round((spans[0] * size) / 864),
    sizey: round((spans[1] * size) / 524),
    xanchor: "center",
    yanchor: "middle",
    sizing: "contain",
    layer: "above",
  }));
}

/** From the smallest to the largest value of one coordinate, with 6 % around. */
function padded(points: Rows, k: number): [number, number] {
  let [low, high] = [Infinity, -Infinity];
  for (let i = 0; i < points.length; i++) [low, high] = [Math.min(low, points[i][k]), Math.max(high, points[i][k])];
  const around = (high - low || 1) * 0.06;
  return [low - around, high + around];
}

/** At most `most` of the numbers below `count`, evenly spread. */
function evenly(count: number, most: number): number[] {
  const n = Math.min(count, most);
  return Array.from({ length: n }, (_, i) => Math.floor((i * count) / n));
}
