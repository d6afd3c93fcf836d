/** An InternVL checkpoint, in the layout of transformers or of the original repository, as a model that answers about pictures. */
import { tf } from "../engine/tf";
import type { Checkpoint } from "../files/checkpoint";
import { loadTileProcessor, type Tiled, tileMessage } from "../image/tiles";
import { type Dtype, disposeParams, loadWeights } from "../nn/spec";
import type { Tap } from "../nn/tap";
import { loadTokenizer, type Tokenizer } from "../text/tokenizer";
import { patchPlaces } from "./anyres-features";
import { endTokens } from "./end-tokens";
import { type InternVLConfig, type InternVLParams, type InternVLSpec, internVLConfig, internVLSpec, projectImages } from "./internvl";
import { type InternVLChatConfig, internVLChatConfig, internVLChatSpec } from "./internvl-chat";
import { embedTokens, llamaRotary } from "./llama";
import { llamaLanguage } from "./llama-language";
import type { VisionLanguageModel } from "./loaded";
import { encodeOnce, type Expansion, type Family, visionLanguageModel } from "./vision-language";

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
const CONTEXT = "<IMG_CONTEXT>";

function marksOf(tokenizer: Tokenizer, folder: string): Marks {
  const idOf = (token: string): number => {
    const id = tokenizer.idOf(token);
    if (id === undefined) throw new Error(`${folder}: the tokenizer has no token ${token}, which InternVL's prompts need around a picture`);
    return id;
  };
  return { begin: idOf("<img>"), context: idOf(CONTEXT), end: idOf("</img>") };
}

/** What the two layouts say differently. */
type Layout = {
  modelType: string;
  config: InternVLConfig;
  spec: InternVLSpec;
  /** The language model's part of config.json. */
  text: unknown;
  imageMark: string;
  encode?(text: string): number[];
  moduleName?(name: string): string;
};

/** The model in an open checkpoint in the layout of transformers. @throws listing every misfit of config, weights, tokenizer and image processor */
export async function loadInternVL(checkpoint: Checkpoint, dtype: Dtype): Promise<InternVL> {
  const { folder, config: raw } = checkpoint;
  const config = internVLConfig(raw);
  const tokenizer = await loadTokenizer(folder);
  const marks = marksOf(tokenizer, folder);
  if (marks.context !== config.image_token_id)
    throw new Error(
      `${folder}/config.json: image_token_id is ${config.image_token_id}, the tokenizer's ${CONTEXT} is ${marks.context}; they must be one`,
    );
  return build(checkpoint, dtype, tokenizer, marks, {
    modelType: "internvl",
    config,
    spec: internVLSpec(config),
    text: raw.text_config,
    imageMark: CONTEXT,
    moduleName,
  });
}

export type InternVLChat = InternVL & Pick<InternVLChatConfig, "template">;

/** The same in the layout of the original repository, whose prompts say `<image>`. */
export async function loadInternVLChat(checkpoint: Checkpoint, dtype: Dtype): Promise<InternVLChat> {
  const { folder, config: raw } = checkpoint;
  const tokenizer = await loadTokenizer(folder);
  const marks = marksOf(tokenizer, folder);
  const config = internVLChatConfig(raw, marks.context);
  const model = build(checkpoint, dtype, tokenizer, marks, {
    modelType: "internvl_chat",
    config,
    spec: internVLChatSpec(config, raw),
    text: raw.llm_config,
    imageMark: "<image>",
    encode: (text) => encodeOnce(tokenizer, text.replaceAll("<image>", CONTEXT)),
  });
  const named = (one: InternVL): InternVLChat => ({ ...one, template: config.template, with: (params) => named(one.with(params)) });
  return named(model);
}

function build({ folder, config: raw, tensors }: Checkpoint, dtype: Dtype, tokenizer: Tokenizer, marks: Marks, layout: Layout): InternVL {
  const { config, spec, text, ...own } = layout;
  const processor = loadTileProcessor(folder);
  const ignore = config.text_config.tie_word_embeddings ? /(lm_head|language_model\.output)\.weight$/ : undefined;
  const params = loadWeights(spec, tensors, { dtype, ignore, where: folder }) as InternVLParams;
  const rotary = llamaRotary(config.text_config);
  const ends = endTokens(folder, raw, text);
  const family: Family<InternVLParams> = {
    ...own,
    folder,
    dtype,
    spec,
    tokenizer,
    markToken: marks.context,
    featureTokens: Object.values(marks),
    tile: (pictures, overrides) => tileMessage(processor, pictures, overrides),
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
  { tile_size, vision_config: v, downsample_ratio: ratio, ps_version }: InternVLConfig,
  marks: Marks,
  { tiles }: Tiled,
): Expansion {
  const side = Math.floor(tile_size / v.patch_size) * ratio; // tokens along a tile
  const shown = tiles.flatMap((tile, i) => {
    const places = patchPlaces(tile, i, side);
    return ps_version === "v1" ? places.map((_, j) => places[(j % side) * side + Math.floor(j / side)]) : places; // v1 goes down the columns
  });
  return { ids: [marks.begin, ...shown.map(() => marks.context), marks.end], places: [undefined, ...shown, undefined] };
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
