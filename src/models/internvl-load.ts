/** An InternVL checkpoint in the layout of transformers as a model that answers about pictures. */
import { tf } from "../engine/tf";
import type { Checkpoint } from "../files/checkpoint";
import { loadTileProcessor, type Tiled, tileMessage } from "../image/tiles";
import { type Dtype, disposeParams, loadWeights } from "../nn/spec";
import type { Tap } from "../nn/tap";
import { loadTokenizer, type Tokenizer } from "../text/tokenizer";
import { patchPlaces } from "./anyres-features";
import { endTokens } from "./end-tokens";
import { type InternVLConfig, type InternVLParams, internVLConfig, internVLSpec, projectImages } from "./internvl";
import { embedTokens, llamaRotary } from "./llama";
import { llamaLanguage } from "./llama-language";
import type { VisionLanguageModel } from "./loaded";
import { type Expansion, type Family, visionLanguageModel } from "./vision-language";

export type InternVL = VisionLanguageModel<InternVLParams>;

/** Prefixes of transformers' modules, which PEFT's adapters name, and of the published files. */
const MODULES: readonly [module: string, file: string][] = [
  ["model.language_model.", "language_model.model."],
  ["model.vision_tower.", "vision_tower."],
  ["model.multi_modal_projector.", "multi_modal_projector."],
  ["lm_head", "language_model.lm_head"],
];

const moduleName = (name: string): string => {
  const found = MODULES.find(([, file]) => name.startsWith(file));
  return found ? found[0] + name.slice(found[1].length) : name;
};

/** The ids around a picture, and of its tokens: `<img>`, `<IMG_CONTEXT>`, `</img>`. */
type Marks = { begin: number; context: number; end: number };

function marksOf(tokenizer: Tokenizer, config: InternVLConfig, folder: string): Marks {
  const idOf = (token: string): number => {
    const id = tokenizer.idOf(token);
    if (id === undefined) throw new Error(`${folder}: the tokenizer has no token ${token}, which InternVL's prompts need around a picture`);
    return id;
  };
  const context = idOf("<IMG_CONTEXT>");
  if (context !== config.image_token_id)
    throw new Error(
      `${folder}/config.json: image_token_id is ${config.image_token_id}, the tokenizer's <IMG_CONTEXT> is ${context}; they must be one`,
    );
  return { begin: idOf("<img>"), context, end: idOf("</img>") };
}

/** The model in an open checkpoint of the family. @throws listing every misfit of config, weights, tokenizer and image processor */
export async function loadInternVL({ folder, config: raw, tensors }: Checkpoint, dtype: Dtype): Promise<InternVL> {
  const config = internVLConfig(raw);
  const spec = internVLSpec(config);
  const tokenizer = await loadTokenizer(folder);
  const marks = marksOf(tokenizer, config, folder);
  const processor = loadTileProcessor(folder);
  const ignore = config.text_config.tie_word_embeddings ? /lm_head\.weight$/ : undefined;
  const params = loadWeights(spec, tensors, { dtype, ignore, where: folder });
  const rotary = llamaRotary(config.text_config);
  const ends = endTokens(folder, raw, raw.text_config);
  const family: Family<InternVLParams> = {
    modelType: "internvl",
    folder,
    dtype,
    spec,
    moduleName,
    tokenizer,
    imageMark: "<IMG_CONTEXT>",
    markToken: marks.context,
    featureTokens: Object.values(marks),
    tile: (pictures) => tileMessage(processor, pictures),
    expand: (tiled) => expand(config, marks, tiled),
    features: (p, tiled, tap) => features(p, config, marks, tiled, tap),
    language: ({ language }) => llamaLanguage(language, config.text_config, rotary, ends),
    dispose() {
      disposeParams(spec, params);
      rotary.inverseFrequencies.dispose();
    },
  };
  return visionLanguageModel(family, params);
}

/** A picture's tokens: its tiles row by row and the thumbnail behind them, between two marks that show nothing. */
function expand(
  { vision_config: v, downsample_ratio: ratio }: InternVLConfig,
  { begin, context, end }: Marks,
  { tiles }: Tiled,
): Expansion {
  const side = Math.floor(v.image_size / v.patch_size) * ratio; // tokens along a tile
  const shown = tiles.flatMap((tile, i) => patchPlaces(tile, i, side));
  return { ids: [begin, ...shown.map(() => context), end], places: [undefined, ...shown, undefined] };
}

/** What stands at those tokens: the words of the marks, and the tiles' features between them. [2 + tiles·n, D] */
function features(p: InternVLParams, c: InternVLConfig, { begin, end }: Marks, tiled: Tiled, tap: Tap): tf.Tensor2D {
  return tf.tidy(() => {
    const pixels = tf.tensor4d(tiled.pixels, [tiled.count, tiled.size.height, tiled.size.width, 3]);
    const tiles = projectImages(p, c, pixels, tap);
    const [count, n, D] = tiles.shape;
    const [before, behind] = [begin, end].map((id) => embedTokens(p.language, tf.tensor2d([id], [1, 1], "int32")).reshape([1, D]));
    return tf.concat([before, tiles.reshape([count * n, D]), behind]) as tf.Tensor2D;
  });
}
