/** An Ovis2.5 checkpoint in its original layout as a model that answers about pictures. */
import { tf } from "../engine/tf";
import type { Checkpoint } from "../files/checkpoint";
import { loadTileProcessor, type Tiled, tileMessage } from "../image/tiles";
import { type Dtype, disposeParams, loadWeights } from "../nn/spec";
import { loadTokenizer } from "../text/tokenizer";
import { patchPlaces } from "./anyres-features";
import { languageEnd } from "./language-config";
import { llamaRotary } from "./llama";
import { llamaLanguage } from "./llama-language";
import type { VisionLanguageModel } from "./loaded";
import { gridRotary, type Ovis25Config, type Ovis25Params, ovis25Config, ovis25Picture, ovis25Spec, patchGrid } from "./ovis25";
import { type Expansion, type Family, visionLanguageModel } from "./vision-language";
import { indicatorEmbeddings, tokenGrid } from "./visual-tokenizer";

export type Ovis25 = VisionLanguageModel<Ovis25Params>;

const MARK = "<image>";
/**
 * The original's ids of what no tokenizer has: a picture in a text, a visual token, a picture's begin and end, a video's. Negative, and never embedded as
 * text.
 */
export const OVIS_IDS = { image: -200, atom: -300, begin: -301, end: -302, videoBegin: -303, videoEnd: -304 };

/** The model in an open checkpoint of the family. @throws listing every misfit of config, weights, tokenizer and image processor */
export async function loadOvis25({ folder, config: raw, tensors }: Checkpoint, dtype: Dtype): Promise<Ovis25> {
  const config = ovis25Config(raw);
  const spec = ovis25Spec(config);
  const tokenizer = await loadTokenizer(folder);
  const processor = loadTileProcessor(folder);
  const ignore = config.llm_config.tie_word_embeddings ? /^llm\.lm_head\.weight$/ : undefined;
  const params = loadWeights(spec, tensors, { dtype, ignore, where: folder });
  const [rotary, turns] = [llamaRotary(config.llm_config), gridRotary(config.vit_config)];
  const endTokens = languageEnd(folder, raw.llm_config);
  const { atom, begin, end, videoBegin, videoEnd } = OVIS_IDS;
  const family: Family<Ovis25Params> = {
    modelType: String(raw.model_type),
    folder,
    dtype,
    spec,
    tokenizer,
    imageMark: MARK,
    markToken: OVIS_IDS.image,
    featureTokens: [atom, begin, end, videoBegin, videoEnd],
    encode: (text) =>
      text.split(MARK).flatMap((part, i) => [...(i ? [OVIS_IDS.image] : []), ...tokenizer.encode(part, { addSpecialTokens: false })]),
    tile: (pictures, overrides) => tileMessage(processor, pictures, overrides),
    expand: (tiled) => expand(config, tiled),
    features: (p, tiled, tap) =>
      tf.tidy(() => {
        const pixels = tf.tensor4d(tiled.pixels, [1, tiled.size.height, tiled.size.width, 3]);
        const tokens = ovis25Picture(p, config, pixels, turns, tap).squeeze([0]) as tf.Tensor2D; //   [tokens, D]
        const [first, last] = [0, 1].map((i) => indicatorEmbeddings(p.tokenizer, 4).slice([i, 0], [1, tokens.shape[1]]));
        return tf.concat([first, tokens, last]) as tf.Tensor2D;
      }),
    language: ({ language }) => llamaLanguage(language, config.llm_config, rotary, endTokens),
    dispose() {
      disposeParams(spec, params);
      tf.dispose([rotary.inverseFrequencies, turns.byRow.inverseFrequencies, turns.byColumn.inverseFrequencies]);
    },
  };
  return visionLanguageModel(family, params);
}

/** A picture's tokens between its begin and its end. */
function expand({ vit_config: v }: Ovis25Config, { tiles, size }: Tiled): Expansion {
  const places = patchPlaces(tiles[0], 0, tokenGrid(patchGrid(v, size.height, size.width), v.hidden_stride));
  return { ids: [OVIS_IDS.begin, ...places.map(() => OVIS_IDS.atom), OVIS_IDS.end], places: [undefined, ...places, undefined] };
}
