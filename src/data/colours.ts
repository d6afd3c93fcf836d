/** The colour that a drawing mostly has, in a word. */
import type { Picture } from "../image/picture";

export const COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "grey", "white"] as const;
export type Colour = (typeof COLOURS)[number];

/** Brighter than this in every channel is paper. Numbers are shares of 1. */
const PAPER = 245 / 255;

/** The word for one colour; undefined for the paper. r, g, b: 0 to 255 */
export function colourName(r: number, g: number, b: number): Colour | undefined {
  const [most, least] = [Math.max(r, g, b) / 255, Math.min(r, g, b) / 255];
  if (least > PAPER) return undefined;
  const saturation = most === 0 ? 0 : (most - least) / most;
  if (most < 0.28) return "black";
  if (saturation < 0.22) return most > 0.92 ? "white" : "grey";
  return hueName(hueOf(r, g, b), saturation, most);
}

/** Degrees: red 0, green 120, blue 240. */
function hueOf(r: number, g: number, b: number): number {
  const [most, span] = [Math.max(r, g, b), Math.max(r, g, b) - Math.min(r, g, b)];
  const sector = most === r ? (g - b) / span : most === g ? 2 + (b - r) / span : 4 + (r - g) / span;
  return (sector * 60 + 360) % 360;
}

function hueName(hue: number, saturation: number, most: number): Colour {
  if (hue >= 290 && hue < 340) return "pink";
  if (hue >= 340 || hue < 5) return saturation < 0.65 && most > 0.8 ? "pink" : "red";
  if (hue < 40 && (most < 0.8 || saturation < 0.5)) return "brown"; // dark orange, and skin
  if (hue < 15) return "red";
  if (hue < 40) return "orange";
  if (hue < 70) return most < 0.5 ? "brown" : "yellow";
  if (hue < 165) return "green";
  return hue < 255 ? "blue" : "purple";
}

/**
 * The colour of most of what is drawn, the paper apart, where it covers at least `share` of it; undefined where none does, or nothing is drawn.
 * A clear answer needs a clear picture.
 */
export function mainColour({ data }: Picture, share = 0.5): Colour | undefined {
  const counts = new Map<Colour, number>();
  let drawn = 0;
  for (let i = 0; i < data.length; i += 3) {
    const name = colourName(data[i], data[i + 1], data[i + 2]);
    if (!name) continue;
    drawn++;
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  const [best] = [...counts].sort((a, b) => b[1] - a[1]);
  return best && best[1] >= share * drawn ? best[0] : undefined;
}
