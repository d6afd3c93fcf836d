/**
 * MiniGPT-4 (Zhu et al. 2023): BLIP-2's picture tower and Q-Former, frozen, and one linear layer into Vicuna, in whose prompt the picture's tokens stand
 * between `<Img>` and `</Img>`.
 */
import { tf } from "../engine/tf";
import { blipProcessor, imageProcessor } from "../image/processor";
import { asTileProcessor } from "../image/tiles";
import { linear, linearSpec } from "../nn/layers";
import { type Dtype, disposeParams, loadWeights, type Params, w } from "../nn/spec";
import { noTap, type Tap } from "../nn/tap";
import { loadTokenizer, type Tokenizer } from "../text/tokenizer";
import { queriesConfig, type QueriesConfig } from "./blip2-generation";
import { evaVit, evaVitSpec } from "./eva-vit";
import { type LanguagePart, languagePart } from "./language-part";
import type { VisionLanguageModel } from "./loaded";
import { openMiniGpt4 } from "./minigpt4-files";
import { qFormerSpec, readPicture } from "./qformer";
import { type Family, visionLanguageModel } from "./vision-language";

const MARK = "<ImageHere>";

/** Every weight by the name that `openMiniGpt4` gives it. */
const miniGpt4Spec = (c: QueriesConfig, { hiddenSize, spec }: LanguagePart) => ({
  queries: w("query_tokens", [1, c.num_query_tokens, c.qformer_config.hidden_size]),
  vision: evaVitSpec(c.vision_config, "vision."),
  qformer: qFormerSpec(c.qformer_config, "qformer."),
  projection: linearSpec("llama_proj", c.qformer_config.hidden_size, hiddenSize),
  language: spec,
});
export type MiniGpt4Params = Params<ReturnType<typeof miniGpt4Spec>>;
export type MiniGpt4 = VisionLanguageModel<MiniGpt4Params>;

/**
 * Pictures as tokens of the language model. pixels: [B, S, S, 3], mean and std applied -> [B, num_query_tokens, D]
 * Taps: those of `evaVit` and of the Q-Former, and `projector`.
 */
export const projectPictures = (
  p: Omit<MiniGpt4Params, "language">,
  c: QueriesConfig,
  pixels: tf.Tensor4D,
  tap: Tap = noTap,
): tf.Tensor3D =>
  tf.tidy(() => {
    const states = evaVit(p.vision, c.vision_config, pixels, tap); //                                  [B, 1 + n, D]
    const queries = p.queries.tile([pixels.shape[0], 1, 1]) as tf.Tensor3D; //                                        [B, Q, D]
    return tap("projector", linear(p.projection, readPicture(p.qformer, c.qformer_config, { queries, states }, tap)) as tf.Tensor3D);
  });

/** The model in a folder of three weight files, a Llama folder, and `layout.json`. @throws listing every misfit of layout and weights */
export async function loadMiniGpt4(folder: string, dtype: Dtype): Promise<MiniGpt4> {
  const files = openMiniGpt4(folder);
  try {
    const { num_query_tokens, ...qformer_config } = files.qformer;
    const config = queriesConfig({ num_query_tokens, vision_config: files.vision, qformer_config }, false);
    const { language } = files;
    const part = languagePart(language.config, `${language.folder}/config.json`, {
      folder: language.folder,
      tensors: files.tensors,
      prefix: "llama.",
    });
    const spec = miniGpt4Spec(config, part);
    const tokenizer = await loadTokenizer(language.folder);
    const params = loadWeights(spec, files.tensors, { dtype, ignore: part.ignored, where: folder });
    const view = { ...blipProcessor(config.vision_config.image_size).config, ...files.image };
    const processor = asTileProcessor({ ...imageProcessor(view), config: view });
    const markToken = part.model(params.language).vocabSize; // no token of the text
    const family: Family<MiniGpt4Params> = {
      modelType: "minigpt4",
      folder,
      dtype,
      spec,
      tokenizer,
      imageMark: MARK,
      markToken,
      featureTokens: [markToken],
      encode: (text) => encodePieces(tokenizer, markToken, text),
      tile: (pictures) => pictures.map((picture) => processor.tile(picture)),
      expand: () => ({
        ids: new Array(config.num_query_tokens).fill(markToken),
        places: new Array(config.num_query_tokens).fill(undefined), // each query looks at the whole picture
      }),
      features: (p, { pixels, count, size }, tap) =>
        tf.tidy(() => {
          const input = tf.tensor4d(pixels, [count, size.height, size.width, 3]);
          return projectPictures(p, config, input, tap).squeeze<tf.Tensor2D>([0]); //                  [Q, D]
        }),
      language: (p) => part.model(p.language),
      dispose() {
        disposeParams(spec, params);
        part.dispose();
      },
    };
    return visionLanguageModel(family, params);
  } finally {
    files.close();
  }
}

/** The text before each picture and behind the last, each cut by itself; special tokens stand around the first alone. */
const encodePieces = (tokenizer: Tokenizer, markToken: number, text: string): number[] =>
  text
    .split(MARK)
    .flatMap((piece, i) => (i === 0 ? tokenizer.encode(piece) : [markToken, ...tokenizer.encode(piece, { addSpecialTokens: false })]));
