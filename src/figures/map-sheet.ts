import type { Picture } from "../image/picture";
import type { Figure, Grid, Vector } from "./figure";
import { largest, patchesOf, round } from "./numbers";
import { below, inBox, NO_AXES, NOTHING, panelTitle, placePanels } from "./panels";
import { checkPicture, pictureUri, shrink, sideFor } from "./picture";
import { tinted } from "./tinted";
import { baseLayout, escapeText, QUIET } from "./style";

/** A map over the picture: weights of the class token and then of the patches, row by row. */
export type SheetMap = { name: string; row: Vector };

export type SheetOptions = { title: string; note?: string; columns?: number; opacity?: number };

/** Maps that one sheet may hold; more would be too small to see. */
const MOST = 120;

/**
 * Many maps over one picture, each with its own scale from 0 to its largest weight on a patch. Below each: that weight, and apart from it what lies on the
 * class token, which shows no place. maps: rows of 1 + rows x columns weights, 0 or more; where: the figure's name in errors
 */
export function mapSheet(where: string, maps: readonly SheetMap[], grid: Grid, picture: Picture, options: SheetOptions): Figure {
  const { title, note, columns = Math.min(8, Math.max(2, Math.ceil(Math.sqrt(maps.length)))), opacity = 0.6 } = options;
  const patches = patchesOf(where, grid);
  checkPicture(where, picture);
  if (maps.length === 0 || maps.length > MOST) throw new RangeError(`${where}: ${maps.length} maps, expected 1 to ${MOST}`);
  const odd = maps.find(({ row }) => row.length !== patches + 1);
  if (odd)
    throw new RangeError(
      `${where}: ${odd.name} has ${odd.row.length} weights for a ${grid[0]}x${grid[1]} grid, expected ${patches + 1} (class token and patches)`,
    );
  const { boxes, ...size } = placePanels(maps.length, columns, {
    aspect: picture.height / picture.width,
    top: 112,
    bottom: 40,
    gapY: 46,
    most: 200,
  });
  const small = fitted(picture, sideFor(maps.length, 200));
  const fontSize = columns > 5 ? 10.5 : 11.5;
  return {
    data: [NOTHING],
    layout: baseLayout(escapeText(title), note ? escapeText(note, 160) : undefined, {
      ...NO_AXES,
      images: maps.map(({ row }, i) => {
        const onPatches = Array.from(row).slice(1);
        return inBox(boxes[i], pictureUri(where, tinted(small, onPatches, grid, largest([onPatches]), opacity)));
      }),
      annotations: maps.flatMap(({ name, row }, i) => {
        const most = largest([Array.from(row).slice(1)]);
        return [
          panelTitle(boxes[i], escapeText(name, 24), fontSize),
          {
            ...(below(boxes[i], `max ${round(most, 2)} · class ${round(row[0], columns > 5 ? 1 : 2)}`) as object),
            font: { size: fontSize - 1, color: QUIET },
          },
        ];
      }),
      ...size,
    }),
  };
}

/** Large enough that every cell is drawn evenly, small enough for the figure. */
function fitted(picture: Picture, side: number): Picture {
  const scale = Math.min(1, side / Math.max(picture.width, picture.height));
  return scale === 1
    ? picture
    : shrink(picture, Math.max(1, Math.round(picture.width * scale)), Math.max(1, Math.round(picture.height * scale)));
}
