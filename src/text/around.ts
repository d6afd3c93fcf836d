/** The special tokens that a checkpoint puts around a text, and between two (the `post_processor` of `tokenizer.json`). */

/** Ids with the segment that each belongs to (BERT's `token_type_ids`). */
export type Segments = { ids: number[]; typeIds: number[] };

/** One step of a frame: a special token, or the first or second text. */
type Piece = { ids?: number[]; of?: "A" | "B"; type: number };
export type Frame = { single: Piece[]; pair: Piece[] };

type Json = Record<string, unknown>;

const text = (of: "A" | "B", type: number): Piece => ({ of, type });
const special = (id: number, type: number): Piece => ({ ids: [id], type });

/** The frame that a post-processor describes. @throws Error where its type is not known. */
export function readFrame(post: unknown, idOf: (token: string) => number | undefined): Frame {
  const plain: Frame = { single: [text("A", 0)], pair: [text("A", 0), text("B", 1)] };
  if (post === null || post === undefined) return plain;
  const { type } = post as Json;
  if (type === "ByteLevel") return plain;
  if (type === "Sequence") {
    const frames = ((post as Json).processors as unknown[]).filter((step) => (step as Json).type !== "ByteLevel");
    if (frames.length > 1) throw new Error(`post_processor: ${frames.length} steps that add tokens, expected one`);
    return readFrame(frames[0], idOf);
  }
  if (type === "TemplateProcessing") return readTemplate(post as Json, idOf);
  if (type !== "RobertaProcessing" && type !== "BertProcessing") throw new Error(`post_processor: unknown type ${JSON.stringify(type)}`);
  const [cls, sep] = ["cls", "sep"].map((role) => ((post as Json)[role] as [string, number])[1]);
  const single = [special(cls, 0), text("A", 0), special(sep, 0)];
  if (type === "BertProcessing") return { single, pair: [...single, text("B", 1), special(sep, 1)] };
  return { single, pair: [...single, special(sep, 0), text("B", 0), special(sep, 0)] };
}

function readTemplate(post: Json, idOf: (token: string) => number | undefined): Frame {
  const named = (post.special_tokens ?? {}) as Record<string, { ids?: number[] }>;
  const piece = (entry: Json): Piece => {
    const [kind, value] = Object.entries(entry)[0] as [string, { id: string; type_id?: number }];
    const type = value.type_id ?? 0;
    if (kind === "Sequence") return text(value.id === "B" ? "B" : "A", type);
    const ids = named[value.id]?.ids ?? [idOf(value.id)].filter((id): id is number => id !== undefined);
    if (ids.length === 0) throw new Error(`post_processor: the token ${JSON.stringify(value.id)} is not in the vocabulary`);
    return { ids, type };
  };
  return { single: (post.single as Json[]).map(piece), pair: ((post.pair ?? post.single) as Json[]).map(piece) };
}

/** How many special tokens a frame adds. */
export const specialCount = (pieces: Piece[]): number => pieces.reduce((sum, { ids }) => sum + (ids?.length ?? 0), 0);

/** Puts ids into a frame. */
export function fillFrame(pieces: Piece[], first: number[], second: number[] = []): Segments {
  const out: Segments = { ids: [], typeIds: [] };
  for (const { ids, of, type } of pieces) {
    for (const id of ids ?? (of === "B" ? second : first)) {
      out.ids.push(id);
      out.typeIds.push(type);
    }
  }
  return out;
}
