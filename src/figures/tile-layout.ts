import type { Picture } from "../image/picture";
import type { Box, Size, Tile, Tiled } from "../image/tiles";
import type { Figure } from "./figure";
import { inBox } from "./panels";
import { checkPicture, pictureUri } from "./picture";
import { baseLayout, CHOSEN, escapeText, INK, QUIET } from "./style";

/** First and last position of a tile's tokens in the prompt, both counted. */
export type TokenRange = readonly [first: number, last: number];

export type TileLayoutOptions = {
  /** Which tokens each tile became, or how many each has, one tile after the other from position 0. */
  tokens?: number | readonly TokenRange[];
  title?: string;
};

/** Pixels of the figure's panels. */
const [MAIN, TALLEST, BESIDE, GAP, CAPTION] = [600, 560, 220, 44, 24];
const MARGIN = { l: 18, r: 18, t: 86, b: 24 };

/**
 * How a picture was cut: the borders and numbers of its tiles on the picture itself, in the order in which the model reads them, and
 * beside it the view of the whole that some models read too. Grey is padding that the model sees and the picture does not have.
 * Hover names the pixels of the original. picture: what was given to `tile()`; tiled: what it gave.
 */
export function tileLayout(picture: Picture, tiled: Tiled, { tokens, title = "" }: TileLayoutOptions = {}): Figure {
  const ranges = checkInputs(picture, tiled, tokens);
  const { tiles, size, pictures } = tiled;
  const cut = tiles.flatMap((tile, i) => (tile.kind === "tile" ? [i] : []));
  const shown = cut.length ? cut : [0];
  const whole = tiles.findIndex(({ kind }) => kind !== "tile");
  const area = around(
    picture,
    shown.map((i) => tiles[i].box),
  );
  const scale = Math.min(MAIN / area.width, TALLEST / area.height);
  const [w, h] = [area.width * scale, Math.max(area.height * scale, whole === -1 ? 0 : beside(size).height + CAPTION)];
  const plot = w + (whole === -1 ? 0 : GAP + BESIDE);
  const at = (x: number) => x / plot;
  const top = 1 - (area.height * scale) / h;
  const axis = { visible: false, fixedrange: true };
  return {
    data: [centres(tiles, shown, ranges)],
    layout: baseLayout(escapeText(title) || headline(tiled), subtitle(tiled), {
      xaxis: { ...axis, domain: [0, at(w)], range: [area.left, area.left + area.width] },
      yaxis: { ...axis, domain: [top, 1], range: [area.top + area.height, area.top] },
      images: [underAxes(picture), ...(whole === -1 ? [] : [wholeImage(pictures[whole], at(w + GAP), h)])],
      shapes: [padding(area), ...shown.flatMap((i) => border(tiles[i].box))],
      annotations: [
        ...shown.map((i) => label(i, tiles[i].box, scale, ranges[i])),
        ...(whole === -1 ? [] : wholeCaption(whole, tiles[whole], at(w + GAP), ranges[whole])),
      ],
      width: Math.round(Math.max(plot, 420) + MARGIN.l + MARGIN.r),
      height: Math.round(h + MARGIN.t + MARGIN.b),
      margin: { ...MARGIN, r: MARGIN.r + Math.max(0, 420 - plot) },
    }),
  };
}

const headline = ({ tiles, grid, count }: Tiled): string => {
  const cut = tiles.filter(({ kind }) => kind === "tile").length;
  const whole = tiles.find(({ kind }) => kind !== "tile");
  if (cut === 0) return count === 1 ? "One view of the whole picture, not cut" : `${count} views of the whole picture, not cut`;
  return `${cut} ${cut === 1 ? "tile" : "tiles"}, ${grid.rows} × ${grid.columns}${whole ? `, and the whole picture as ${whole.kind}` : ""}`;
};

const subtitle = ({ original, size, tiles }: Tiled): string => {
  const padded = tiles.some(({ inside }) => inside.width < size.width - 1e-6 || inside.height < size.height - 1e-6);
  return `picture of ${original.width} × ${original.height}, tiles of ${size.width} × ${size.height} pixels${padded ? "; grey is padding" : ""}`;
};

/** The token range of each tile, or undefined. */
function checkInputs(picture: Picture, { tiles, original }: Tiled, tokens: TileLayoutOptions["tokens"]): (TokenRange | undefined)[] {
  checkPicture("tileLayout", picture);
  if (picture.width !== original.width || picture.height !== original.height)
    throw new RangeError(
      `tileLayout: the picture is ${picture.width} x ${picture.height}, the tiles were cut from ${original.width} x ${original.height}; give the picture that tile() was given`,
    );
  if (tokens === undefined) return tiles.map(() => undefined);
  if (typeof tokens === "number") {
    if (!(Number.isInteger(tokens) && tokens > 0)) throw new RangeError(`tileLayout: tokens is ${tokens}, expected a whole number above 0`);
    return tiles.map((_, i): TokenRange => [i * tokens, (i + 1) * tokens - 1]);
  }
  if (tokens.length !== tiles.length)
    throw new RangeError(
      `tileLayout: ${tokens.length} token ranges for ${tiles.length} tiles, expected one for each, the whole picture's included`,
    );
  return [...tokens];
}

