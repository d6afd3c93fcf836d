/** Many texts brought to one length: truncation that keeps the specials, padding and masks, on the sides that the checkpoint says. */
import { fillFrame, type Frame, type Segments, specialCount } from "./around";
import type { Encoder } from "./pipeline";

/** How a batch is brought to one length. */
export type BatchOptions = {
  /** Tokens a row may have, specials included; by default what the model takes. */
  maxLength?: number;
  /** To the longest text, to maxLength, or not at all. */
  padding?: "longest" | "max_length" | false;
  /** The side that is filled; by default the checkpoint's (decoders pad on the left to generate). */
  paddingSide?: "left" | "right";
  /** Whether longer texts are cut (the specials stay); otherwise they are an error. */
  truncation?: boolean;
  /** Second texts, one for each (question and passage). */
  pairs?: string[];
  /** `text`: special tokens that stand in the texts are letters like any others. */
  specials?: "tokens" | "text";
};

/** Rows of one length; mask: 1 on text, 0 on padding; typeIds: 1 on the second text where the checkpoint tells them apart. */
export type Batch = { ids: number[][]; mask: number[][]; typeIds: number[][] };

export type BatchSettings = {
  frame: Frame;
  modelMaxLength: number;
  paddingSide: "left" | "right";
  truncationSide: "left" | "right";
  pad?: number;
};

function checkLimits(maxLength: number, around: number, isNeeded: boolean): void {
  const unlimited = maxLength === Number.POSITIVE_INFINITY;
  if (!unlimited && (!Number.isInteger(maxLength) || maxLength <= around))
    throw new RangeError(`batch: maxLength ${maxLength}, expected a whole number above ${around}, the special tokens around a text`);
  if (unlimited && isNeeded) throw new RangeError("batch: this checkpoint does not say how long a text may be; give maxLength");
}

/** Cuts the longer of two texts, one token at a time, until both fit (`longest_first`). */
export function cutToFit(
  first: number[],
  second: number[] | undefined,
  room: number,
  side: "left" | "right",
): [number[], number[] | undefined] {
  const keep = (ids: number[], count: number) => (side === "right" ? ids.slice(0, count) : ids.slice(ids.length - count));
  if (!second) return [keep(first, Math.min(first.length, room)), undefined];
  let [a, b] = [first.length, second.length];
  while (a + b > room) {
    if (a > b) a--;
    else b--;
  }
  return [keep(first, a), keep(second, b)];
}

export function makeBatch(encode: Encoder, settings: BatchSettings): (texts: string[], options?: BatchOptions) => Batch {
  const { frame, modelMaxLength, truncationSide, pad } = settings;
  return (texts, options = {}) => {
    const { maxLength = modelMaxLength, padding = "longest", truncation = false, pairs, specials = "tokens" } = options;
    const { paddingSide = settings.paddingSide } = options;
    if (pairs && pairs.length !== texts.length) throw new RangeError(`batch: ${texts.length} texts and ${pairs.length} pairs`);
    const pieces = pairs ? frame.pair : frame.single;
    const around = specialCount(pieces);
    checkLimits(maxLength, around, padding === "max_length" || truncation);
    const rows = texts.map((text, i): Segments => {
      const [first, second] = [encode(text, specials === "text"), pairs && encode(pairs[i], specials === "text")];
      const length = first.length + (second?.length ?? 0) + around;
      if (length > maxLength && !truncation)
        throw new RangeError(
          `batch: texts[${i}] (${JSON.stringify(text.slice(0, 40))}…) has ${length} tokens, ${maxLength} fit; ` +
            "shorten it, or cut it with { truncation: true }",
        );
      const [a, b] = cutToFit(first, second, maxLength - around, truncationSide);
      return fillFrame(pieces, a, b);
    });
    const longest = rows.reduce((most, { ids }) => Math.max(most, ids.length), 0);
    const width = padding === "max_length" ? maxLength : padding === "longest" ? longest : 0;
    if (pad === undefined && rows.some(({ ids }) => ids.length < width))
      throw new RangeError("batch: texts of different lengths need padding, but this checkpoint has no pad_token");
    const fill = (row: number[], value: number): number[] => {
      const extra: number[] = new Array(Math.max(0, width - row.length)).fill(value);
      return paddingSide === "right" ? [...row, ...extra] : [...extra, ...row];
    };
    return {
      ids: rows.map(({ ids }) => fill(ids, pad ?? 0)),
      mask: rows.map(({ ids }) => fill(new Array(ids.length).fill(1), 0)),
      typeIds: rows.map(({ typeIds }) => fill(typeIds, 0)),
    };
  };
}
