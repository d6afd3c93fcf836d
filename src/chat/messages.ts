/** What somebody asks, in LMDeploy's and OpenAI's forms, as messages of one form. */
import { existsSync } from "node:fs";
import { type Picture, type PictureOptions, type PictureSource, readPicture } from "../image/picture";

export type Role = "system" | "user" | "assistant";
export type TextPart = { type: "text"; text: string };
export type ImagePart = { type: "image"; picture: Picture };
/** One turn of a conversation, its pictures read. */
export type Message = { role: Role; content: (TextPart | ImagePart)[] };

/** A part of a message as OpenAI's API has it, or with any source of a picture. */
export type PartInput =
  | { type: "text"; text: string }
  | { type: "image_url"; image_url: string | { url: string } }
  | { type: "image"; image: PictureSource };
export type MessageInput = { role: Role; content: string | readonly PartInput[] };

/**
 * A question: a text; a text and its pictures (`["text", picture]`, `["text", [picture, …]]`, `{ text, images }`); or messages in OpenAI's form. Pictures stand
 * before the text, or where it says `<image>`, `<IMAGE_TOKEN>` or the model's own mark, once for each.
 */
export type Ask =
  | string
  | readonly [text: string, images: PictureSource | readonly PictureSource[]]
  | { text: string; images?: readonly PictureSource[] }
  | readonly MessageInput[];

/** Limits that keep one request from taking the machine. */
export const LIMITS = { messages: 1000, images: 64, characters: 4_000_000, prompts: 10_000 };

const ROLES: readonly string[] = ["system", "user", "assistant"];
const MARKS = ["<image>", "<IMAGE_TOKEN>"];

/** Reads a picture from a path, a URL, a data URL, base64, or the bytes of a file. @throws Error named PictureError; see `readPicture` */
export function loadImage(source: PictureSource, options?: PictureOptions): Promise<Picture> {
  const isBase64 = typeof source === "string" && source.length >= 64 && /^[A-Za-z0-9+/\s]+={0,2}\s*$/.test(source);
  return readPicture(isBase64 && !existsSync(source.slice(0, 4096)) ? `data:image;base64,${source}` : source, options);
}

/** The same, with its place in an error, where one of several pictures cannot be read. */
async function pictureAt(where: string, source: PictureSource): Promise<Picture> {
  try {
    return await loadImage(source);
  } catch (error) {
    if (error instanceof Error) error.message = `${where}: ${error.message}`;
    throw error;
  }
}

const isObject = (value: unknown): value is { [key: string]: unknown } =>
  typeof value === "object" && value !== null && !Array.isArray(value) && !ArrayBuffer.isView(value);
const isMessages = (ask: unknown): ask is readonly MessageInput[] =>
  Array.isArray(ask) && ask.length > 0 && ask.every((one) => isObject(one) && "role" in one);

/** Whether a list is many questions rather than one. A list of texts is: put the path of a picture in a list of its own, or load it. */
export function isBatch(ask: Ask | readonly Ask[]): ask is readonly Ask[] {
  const list: readonly unknown[] = Array.isArray(ask) ? ask : [];
  if (!Array.isArray(ask) || isMessages(ask)) return false;
  if (list.length !== 2 || typeof list[0] !== "string") return true;
  return typeof list[1] === "string" || (isObject(list[1]) && "text" in list[1]);
}

const refuse = (text: string): never => {
  throw new RangeError(`chat: ${text}`);
};

/**
 * A question as messages.
 *
 * @param mark the model's own `imageMark`
 * @throws RangeError for a form that is none of those, more than the limits allow, and marks in a text that are not as many as its pictures
 */
export async function readAsk(ask: Ask, mark: string): Promise<Message[]> {
  if (!isMessages(ask)) return [await userMessage(ask, mark)];
  if (ask.length > LIMITS.messages) refuse(`${ask.length} messages, at most ${LIMITS.messages} are read`);
  const images = ask.reduce(
    (sum, { content }) => sum + (typeof content === "string" ? 0 : content.filter(({ type }) => type !== "text").length),
    0,
  );
  if (images > LIMITS.images) refuse(`${images} pictures, at most ${LIMITS.images} are read in one conversation`);
  const messages: Message[] = [];
  for (const [i, { role, content }] of ask.entries()) {
    if (!ROLES.includes(role)) refuse(`messages[${i}].role is ${JSON.stringify(role)}, expected ${ROLES.join(", ")}`);
    if (typeof content !== "string" && !Array.isArray(content)) refuse(`messages[${i}].content: expected a text or a list of parts`);
    const parts: readonly PartInput[] = typeof content === "string" ? [{ type: "text", text: content }] : content;
    messages.push({ role, content: await Promise.all(parts.map((part, k) => readPart(part, `messages[${i}].content[${k}]`))) });
  }
  if (messages.at(-1)!.role !== "user")
    refuse(`the last message is the ${messages.at(-1)!.role}'s; expected a user's, which is to be answered`);
  checkLength(messages);
  return messages;
}

