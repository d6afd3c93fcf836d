/** A LLaVA, LLaVA-NeXT or LLaVA-OneVision checkpoint as a model that answers about pictures. */
import { tf } from "../engine/tf";
import type { Checkpoint } from "../files/checkpoint";
import type { TensorSource } from "../files/dtype";
import { asTileProcessor, loadAnyProcessor, type TileProcessor, tileMessage, type Tiled } from "../image/tiles";
import { type Dtype, disposeParams, loadWeights } from "../nn/spec";
import type { Tap } from "../nn/tap";
import { loadTokenizer } from "../text/tokenizer";
import { packedPlaces, packTiles, type Packing, patchPlaces } from "./anyres-features";
import { languageEnd } from "./language-config";
import { llamaRotary } from "./llama";
import { llamaLanguage } from "./llama-language";
import { isLlava, type LlavaConfig, type LlavaParams, llavaConfig, llavaSpec, projectTiles, tokensPerTile } from "./llava";
import { llavaModule, publishedTensors } from "./llava-names";
import { encodeOriginal, isOriginalLlava, LLAVA_IMAGE_ID, openOriginalLlava } from "./llava-original";
import type { VisionLanguageModel } from "./loaded";
import { towerIgnored } from "./tower";
import { type Family, visionLanguageModel } from "./vision-language";

export type Llava = VisionLanguageModel<LlavaParams>;

/** The model in an open checkpoint of the family. @throws listing every misfit of config, weights, tokenizer and image processor */
export async function loadLlava(checkpoint: Checkpoint, dtype: Dtype): Promise<Llava> {
  const { folder, config: raw } = checkpoint;
  if (isOriginalLlava(raw)) return loadOriginal(checkpoint, dtype);
  const modelType = String(raw.model_type);
  if (!isLlava(modelType)) throw new Error(`${folder}/config.json: model_type "${modelType}" without mm_vision_tower is no LLaVA`);
  const config = llavaConfig(modelType, raw);
  const tensors = publishedTensors(checkpoint.tensors, folder);
  const own = { markToken: config.image_token_index, moduleName: llavaModule };
  return build({ folder, modelType, dtype, config, spec: llavaSpec(config), tensors, text: raw.text_config, own });
}

async function loadOriginal(checkpoint: Checkpoint, dtype: Dtype): Promise<Llava> {
  const { folder } = checkpoint;
  const { config, text, spec, tensors, close } = await openOriginalLlava(checkpoint);
  try {
    const tokenizer = await loadTokenizer(folder);
    const own = { markToken: LLAVA_IMAGE_ID, encode: (words: string) => encodeOriginal(tokenizer, words) };
    return await build({ folder, modelType: String(checkpoint.config.model_type), dtype, config, spec, tensors, text, own });
  } finally {
    close();
  }
}

type Parts = {
  folder: string;
  modelType: string;
  dtype: Dtype;
  config: LlavaConfig;
  spec: ReturnType<typeof llavaSpec>;
  tensors: Map<string, TensorSource>;
  /** The language model's part of config.json. */
  text: unknown;
  own: Pick<Family<LlavaParams>, "markToken" | "encode" | "moduleName">;
};

async function build({ folder, modelType, dtype, config, spec, tensors, text, own }: Parts): Promise<Llava> {
  const tokenizer = await loadTokenizer(folder);
  const processor = processorOf(folder);
  const ignore = config.text_config.tie_word_embeddings ? new RegExp(`${towerIgnored.source}|lm_head\\.weight$`) : towerIgnored;
  const params = loadWeights(spec, tensors, { dtype, ignore, where: folder });
  const rotary = llamaRotary(config.text_config);
  const endTokens = languageEnd(folder, text);
  const family: Family<LlavaParams> = {
    modelType,
    folder,
    dtype,
    spec,
    tokenizer,
    imageMark: "<image>",
    featureTokens: [config.image_token_index],
    ...own,
    ...layoutOf(config, processor),
    language: ({ language }) => llamaLanguage(language, config.text_config, rotary, endTokens),
    dispose() {
      disposeParams(spec, params);
      rotary.inverseFrequencies.dispose();
    },
  };
  return visionLanguageModel(family, params);
}

function processorOf(folder: string): TileProcessor {
  const found = loadAnyProcessor(folder);
  return found.kind === "tiles"
    ? found.processor
    : (asTileProcessor(found.processor as Parameters<typeof asTileProcessor>[0]) as unknown as TileProcessor);
}

/** How pictures become tokens. Without a newline the tiles stand one behind the other: one of them in LLaVA-1.5, the whole and its parts in LLaVA-1.5-HD. */
function layoutOf(c: LlavaConfig, processor: TileProcessor): Pick<Family<LlavaParams>, "tile" | "expand" | "features"> {
  const { side, classToken } = tokensPerTile(c);
  const { image_size, patch_size } = c.vision_config.vit;
  const share = (side * patch_size) / image_size;
  const { scheme } = (processor.config ?? {}) as { scheme?: { name: string; max_tiles?: number | null } };
  const packing: Packing = { side, maxTiles: scheme?.max_tiles ?? null };
  const placesOf = (tiled: Tiled) =>
    c.newline
      ? packedPlaces(tiled, packing, share)
      : tiled.tiles.flatMap((tile, i) => [...(classToken ? [undefined] : []), ...patchPlaces(tile, i, side, share)]);
  return {
    tile: (pictures, overrides) =>
      scheme ? tileMessage(processor, pictures, overrides) : pictures.map((picture) => processor.tile(picture, overrides)),
    expand(tiled) {
      const places = placesOf(tiled);
      return { places, ids: places.map(() => c.image_token_index) };
    },
    features: (p, tiled, tap: Tap) =>
      tf.tidy(() => {
        const pixels = tf.tensor4d(tiled.pixels, [tiled.count, tiled.size.height, tiled.size.width, 3]);
        const projected = projectTiles(p, c, pixels, tap); //                                        [tiles, patches, D]
        const [count, n, D] = projected.shape;
        return c.newline ? packTiles(projected, p.newline!, tiled, packing) : (projected.reshape([count * n, D]) as tf.Tensor2D);
      }),
  };
}