/** How large the view of the whole picture is drawn. */
function beside({ width, height }: Size): Size {
  const scale = Math.min(BESIDE / width, (TALLEST - CAPTION) / height);
  return { width: width * scale, height: height * scale };
}

/** The picture and all boxes. */
function around({ width, height }: Picture, boxes: Box[]): Box {
  const left = Math.min(0, ...boxes.map((box) => box.left));
  const top = Math.min(0, ...boxes.map((box) => box.top));
  const right = Math.max(width, ...boxes.map((box) => box.left + box.width));
  const bottom = Math.max(height, ...boxes.map((box) => box.top + box.height));
  return { left, top, width: right - left, height: bottom - top };
}

const underAxes = (picture: Picture): object => ({
  source: pictureUri("tileLayout", picture),
  ...{ xref: "x", yref: "y", x: 0, y: 0, sizex: picture.width, sizey: picture.height },
  ...{ xanchor: "left", yanchor: "top", sizing: "stretch", layer: "below" },
});

/** The whole picture as the model sees it, at the right, under its caption. */
function wholeImage(seen: Picture, left: number, height: number): object {
  const y = 1 - CAPTION / height;
  return inBox({ x: [left, 1], y: [Math.max(0, y - beside(seen).height / height), y] }, pictureUri("tileLayout", seen, BESIDE));
}

const padding = ({ left, top, width, height }: Box): object => ({
  ...{ type: "rect", xref: "x", yref: "y", x0: left, y0: top, x1: left + width, y1: top + height },
  ...{ fillcolor: "#C9CDD3", line: { width: 0 }, layer: "below" },
});

/** A line that is seen on any picture: coloured, on a white one. */
const border = ({ left, top, width, height }: Box): object[] =>
  [
    { color: "rgba(255,255,255,0.9)", width: 4 },
    { color: CHOSEN, width: 1.5 },
  ].map((line) => ({ type: "rect", xref: "x", yref: "y", x0: left, y0: top, x1: left + width, y1: top + height, line, layer: "above" }));

const rangeText = (range: TokenRange): string => (range[0] === range[1] ? `${range[0]}` : `${range[0]}–${range[1]}`);

/** Number and tokens in the middle of a tile, as much as there is room for. */
function label(i: number, box: Box, scale: number, range: TokenRange | undefined): object {
  const [w, h] = [box.width * scale, box.height * scale];
  const long = range && `tokens ${rangeText(range)}`;
  const fits = long && h >= 44 ? [long, rangeText(range)].find((text) => text.length * 7 + 8 <= w) : undefined;
  return {
    ...{ x: box.left + box.width / 2, y: box.top + box.height / 2, xref: "x", yref: "y", showarrow: false },
    text: `<b>${i}</b>${fits ? `<br>${fits}` : ""}`,
    font: { size: Math.max(8, Math.min(12, w / 3, h / 2)), color: INK },
    bgcolor: "rgba(255,255,255,0.82)",
    borderpad: w > 40 ? 3 : 1,
  };
}

/** Above the view of the whole picture: its number, and its tokens. */
function wholeCaption(i: number, { kind }: Tile, left: number, range: TokenRange | undefined): object[] {
  const place = { x: left, y: 1, xref: "paper", yref: "paper", xanchor: "left", yanchor: "top", showarrow: false, borderpad: 0 };
  const more = range ? `, tokens ${rangeText(range)}` : "";
  return [{ ...place, text: `<b>${i}</b> ${kind}${more}`, font: { size: 12, color: range ? INK : QUIET } }];
}

/** Points that draw nothing and tell on hover what each tile shows. */
function centres(tiles: Tile[], shown: number[], ranges: (TokenRange | undefined)[]): object {
  const pixel = (x: number): string => String(Math.round(x * 10) / 10);
  const text = ({ kind, row, column, box }: Tile, i: number): string => {
    const range = ranges[i];
    const place = kind === "tile" ? `row ${row}, column ${column}` : kind;
    const span = `x ${pixel(box.left)} to ${pixel(box.left + box.width)}<br>y ${pixel(box.top)} to ${pixel(box.top + box.height)}`;
    return `tile ${i}, ${place}<br>${span}${range ? `<br>tokens ${rangeText(range)}` : ""}`;
  };
  return {
    ...{ type: "scatter", mode: "markers", marker: { opacity: 0, size: 24 } },
    x: shown.map((i) => tiles[i].box.left + tiles[i].box.width / 2),
    y: shown.map((i) => tiles[i].box.top + tiles[i].box.height / 2),
    customdata: shown.map((i) => text(tiles[i], i)),
    hovertemplate: "%{customdata}<extra></extra>",
  };
}
