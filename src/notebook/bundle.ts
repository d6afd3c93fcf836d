/** A value -> what Jupyter shows of it, in several MIME types: the richest for the notebook, a still picture and text for everywhere else. */
import { inspect } from "node:util";
import type { Figure } from "../figures/figure";
import { toPng } from "../figures/static";
import type { Picture } from "../image/picture";
import { fit } from "./fit";
import { type Html, html, isHtml, textOfHtml } from "./html";
import type { Bundle } from "./kernel";
import { contactSheet, isPicture, MOST, pngOfPicture } from "./pictures";
import { htmlOfTable, imageTag, isTable, textOfTable } from "./tables";

export type ShowOptions = {
  /** Figure: CSS pixels. Default: the figure's own, else 900 x 500. */
  width?: number;
  height?: number;
  /** Picture: each pixel becomes scale x scale. */
  scale?: number;
  /** Pictures: how many in a row (default: up to 10). */
  columns?: number;
  /** Pictures: the side of each, pixels (default: that of the largest, at most 128). */
  size?: number;
  /** Pictures: one text under each. */
  captions?: string[];
  /** Table: how many rows (default 20). */
  rows?: number;
};

/** Which option belongs to what. */
const OPTIONS = {
  figure: ["width", "height"],
  picture: ["scale"],
  pictures: ["columns", "size", "captions"],
  table: ["rows"],
  "plain value": [] as string[],
};
type Kind = keyof typeof OPTIONS;

/** Convention of notebooks in JavaScript: a value with this method says itself how it is shown. */
const DISPLAY = Symbol.for("Jupyter.display");
type Displayable = { [DISPLAY](): Bundle | Promise<Bundle> };

/** Whether a value is a figure. */
export const isFigure = (value: unknown): value is Figure =>
  Array.isArray((value as Partial<Figure> | null)?.data) &&
  typeof (value as Figure).layout === "object" &&
  (value as Figure).layout !== null;

const isPictures = (value: unknown): value is Picture[] => Array.isArray(value) && value.length > 0 && value.every(isPicture);
const isDisplayable = (value: unknown): value is Displayable => typeof (value as Displayable | null)?.[DISPLAY] === "function";

function kindOf(value: unknown): Kind {
  if (isFigure(value)) return "figure";
  if (isPicture(value)) return "picture";
  if (isPictures(value)) return "pictures";
  return isTable(value) ? "table" : "plain value";
}

/**
 * The bundle of a value, and a note where less is shown than there is.
 *
 * @throws RangeError for options that do not go with the value, and for a figure or picture that cannot be shown; the message says why.
 */
export async function bundleOf(value: unknown, options: ShowOptions = {}): Promise<{ bundle: Bundle; note?: string }> {
  const kind = kindOf(value);
  checkOptions(kind, options);
  if (isDisplayable(value)) return { bundle: await value[DISPLAY]() };
  if (isFigure(value)) return figureBundle(value, options);
  if (isPicture(value))
    return {
      bundle: {
        "image/png": (await pngOfPicture(value, options.scale)).toString("base64"),
        "text/plain": `picture ${value.width} x ${value.height}`,
      },
    };
  if (isPictures(value)) return picturesBundle(value, options);
  if (isTable(value))
    return {
      bundle: { "text/html": (await htmlOfTable(value, options.rows ?? 20)).markup, "text/plain": textOfTable(value, options.rows ?? 20) },
    };
  if (isHtml(value)) return { bundle: { "text/html": value.markup, "text/plain": textOfHtml(value) } };
  return { bundle: { "text/plain": typeof value === "string" ? value : inspect(value) } };
}

function checkOptions(kind: Kind, options: ShowOptions): void {
  const wrong = Object.keys(options).filter((key) => !OPTIONS[kind].includes(key));
  if (wrong.length === 0) return;
  const where = wrong.map((key) => {
    const owners = Object.entries(OPTIONS)
      .filter(([, keys]) => keys.includes(key))
      .map(([owner]) => owner);
    return owners.length > 0 ? `"${key}" goes with a ${owners.join(", ")}` : `"${key}" is no option`;
  });
  const known = OPTIONS[kind].length > 0 ? `takes ${OPTIONS[kind].join(", ")}` : "takes no options";
  throw new RangeError(`show: ${where.join("; ")}. This is a ${kind} and ${known}.`);
}

