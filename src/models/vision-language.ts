/** What the vision-language families share: a prompt's text with pictures becomes ids, and ids with pictures become what the language model reads. */
import { tf } from "../engine/tf";
import type { Picture } from "../image/picture";
import type { Tiled, TileOverrides } from "../image/tiles";
import { at, noTap, type Tap } from "../nn/tap";
import type { Tokenizer } from "../text/tokenizer";
import type { ImageSpan, LanguageModel, Loaded, Prompt, TokenPlace, VisionLanguageModel } from "./loaded";

/** A picture's part of a prompt: an id and a place for each of its tokens. */
export type Expansion = { ids: number[]; places: TokenPlace[] };

/** What a family says of itself. */
export type Family<P> = Omit<Loaded<P>, "params"> & {
  tokenizer: Tokenizer;
  imageMark: string;
  /** The id of `imageMark` in a tokenised text. */
  markToken: number;
  /** Ids that stand for features of a picture; a text must not hold them. */
  featureTokens: number[];
  /** A text's ids with `markToken` for each picture, where the tokenizer alone does not give them. */
  encode?(text: string, pictures: number): number[];
  /** The pictures of one prompt, cut as the vision tower takes them. */
  tile(pictures: Picture[], overrides?: TileOverrides): Tiled[];
  /** The tokens that a picture becomes. */
  expand(tiled: Tiled): Expansion;
  /** What stands at those tokens: [tokens, D]. text: the prompt's, with its marks */
  features(params: P, tiled: Tiled, tap: Tap, text: string): tf.Tensor2D;
  language(params: P): LanguageModel;
};

/** A family around its weights, as the rest of the workbench drives it. */
export function visionLanguageModel<P>(family: Family<P>, params: P): VisionLanguageModel<P> {
  const { markToken: _m, encode: _n, featureTokens: _t, tile: _c, expand: _e, features: _f, language: makeLanguage, ...loaded } = family;
  const language = makeLanguage(params);
  return {
    ...loaded,
    params,
    language,
    prompt: (text, pictures, tiles) => makePrompt(family, text, pictures, tiles),
    embedPrompt: (prompt, options) => embedPrompt(family, params, language, prompt, options),
    with: (other) => visionLanguageModel(family, other),
  };
}

/** The ids of a text, with the special tokens around it where it does not begin with its own. */
export function encodeOnce({ encode, special }: Tokenizer, text: string): number[] {
  const plain = encode(text, { addSpecialTokens: false });
  return special.bos !== undefined && plain[0] === special.bos ? plain : encode(text);
}

function makePrompt<P>(family: Family<P>, text: string, pictures: Picture[], overrides?: TileOverrides): Prompt {
  const { imageMark, markToken, featureTokens } = family;
  const marked = family.encode ? family.encode(text, pictures.length) : encodeOnce(family.tokenizer, text);
  const marks = marked.filter((id) => id === markToken).length;
  if (marks !== pictures.length)
    throw new RangeError(
      `prompt: the text has ${marks} ${imageMark}, ${pictures.length} pictures came; every picture needs its own ${imageMark}`,
    );
  const stray = marked.find((id) => id !== markToken && featureTokens.includes(id));
  if (stray !== undefined)
    throw new RangeError(
      `prompt: the text holds "${family.tokenizer.tokens([stray])[0]}", which only a picture's tokens may be; write ${imageMark} for a picture`,
    );
  const tiles = pictures.length ? family.tile(pictures, overrides) : [];
  const [ids, images]: [number[], ImageSpan[]] = [[], []];
  for (const id of marked) {
    if (id !== markToken) {
      ids.push(id);
      continue;
    }
    const i = images.length;
    const { ids: own, places } = family.expand(tiles[i]);
    images.push({ picture: pictures[i], tiled: tiles[i], start: ids.length, end: ids.length + own.length, places });
    for (const one of own) ids.push(one);
  }
  return { text, ids, images };
}

type Options = { from?: number; tap?: Tap };

function embedPrompt<P>(
  family: Family<P>,
  params: P,
  language: LanguageModel,
  { text, ids, images }: Prompt,
  { from = 0, tap = noTap }: Options = {},
): tf.Tensor3D {
  if (!Number.isInteger(from) || from < 0 || from >= ids.length)
    throw new RangeError(`embedPrompt: from ${from}, expected a whole number from 0 to ${ids.length - 1}, the prompt's last token`);
  checkSpans(family, ids, images);
  return tf.tidy(() => {
    const words = (start: number, end: number) =>
      language
        .embed(tf.tensor2d(ids.slice(start, end), [1, end - start], "int32"))
        .reshape([end - start, language.hiddenSize]) as tf.Tensor2D;
    const parts: tf.Tensor2D[] = [];
    let done = from;
    for (const [i, { tiled, start, end }] of images.entries()) {
      if (end <= from) continue;
      if (start > done) parts.push(words(done, start));
      const features = family.features(params, tiled, images.length > 1 ? at(tap, `images.${i}`) : tap, text); // [tokens, D]
      if (features.shape[0] !== end - start) throw budgetError(ids, images, i, features.shape[0]);
      parts.push(done > start ? features.slice([done - start, 0], [end - done, language.hiddenSize]) : features);
      done = end;
    }
    if (done < ids.length) parts.push(words(done, ids.length));
    return (parts.length === 1 ? parts[0] : tf.concat(parts)).expandDims(0) as tf.Tensor3D;
  });
}

/** Every image token belongs to a picture, and every picture has its tokens. */
function checkSpans<P>({ featureTokens }: Family<P>, ids: number[], images: ImageSpan[]): void {
  const inside = images.reduce((sum, { start, end }) => sum + end - start, 0);
  const found = ids.filter((id) => featureTokens.includes(id)).length;
  if (found === inside) return;
  const each = images.map(({ start, end, tiled }, i) => `picture ${i + 1}: ${end - start} tokens for ${tiled.count} tiles`).join(", ");
  throw new RangeError(
    `embedPrompt: the ids hold ${found} image tokens, the pictures give ${inside}${each ? ` (${each})` : ""}; the text has ${ids.length - found}`,
  );
}

function budgetError(ids: number[], images: ImageSpan[], i: number, given: number): RangeError {
  const { start, end, tiled } = images[i];
  const base = tiled.tiles.filter(({ kind }) => kind !== "tile").length;
  const tokens = images.reduce((sum, image) => sum + image.end - image.start, 0);
  return new RangeError(
    `embedPrompt: picture ${i + 1} has ${end - start} tokens in the prompt, its ${tiled.count} tiles (${tiled.grid.rows} x ${tiled.grid.columns}` +
      `${base ? ` and ${base} of the whole` : ""}) give ${given}; the prompt has ${ids.length} tokens, ${tokens} of pictures and ${ids.length - tokens} of text`,
  );
}
