import type { Picture } from "../image/picture";
import type { Figure } from "./figure";
import { below, inBox, NO_AXES, NOTHING, placePanels } from "./panels";
import { checkPicture, pictureUri, sideFor } from "./picture";
import { baseLayout, escapeText, wrapText } from "./style";

/** One picture. Shown at most 448 pixels wide or high; its true size stands in the title. */
export function imageFigure(picture: Picture, { title = "" } = {}): Figure {
  checkPicture("imageFigure", picture);
  const { width, height } = picture;
  const drawn = Math.max(96, Math.min(448, Math.max(width, height)));
  const [w, h] = [(drawn * width) / Math.max(width, height), (drawn * height) / Math.max(width, height)];
  const head = title ? `${escapeText(title, 60)} · ${width} × ${height}` : `${width} × ${height}`;
  return {
    data: [NOTHING],
    layout: baseLayout(head, undefined, {
      ...NO_AXES,
      images: [inBox({ x: [0, Math.min(1, w / 280)], y: [0, 1] }, pictureUri("imageFigure", picture))], // the title needs 280 pixels
      margin: { l: 18, r: 18, t: 50, b: 18 },
      width: Math.round(Math.max(w, 280) + 36),
      height: Math.round(h + 68),
    }),
  };
}

/**
 * A batch of pictures in rows, each with its title below. At most 96 are drawn, and the title says so where there are more.
 * titles: one text for each picture; columns: pictures in a row.
 */
export function imageGrid(
  pictures: readonly Picture[],
  {
    titles = [],
    columns = Math.min(6, Math.max(2, pictures.length)),
    title = "Pictures",
  }: { titles?: readonly string[]; columns?: number; title?: string } = {},
): Figure {
  if (pictures.length === 0) throw new RangeError("imageGrid: no pictures, expected at least one");
  if (titles.length > 0 && titles.length !== pictures.length)
    throw new RangeError(`imageGrid: ${titles.length} titles for ${pictures.length} pictures, expected one for each or none`);
  if (!(Number.isInteger(columns) && columns >= 1 && columns <= 12))
    throw new RangeError(`imageGrid: columns is ${columns}, expected 1 to 12`);
  const shown = pictures.slice(0, 96);
  const panels = placePanels(shown.length, columns, {
    top: 58,
    bottom: titles.length > 0 ? 44 : 18,
    gapY: titles.length > 0 ? 44 : 14,
    most: 220,
  });
  const { boxes, width, height, margin } = panels;
  const letters = Math.floor(((boxes[0].x[1] - boxes[0].x[0]) * (width - 36)) / 7);
  const count = shown.length < pictures.length ? `${shown.length} of ${pictures.length}` : `${shown.length}`;
  return {
    data: [NOTHING],
    layout: baseLayout(`${escapeText(title, 70)} · ${count}`, undefined, {
      ...NO_AXES,
      images: shown.map((picture, i) => inBox(boxes[i], pictureUri("imageGrid", picture, sideFor(shown.length, 220)))),
      annotations: titles.slice(0, 96).map((text, i) => below(boxes[i], wrapText(text, letters, 2))),
      width,
      height,
      margin,
    }),
  };
}