async function readPart(part: PartInput, where: string): Promise<TextPart | ImagePart> {
  if (part?.type === "text" && typeof part.text === "string") return { type: "text", text: part.text };
  if (part?.type === "image") return { type: "image", picture: await pictureAt(where, part.image) };
  if (part?.type === "image_url") {
    const url = typeof part.image_url === "string" ? part.image_url : part.image_url?.url;
    if (typeof url === "string") return { type: "image", picture: await pictureAt(where, url) };
  }
  return refuse(`${where}: expected { type: "text", text }, { type: "image_url", image_url: { url } } or { type: "image", image }`);
}

/** What `["text", pictures]` and `{ text, images }` say. */
function split(ask: Exclude<Ask, readonly MessageInput[]>): { text: string; sources: readonly PictureSource[] } {
  if (typeof ask === "string") return { text: ask, sources: [] };
  const [text, images] = Array.isArray(ask) ? ask : isObject(ask) ? [ask.text, ask.images ?? []] : [undefined, []];
  if (typeof text !== "string")
    refuse('expected a text, ["text", picture], ["text", [pictures]], { text, images }, or messages with a role');
  return { text: text as string, sources: (Array.isArray(images) ? images : [images]) as readonly PictureSource[] };
}

async function userMessage(ask: Exclude<Ask, readonly MessageInput[]>, mark: string): Promise<Message> {
  const { text, sources } = split(ask);
  if (sources.length > LIMITS.images) refuse(`${sources.length} pictures, at most ${LIMITS.images} are read in one conversation`);
  checkLength([{ role: "user", content: [{ type: "text", text }] }]);
  const read = (source: PictureSource, i: number) =>
    sources.length > 1 ? pictureAt(`picture ${i + 1} of ${sources.length}`, source) : loadImage(source);
  const pictures = await Promise.all(sources.map(read));
  const pieces = pictures.length ? cutAtMarks(text, [mark, ...MARKS]) : [text];
  if (pieces.length === 1)
    return { role: "user", content: [...pictures.map((picture): ImagePart => ({ type: "image", picture })), { type: "text", text }] };
  if (pieces.length - 1 !== pictures.length)
    refuse(
      `the text has ${pieces.length - 1} marks for pictures (${mark}), ${pictures.length} pictures came; write one for each, or none: pictures then stand first`,
    );
  const content = pieces.flatMap((piece, i): Message["content"] => [
    ...(piece ? [{ type: "text" as const, text: piece }] : []),
    ...(i < pictures.length ? [{ type: "image" as const, picture: pictures[i] }] : []),
  ]);
  return { role: "user", content };
}

/** The text between the marks; the line's end behind a mark belongs to the mark, as templates write one of their own. */
function cutAtMarks(text: string, marks: readonly string[]): string[] {
  const pieces = [""];
  for (let at = 0; at < text.length; ) {
    const mark = marks.find((one) => text.startsWith(one, at));
    if (mark) {
      at += mark.length + (text[at + mark.length] === "\n" ? 1 : 0);
      pieces.push("");
    } else pieces[pieces.length - 1] += text[at++];
  }
  return pieces;
}

function checkLength(messages: readonly Message[]): void {
  const characters = messages.reduce(
    (sum, { content }) => sum + content.reduce((n, part) => n + (part.type === "text" ? part.text.length : 0), 0),
    0,
  );
  if (characters > LIMITS.characters) refuse(`${characters} characters of text, at most ${LIMITS.characters} are read`);
}

export const picturesOf = (messages: readonly Message[]): Picture[] =>
  messages.flatMap(({ content }) => content.flatMap((part) => (part.type === "image" ? [part.picture] : [])));
