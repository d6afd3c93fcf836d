/**
 * The boxes of SVG texts, which jsdom does not know: plotly asks for them to place labels, legends and margins.
 * Only texts have a size here. Widths come from a canvas with the same fonts; the transforms met in plotly's drawings
 * (translate, rotate, scale) are applied.
 */

/** What measures: the 2-D context of any canvas. */
export type Ruler = { font: string; measureText(text: string): { width: number } };

/** The fonts that text is measured and drawn with; the first that the machine has is taken. */
export const STATIC_FONTS = "DejaVu Sans, Liberation Sans, Noto Sans, Arial, sans-serif";

/** The part of an SVG element that is read here. */
export type SvgNode = {
  tagName?: string;
  textContent: string | null;
  parentNode: SvgNode | null;
  style?: { fontSize?: string; textAnchor?: string; fontWeight?: string; display?: string };
  getAttribute?(name: string): string | null;
  querySelectorAll?(query: string): ArrayLike<SvgNode>;
};

type Matrix = readonly [number, number, number, number, number, number]; // x' = a x + c y + e, y' = b x + d y + f
type Box = { x0: number; y0: number; x1: number; y1: number };
const ASCENT = 0.93; // of the font size; DejaVu Sans
const DESCENT = 0.24;

/** Box around the texts in a node, in the coordinates of the window (`local` false) or of the node itself. */
export function textBox(node: SvgNode, ruler: Ruler, local: boolean) {
  const texts = node.tagName === "text" || node.tagName === "tspan" ? [node] : Array.from(node.querySelectorAll?.("text") ?? []);
  const box: Box = { x0: Infinity, y0: Infinity, x1: -Infinity, y1: -Infinity };
  for (const text of texts) {
    if (!(text.textContent ?? "").trim()) continue;
    const to = matrixTo(text, local ? node : null);
    for (const line of linesOf(text)) grow(box, lineBox(text, line, ruler), to);
  }
  if (box.x0 > box.x1) box.x0 = box.x1 = box.y0 = box.y1 = 0;
  const { x0, y0, x1, y1 } = box;
  return { x: x0, y: y0, left: x0, top: y0, right: x1, bottom: y1, width: x1 - x0, height: y1 - y0 };
}

function linesOf(text: SvgNode): SvgNode[] {
  const lines = Array.from(text.querySelectorAll?.("tspan.line") ?? []);
  return lines.length > 0 ? lines : [text];
}

function lineBox(text: SvgNode, line: SvgNode, ruler: Ruler): Box {
  const size = inherited(text, (n) => parseFloat(n.style?.fontSize || n.getAttribute?.("font-size") || "")) ?? 12;
  const anchor = inherited(text, (n) => n.getAttribute?.("text-anchor") || n.style?.textAnchor) ?? "start";
  const weight = inherited(text, (n) => n.style?.fontWeight) ?? "normal";
  ruler.font = `${weight === "bold" ? "bold " : ""}${size}px ${STATIC_FONTS}`;
  const string = line.textContent ?? "";
  const width = ruler.measureText(string).width || string.length * size * 0.55; // a machine without fonts
  const attribute = (name: string) => parseFloat(line.getAttribute?.(name) ?? text.getAttribute?.(name) ?? "") || 0;
  const x = attribute("x") - (anchor === "middle" ? width / 2 : anchor === "end" ? width : 0);
  const y = attribute("y") + attribute("dy") * size; // plotly gives dy in em
  return { x0: x, y0: y - ASCENT * size, x1: x + width, y1: y + DESCENT * size };
}

function inherited<T>(node: SvgNode, read: (node: SvgNode) => T | undefined): T | undefined {
  for (let at: SvgNode | null = node; at; at = at.parentNode) {
    const value = read(at);
    if (value) return value;
  }
  return undefined;
}

function grow(box: Box, { x0, y0, x1, y1 }: Box, [a, b, c, d, e, f]: Matrix): void {
  for (const [x, y] of [
    [x0, y0],
    [x1, y0],
    [x0, y1],
    [x1, y1],
  ] as const) {
    box.x0 = Math.min(box.x0, a * x + c * y + e);
    box.x1 = Math.max(box.x1, a * x + c * y + e);
    box.y0 = Math.min(box.y0, b * x + d * y + f);
    box.y1 = Math.max(box.y1, b * x + d * y + f);
  }
}

/** The product of the transforms from a node up to `stop` (not included) or to the root. */
function matrixTo(node: SvgNode, stop: SvgNode | null): Matrix {
  let m: Matrix = [1, 0, 0, 1, 0, 0];
  for (let at: SvgNode | null = node; at && at !== stop; at = at.parentNode) m = times(parse(at.getAttribute?.("transform") ?? ""), m);
  return m;
}

function parse(transform: string): Matrix {
  let m: Matrix = [1, 0, 0, 1, 0, 0];
  for (const [, kind, list] of transform.matchAll(/(\w+)\(([^)]*)\)/g)) {
    const [p = 0, q, r = 0] = list
      .split(/[\s,]+/)
      .filter(Boolean)
      .map(Number);
    if (kind === "translate") m = times(m, [1, 0, 0, 1, p, q ?? 0]);
    if (kind === "scale") m = times(m, [p, 0, 0, q ?? p, 0, 0]);
    if (kind === "rotate") {
      const [cos, sin, x] = [Math.cos((p * Math.PI) / 180), Math.sin((p * Math.PI) / 180), q ?? 0];
      m = times(m, [cos, sin, -sin, cos, x - cos * x + sin * r, r - sin * x - cos * r]);
    }
  }
  return m;
}

function times([a, b, c, d, e, f]: Matrix, [g, h, i, j, k, l]: Matrix): Matrix {
  return [a * g + c * h, b * g + d * h, a * i + c * j, b * i + d * j, a * k + c * l + e, b * k + d * l + f];
}
