/**
 * A figure as a PNG, without a browser: plotly.js runs inside a jsdom window, and sharp rasterises the SVG it makes.
 * jsdom has no canvas and no text layout, so both are supplied here. Three-dimensional (WebGL) traces are not possible this way.
 */
import type { Canvas } from "@napi-rs/canvas";
import { readFile } from "node:fs/promises";
import { Script } from "node:vm";
import type { Figure } from "./figure";
import { STATIC_FONTS, type SvgNode, textBox } from "./svg-text";

/* plotly's file wants a browser, so what we use of it and of jsdom is typed here and required on first use. */
type Plotly = { toImage(figure: object, options: object): Promise<string> };
type Page = { Plotly: Plotly; document: { createElement(tag: string): object }; [name: string]: unknown };
type Prototype = { prototype: Record<string, unknown> };

let page: Promise<Page> | undefined;
let queue: Promise<unknown> = Promise.resolve();

/**
 * Draws a figure as PNG bytes. width and height in CSS pixels (defaults: the figure's own, else 900 x 500); `scale` 2 gives
 * twice the pixels. The first call loads plotly (about a second), later ones take some 0.1-0.5 s.
 */
export async function toPng(figure: Figure, options: { width?: number; height?: number; scale?: number } = {}): Promise<Buffer> {
  const { default: sharp } = await import("sharp");
  const svg = await toSvg(figure, options);
  return sharp(Buffer.from(svg), { density: 72 * (options.scale ?? 1), unlimited: true })
    .flatten({ background: "#ffffff" })
    .png()
    .toBuffer();
}

/** The same figure as an SVG document. */
export async function toSvg({ data, layout }: Figure, options: { width?: number; height?: number } = {}): Promise<string> {
  const size = layout as { width?: number; height?: number; font?: object };
  const { width = size.width ?? 900, height = size.height ?? 500 } = options;
  for (const [name, value] of Object.entries({ width, height }))
    if (!(Number.isInteger(value) && value >= 10 && value <= 8192))
      throw new RangeError(`toSvg: ${name} is ${value}, expected a whole number of pixels from 10 to 8192`);
  page ??= openPage();
  const { Plotly } = await page;
  // Plotly changes what it is given, and measures in the one document of the page: a copy, and one figure at a time.
  // Buttons and sliders are left out: a print has nothing to click.
  const copy = structuredClone({
    data,
    layout: { ...layout, updatemenus: [], sliders: [], width, height, font: { ...size.font, family: STATIC_FONTS } },
  });
  const drawn = queue.then(() => Plotly.toImage({ ...copy, config: { staticPlot: true } }, { format: "svg", width, height }));
  queue = drawn.catch(() => undefined);
  const url = await drawn;
  return decodeURIComponent(url.slice(url.indexOf(",") + 1));
}

async function openPage(): Promise<Page> {
  const { JSDOM } = await import("jsdom");
  const source = await readFile(require.resolve("plotly.js-dist-min/plotly.min.js"), "utf8");
  const dom = new JSDOM("<!DOCTYPE html><body></body>", { runScripts: "outside-only", pretendToBeVisual: true });
  const window = dom.window as unknown as Page;
  await installCanvas(window);
  // jsdom asks `createObjectURL` for nothing that we draw, but plotly looks for it while it loads.
  (window.URL as Record<string, unknown>).createObjectURL = () => "blob:none";
  // A script of our own pinned dependency, in the window's context. `moduleName` is the name its wrapper gives itself.
  new Script(source, { filename: "plotly.min.js" }).runInContext(dom.getInternalVMContext());
  window.Plotly ??= window.moduleName as Plotly;
  return window;
}

/** Gives jsdom a canvas (heatmaps are drawn on one) and the sizes of SVG text. */
async function installCanvas(window: Page): Promise<void> {
  const { createCanvas } = await import("@napi-rs/canvas");
  const canvases = new WeakMap<object, Canvas>();
  type Element = { width: number; height: number };
  const real = (element: Element): Canvas => {
    const known = canvases.get(element);
    if (known && known.width === element.width && known.height === element.height) return known;
    const made = createCanvas(element.width, element.height);
    canvases.set(element, made);
    return made;
  };
  const canvas = (window.HTMLCanvasElement as Prototype).prototype;
  canvas.getContext = function (this: Element, kind: string) {
    return kind === "2d" ? real(this).getContext("2d") : null;
  };
  canvas.toDataURL = function (this: Element) {
    return real(this).toDataURL("image/png");
  };

  const ruler = createCanvas(8, 8).getContext("2d");
  const svg = (window.SVGElement as Prototype).prototype;
  svg.getBBox = function (this: SvgNode) {
    return textBox(this, ruler, true);
  };
  svg.getBoundingClientRect = function (this: SvgNode) {
    return textBox(this, ruler, false);
  };
  svg.getComputedTextLength = function (this: SvgNode) {
    return textBox(this, ruler, true).width;
  };
}
