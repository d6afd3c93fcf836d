/** Questions about pictures of emoji with answers that follow from names, groups and pixels: what, which colour, which kind, how many, where. */
import type { Picture } from "../image/picture";
import { resize } from "../image/resize";
import { type Colour, mainColour } from "./colours";
import type { EmojiEntry } from "./emoji";
import { type Random, shuffle } from "./random";

export type Topic = "caption" | "colour" | "kind" | "count" | "place";
export type Turn = { topic: Topic; question: string; answer: string };

/** Ways to ask; the first is the one that is measured. `place` goes into "{place}". */
export const QUESTIONS: { [topic in Topic]: readonly string[] } = {
  caption: ["What is this?", "Describe the picture.", "What does the picture show?"],
  colour: ["What colour is it?", "Which colour is it mostly?", "Name its main colour."],
  kind: ["What kind of thing is it?", "Which group does it belong to?"],
  count: ["How many are there?", "How many emoji are in the picture?", "Count the emoji."],
  place: ["What colour is the one at the {place}?", "Which colour is at the {place}?"],
};
export const NUMBERS = ["none", "one", "two", "three", "four"] as const;
export const NOTHING = "nothing is there";

/** An emoji with its picture, a square, and the picture's colour where it is clear. */
export type Drawn = Pick<EmojiEntry, "caption" | "group" | "toned"> & { picture: Picture; colour?: Colour };

/** One emoji, drawn over the whole picture, or several in the cells of a grid, row by row. */
export type Scene = { picture: Picture; cells: (Drawn | undefined)[]; rows: number; columns: number };

/** An emoji with its colour; a skin tone is no colour to ask for. */
export const drawn = (entry: Pick<EmojiEntry, "caption" | "group" | "toned">, picture: Picture): Drawn => ({
  ...entry,
  picture,
  colour: entry.toned ? undefined : mainColour(picture),
});

/** One emoji as a scene. */
export const single = (one: Drawn): Scene => ({ picture: one.picture, cells: [one], rows: 1, columns: 1 });

/** Emoji in the cells of a grid on white paper of `columns` x `rows` cells of `side` pixels; undefined leaves a cell empty. */
export function compose(cells: (Drawn | undefined)[], { rows, columns, side }: { rows: number; columns: number; side: number }): Scene {
  if (cells.length !== rows * columns)
    throw new RangeError(`compose: ${cells.length} cells for a grid of ${rows} x ${columns}, expected ${rows * columns}`);
  const [width, height] = [columns * side, rows * side];
  const data = new Uint8Array(width * height * 3).fill(255);
  for (const [i, cell] of cells.entries()) {
    if (!cell) continue;
    const { picture } = cell;
    const small = picture.width === side && picture.height === side ? picture : resize(picture, side, side, "bicubic");
    const [top, left] = [Math.floor(i / columns) * side, (i % columns) * side];
    for (let y = 0; y < side; y++) data.set(small.data.subarray(y * side * 3, (y + 1) * side * 3), ((top + y) * width + left) * 3);
  }
  return { picture: { width, height, data }, cells, rows, columns };
}

/** `count` emoji in random cells of a grid. */
export function scatter(emoji: Drawn[], grid: { rows: number; columns: number; side: number }, next: Random): Scene {
  const room = grid.rows * grid.columns;
  if (emoji.length > room) throw new RangeError(`scatter: ${emoji.length} emoji do not fit a grid of ${grid.rows} x ${grid.columns}`);
  return compose(shuffle([...emoji, ...Array<undefined>(room - emoji.length).fill(undefined)], next), grid);
}

/** How a cell's place is called: "top left", or "left" where there is one row. */
export function placeName(i: number, { rows, columns }: Pick<Scene, "rows" | "columns">): string {
  const down = rows === 1 ? "" : ["top", "bottom"][Math.floor(i / columns)];
  const across = columns === 1 ? "" : ["left", "right"][i % columns];
  return [down, across].filter(Boolean).join(" ");
}

/**
 * Every question that a scene has a clear answer to. Of one emoji its name, colour, group and number; of several their number, and the colour at each place.
 *
 * @param next draws the way to ask; without it the first way is taken
 */
export function turnsOf(scene: Scene, next?: Random): Turn[] {
  const ask = (topic: Topic, answer: string, place = ""): Turn => {
    const ways = QUESTIONS[topic];
    return { topic, question: ways[next ? Math.floor(next() * ways.length) : 0].replace("{place}", place), answer };
  };
  const there = scene.cells.filter((cell) => cell !== undefined);
  const turns = [ask("count", NUMBERS[there.length])];
  if (scene.cells.length === 1) {
    const [{ caption, colour, group }] = there;
    turns.push(ask("caption", caption), ask("kind", group));
    if (colour) turns.push(ask("colour", colour));
    return turns;
  }
  for (const [i, cell] of scene.cells.entries()) {
    const answer = cell ? cell.colour : NOTHING;
    if (answer) turns.push(ask("place", answer, placeName(i, scene)));
  }
  return turns;
}