/** Size of a figure that has none of its own, CSS pixels. */
const SIZE = { width: 900, height: 500 };

/**
 * Interactive for JupyterLab, a still picture for GitHub and print, a line for everything else. JupyterLab too shows the picture
 * until the pointer is over it, so both have the same size.
 */
async function figureBundle(figure: Figure, options: ShowOptions): Promise<{ bundle: Bundle; note?: string }> {
  const { figure: fitted, note } = fit(sized(figure, options));
  const text = describeFigure(figure);
  const plotly = { "application/vnd.plotly.v1+json": { ...fitted, config: { displaylogo: false } } };
  try {
    return { bundle: { ...plotly, "image/png": (await toPng(fitted)).toString("base64"), "text/plain": text }, note };
  } catch (error) {
    const reason = (error as Error).message.split("\n")[0];
    return { bundle: { ...plotly, "text/plain": `${text}; no still picture: ${reason}` }, note };
  }
}

/** Only the still picture, for a figure that will be drawn again in a moment. */
export async function movingBundle(figure: Figure, options: ShowOptions): Promise<Bundle> {
  const png = await toPng(fit(sized(figure, options)).figure);
  return { "image/png": png.toString("base64"), "text/plain": describeFigure(figure) };
}

function sized({ data, layout }: Figure, { width, height }: ShowOptions): Figure {
  const own = layout as { width?: number; height?: number };
  return { data, layout: { ...layout, width: width ?? own.width ?? SIZE.width, height: height ?? own.height ?? SIZE.height } };
}

/** "Figure: Attention of layer 3 (heatmap x 4)". */
function describeFigure({ data, layout }: Figure): string {
  const { title } = layout as { title?: string | { text?: string } };
  const name = (typeof title === "string" ? title : title?.text)?.replace(/<br\s*\/?>/g, " ").replace(/<\/?[a-z]+[^>]*>/g, "");
  const kinds = new Map<string, number>();
  for (const trace of data) {
    const type = String((trace as { type?: string }).type ?? "scatter");
    kinds.set(type, (kinds.get(type) ?? 0) + 1);
  }
  const traces = [...kinds].map(([type, count]) => (count > 1 ? `${type} x ${count}` : type)).join(", ");
  return `Figure${name ? `: ${name}` : ""} (${traces || "empty"})`;
}

async function picturesBundle(pictures: Picture[], options: ShowOptions): Promise<{ bundle: Bundle; note?: string }> {
  const { captions } = options;
  if (captions && captions.length !== pictures.length)
    throw new RangeError(`show: ${captions.length} captions for ${pictures.length} pictures, expected one for each`);
  const largest = pictures.reduce((most, { width, height }) => Math.max(most, width, height), 0);
  const { columns = Math.min(pictures.length, 10), size = Math.min(128, largest) } = options;
  for (const [name, value, most] of [
    ["columns", columns, 100],
    ["size", size, 512],
  ] as const)
    if (!(Number.isInteger(value) && value >= 1 && value <= most))
      throw new RangeError(`show: ${name} is ${value}, expected a whole number from 1 to ${most}`);
  const note = pictures.length > MOST ? `The first ${MOST} of ${pictures.length.toLocaleString("en-US")} pictures are shown.` : undefined;
  const text = [`${pictures.length} pictures`, ...(captions ?? []).slice(0, MOST).map((caption, i) => `  ${i}: ${caption}`)].join("\n");
  const sheet = (await contactSheet(pictures, columns, size)).toString("base64");
  const grid = captions && { "text/html": (await captionGrid(pictures.slice(0, MOST), captions, columns, size)).markup };
  return { bundle: { ...grid, "image/png": sheet, "text/plain": text }, note };
}

/** With captions in the browser's fonts, which have every language. */
async function captionGrid(pictures: Picture[], captions: string[], columns: number, size: number): Promise<Html> {
  const cells = await Promise.all(
    pictures.map(
      async (picture, i) =>
        html`<div style="text-align:center;font-size:12px;line-height:1.2;overflow-wrap:anywhere">${await imageTag(picture, size)}<br>${captions[i]}</div>`,
    ),
  );
  return html`<div style="display:grid;gap:8px;justify-content:start;grid-template-columns:repeat(${columns}, ${Math.max(size, 72)}px)">${cells}</div>`;
}
