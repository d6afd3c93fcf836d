import type { Picture } from "../image/picture";
import type { Figure } from "./figure";
import { round } from "./numbers";
import { below, type Box, inBox, NO_AXES, NOTHING, placePanels } from "./panels";
import { pictureUri, sideFor } from "./picture";
import { baseLayout, escapeText, RIGHT, wrapText } from "./style";

/** What was asked, and what was found, best first. correct: the picture that belongs to the query. */
export type Retrieved = { query: string; results: readonly { picture: Picture; score: number; correct?: boolean }[] };

/**
 * Text-to-image retrieval: one row for each query, its pictures in order with their scores, the right one outlined in green and marked
 * "right". At most 12 queries of 8 results.
 */
export function retrievalGallery(rows: readonly Retrieved[], { title = "Best pictures for each text" } = {}): Figure {
  if (rows.length === 0) throw new RangeError("retrievalGallery: no queries, expected at least one");
  const columns = Math.max(...rows.map((row) => row.results.length));
  if (rows.length > 12 || columns > 8 || columns < 1)
    throw new RangeError(
      `retrievalGallery: ${rows.length} queries of up to ${columns} results, expected 1 to 12 queries of 1 to 8 results`,
    );
  const left = 220;
  const { boxes, ...size } = placePanels(rows.length * columns, columns, { left, top: 84, gapY: 30, bottom: 36, most: 104 });
  const cells = rows.flatMap((row, r) => row.results.map((result, c) => ({ ...result, i: r * columns + c })));
  const side = sideFor(cells.length, 160);
  const judged = rows.filter((row) => row.results.some((result) => result.correct !== undefined));
  const hits = judged.filter((row) => row.results.some((result) => result.correct)).length;
  const note =
    judged.length > 0
      ? `${hits} of ${judged.length} found among the first ${columns}; outlined: the right picture`
      : "score below each picture";
  return {
    data: [NOTHING],
    layout: baseLayout(escapeText(title), note, {
      ...NO_AXES,
      images: cells.map(({ i, picture }) => inBox(boxes[i], pictureUri("retrievalGallery", picture, side))),
      shapes: cells.flatMap(({ i, correct }) => (correct ? [frame(boxes[i])] : [])),
      annotations: [
        ...cells.map(({ i, score, correct }) => below(boxes[i], `${round(score, 3) ?? score}${correct ? " <b>right</b>" : ""}`)),
        ...rows.map(({ query }, r) => asked(query, boxes[r * columns].y)),
      ],
      ...size,
    }),
  };
}

const frame = ({ x, y }: Box): object => ({
  type: "rect",
  xref: "paper",
  yref: "paper",
  x0: x[0],
  x1: x[1],
  y0: y[0],
  y1: y[1],
  line: { color: RIGHT, width: 4 },
});

/** The query, right-aligned left of its row. */
const asked = (query: string, y: [number, number]): object => ({
  text: wrapText(query, 28, 4),
  x: 0,
  y: (y[0] + y[1]) / 2,
  xref: "paper",
  yref: "paper",
  xanchor: "right",
  yanchor: "middle",
  xshift: -14,
  align: "right",
  showarrow: false,
  font: { size: 13 },
});
