/** Where the tokens of a prompt go, and whether they fit. */
import type { Prompt, VisionLanguageModel } from "../models/loaded";

export type Budget = {
  /** Tokens of the text, the template's included. */
  text: number;
  images: {
    tokens: number;
    /** Tiles that are parts of the picture. */
    tiles: number;
    /** Whether the whole picture comes besides. */
    thumbnail: boolean;
  }[];
  /** Text and pictures together. */
  total: number;
  /** What the model reads at most, answer included. */
  context: number;
  /** Tokens that an answer may have; negative where the prompt alone is too long. */
  room: number;
};

/** The budget of a prompt. sessionLength: a limit below the model's own */
export function budgetOf(
  model: Pick<VisionLanguageModel, "language">,
  { ids, images }: Prompt,
  sessionLength = Number.POSITIVE_INFINITY,
): Budget {
  const { encoder, contextLength } = model.language; // an encoder's prompt and the decoder's answer have positions of their own
  const context = Math.min(encoder ? Number.POSITIVE_INFINITY : contextLength, sessionLength);
  const each = images.map(({ start, end, tiled }) => ({
    tokens: end - start,
    tiles: tiled.tiles.filter(({ kind }) => kind === "tile").length || 1,
    thumbnail: tiled.tiles.some(({ kind }) => kind !== "tile") && tiled.count > 1,
  }));
  const pictures = each.reduce((sum, { tokens }) => sum + tokens, 0);
  return { text: ids.length - pictures, images: each, total: ids.length, context, room: context - ids.length };
}

const amount = (n: number, what: string): string => `${n.toLocaleString("en-US")} ${what}${n === 1 ? "" : "s"}`;

/** "27 tokens of text; picture 1: 3,328 tokens (12 tiles and the whole as a thumbnail); together 3,355 of 4,096, room for 741". */
export function budgetText({ text, images, total, context, room }: Budget): string {
  const pictures = images.map(
    ({ tokens, tiles, thumbnail }, i) =>
      `picture ${i + 1}: ${amount(tokens, "token")} (${amount(tiles, "tile")}${thumbnail ? " and the whole as a thumbnail" : ""})`,
  );
  const all = [`${amount(text, "token")} of text`, ...pictures].join("; ");
  const limit = Number.isFinite(context) ? ` of ${context.toLocaleString("en-US")}` : "";
  const left =
    room >= 0 ? `room for ${Number.isFinite(room) ? room.toLocaleString("en-US") : "any answer"}` : `${amount(-room, "token")} too many`;
  return `${all}; together ${total.toLocaleString("en-US")}${limit}, ${left}`;
}

/** @throws RangeError with the budget where the prompt leaves no room for an answer */
export function checkRoom(budget: Budget): void {
  if (budget.room >= 1) return;
  const advice = budget.images.length
    ? "ask shorter, begin a new session, or cut pictures into fewer tiles ({ tiles: { max_patches: … } })"
    : "ask shorter, or begin a new session";
  throw new RangeError(`chat: the prompt does not fit, with one token for an answer: ${budgetText(budget)}; ${advice}`);
}
