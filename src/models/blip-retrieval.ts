/** BLIP's retrieval checkpoints: contrastive vectors (ITC), and a BERT that reads a text while it looks at the picture (ITM). */
import type { Checkpoint } from "../files/checkpoint";
import { loadImageProcessor } from "../image/processor";
import { linearSpec } from "../nn/layers";
import { type Dtype, disposeParams, loadWeights, type Params } from "../nn/spec";
import { loadTokenizer } from "../text/tokenizer";
import { type BlipConfig, blipConfig, blipIgnored, gridOf, readTexts, textSpec } from "./blip";
import { TEMPERATURE } from "./blip2";
import { evaVit, evaVitSpec } from "./eva-vit";
import { type Matcher, type MatcherFamily, matcher, readWords } from "./matcher";

/** Every weight by its name in the file. */
export const blipRetrievalSpec = ({ vision_config: v, text_config: t, image_text_hidden_size: d }: BlipConfig) => ({
  vision: evaVitSpec(v),
  text: textSpec(t, "text_encoder.", v.hidden_size),
  projectVision: linearSpec("vision_proj", v.hidden_size, d),
  projectText: linearSpec("text_proj", t.hidden_size, d),
  matching: linearSpec("itm_head", t.hidden_size, 2),
});
export type BlipRetrievalParams = Params<ReturnType<typeof blipRetrievalSpec>>;

/** A BlipForImageTextRetrieval. Its files hold no temperature: `logits` and the contrastive loss divide by 0.07, where the authors' training began. */
export type BlipRetrieval = Matcher<BlipRetrievalParams, BlipConfig>;

/** The model in an open checkpoint. @throws listing every misfit of config and weights */
export async function loadBlipRetrieval({ folder, config: raw, tensors }: Checkpoint, dtype: Dtype): Promise<BlipRetrieval> {
  const [tokenizer, imageProcessor] = [await loadTokenizer(folder), loadImageProcessor(folder)];
  const config = blipConfig(raw);
  const spec = blipRetrievalSpec(config);
  const params = loadWeights(spec, tensors, { dtype, where: folder, ignore: blipIgnored });
  const { vision_config: vision, text_config: text } = config;
  const family: MatcherFamily<BlipRetrievalParams, BlipConfig> = {
    ...{ modelType: "blip", folder, dtype, spec, config, tokenizer, imageProcessor },
    ...{ width: config.image_text_hidden_size, grid: gridOf(vision) },
    read: (texts) => readWords(tokenizer, texts, text.max_position_embeddings),
    see: (p, pixels, tap) => evaVit(p.vision, vision, pixels, tap),
    readText: (p, words, tap) => readTexts(p.text, text, words, undefined, tap),
    readPair: (p, states, words, tap) => readTexts(p.text, text, words, states, tap),
    temperature: () => TEMPERATURE,
    dispose: () => disposeParams(spec, params),
  };
  return matcher(family, params);
}
