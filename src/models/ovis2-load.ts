/** An Ovis2 checkpoint as a model that answers about pictures. */
import { tf } from "../engine/tf";
import type { Checkpoint } from "../files/checkpoint";
import { loadTileProcessor, type Tiled, tileMessage } from "../image/tiles";
import { gatherRows } from "../nn/ops";
import { type Dtype, disposeParams, loadWeights } from "../nn/spec";
import { loadTokenizer } from "../text/tokenizer";
import { patchPlaces } from "./anyres-features";
import { languageEnd } from "./language-config";
import { llamaRotary } from "./llama";
import { llamaLanguage } from "./llama-language";
import type { TokenPlace, VisionLanguageModel } from "./loaded";
import { type Ovis2Config, ovis2Config, ovis2Indicators, type Ovis2Params, ovis2Spec, ovis2Tiles, patchSide } from "./ovis2";
import { type Expansion, type Family, visionLanguageModel } from "./vision-language";
import { tokenGrid } from "./visual-tokenizer";

export type Ovis2 = VisionLanguageModel<Ovis2Params>;

/** The model in an open checkpoint of the family. @throws listing every misfit of config, weights, tokenizer and image processor */
export async function loadOvis2({ folder, config: raw, tensors }: Checkpoint, dtype: Dtype): Promise<Ovis2> {
  const config = ovis2Config(raw);
  const spec = ovis2Spec(config);
  const tokenizer = await loadTokenizer(folder);
  const processor = loadTileProcessor(folder);
  const [mark, ...more] = tokenizer.encode("<image>", { addSpecialTokens: false });
  if (mark === undefined || more.length)
    throw new Error(`${folder}: the tokenizer has no token <image>, which stands for a picture in Ovis2's prompts`);
  const ignore = config.text_config.tie_word_embeddings ? /^lm_head\.weight$/ : undefined;
  const params = loadWeights(spec, tensors, { dtype, ignore, where: folder });
  const rotary = llamaRotary(config.text_config);
  const endTokens = languageEnd(folder, raw.text_config);
  const family: Family<Ovis2Params> = {
    modelType: "ovis2",
    folder,
    dtype,
    spec,
    tokenizer,
    imageMark: "<image>",
    markToken: mark,
    featureTokens: [config.image_token_id, ...config.visual_indicator_token_ids],
    tile: (pictures, overrides) => tileMessage(processor, pictures, overrides),
    expand: (tiled) => expand(config, tiled),
    features: (p, tiled, tap) =>
      tf.tidy(() => {
        const pixels = tf.tensor4d(tiled.pixels, [tiled.count, tiled.size.height, tiled.size.width, 3]);
        const tiles = ovis2Tiles(p, config, pixels, tap);
        const [count, n, D] = tiles.shape;
        const rows = tf.concat([tiles.reshape([count * n, D]), ovis2Indicators(p, config)]) as tf.Tensor2D;
        return gatherRows(rows, tf.tensor1d(order(config, expand(config, tiled).ids, count * n), "int32")) as tf.Tensor2D;
      }),
    language: ({ language }) => llamaLanguage(language, config.text_config, rotary, endTokens),
    dispose() {
      disposeParams(spec, params);
      rotary.inverseFrequencies.dispose();
    },
  };
  return visionLanguageModel(family, params);
}

/** A picture's tokens: its whole between START and GRID, then its tiles row by row, COL between two of a row and ROW between rows, then END. */
function expand(
  { image_token_id: atom, visual_indicator_token_ids: ids, vision_config: v }: Ovis2Config,
  { tiles, grid, count }: Tiled,
): Expansion {
  const [START, GRID, COL, ROW, END] = ids;
  const side = patchSide(v);
  const tokens = tokenGrid({ rows: side, columns: side }, v.hidden_stride).rows;
  const share = (tokens * v.hidden_stride * v.patch_size) / v.image_size; // above 1 where the last group of patches is filled with zeros
  const out: { id: number; place: TokenPlace }[] = [];
  const mark = (id: number) => out.push({ id, place: undefined });
  const tile = (i: number) => out.push(...patchPlaces(tiles[i], i, tokens, share).map((place) => ({ id: atom, place })));
  mark(START);
  tile(0);
  mark(GRID);
  for (let i = 1; i < count; i++) {
    tile(i);
    if (i % grid.columns !== 0) mark(COL);
    else if (i < count - 1) mark(ROW);
  }
  mark(END);
  return { ids: out.map(({ id }) => id), places: out.map(({ place }) => place) };
}

/** For each token of a picture its row among the atoms, in their order, and the indicators behind them. */
function order({ image_token_id: atom, visual_indicator_token_ids: indicators }: Ovis2Config, ids: number[], atoms: number): Int32Array {
  let next = 0;
  return Int32Array.from(ids, (id) => (id === atom ? next++ : atoms + indicators.indexOf(id)));
}
