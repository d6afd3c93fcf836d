/** What a session keeps computed: a follow-up begins with what was said before, whose keys and values are there. */
import type { Picture } from "../image/picture";
import type { ImageSpan, Prompt, VisionLanguageModel } from "../models/loaded";
import type { Cache } from "../nn/cache";

export type Memory = {
  /** The tokens in the cache. */
  ids: number[];
  images: ImageSpan[];
  cache: Cache;
};

/** Families whose pictures are seen differently with every question: nothing behind a picture can be used again. */
const ASKING = new Set(["instructblip"]);

const samePicture = (a: Picture, b: Picture): boolean =>
  a === b || (a.width === b.width && a.height === b.height && Buffer.compare(a.data, b.data) === 0);
const sameSpan = (a: ImageSpan, b: ImageSpan): boolean =>
  a.start === b.start &&
  a.end === b.end &&
  a.tiled.count === b.tiled.count &&
  a.tiled.grid.rows === b.tiled.grid.rows &&
  a.tiled.grid.columns === b.tiled.grid.columns &&
  samePicture(a.picture, b.picture);

/** How many tokens of a prompt are computed already: the longest beginning that is the same, ids and pictures. At least its last token is new. */
export function known({ ids, images }: Pick<Memory, "ids" | "images">, prompt: Prompt): number {
  let same = 0;
  const most = Math.min(ids.length, prompt.ids.length - 1);
  while (same < most && ids[same] === prompt.ids[same]) same++;
  for (const [i, image] of prompt.images.entries()) {
    if (image.start >= same) break;
    if (!images[i] || !sameSpan(images[i], image)) return image.start;
  }
  return same;
}

/** The same of a model that reads its prompt in order; 0 where an encoder reads all of it at once, or pictures depend on the question. */
export const knownOf = (model: VisionLanguageModel, memory: Memory | undefined, prompt: Prompt): number =>
  memory && !model.language.encoder && !ASKING.has(model.modelType) ? known(memory, prompt) : 0;
