/** A BLIP-2 or InstructBLIP checkpoint as a model that answers about a picture. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { tf } from "../engine/tf";
import type { Checkpoint } from "../files/checkpoint";
import { loadImageProcessor } from "../image/processor";
import type { ProcessorConfig } from "../image/processor-config";
import { asTileProcessor } from "../image/tiles";
import { type Dtype, disposeParams, loadWeights } from "../nn/spec";
import { loadTokenizer, type Tokenizer } from "../text/tokenizer";
import { type Blip2GenerationParams, generationSpec, projectPictures, queriesConfig } from "./blip2-generation";
import { languagePart } from "./language-part";
import type { VisionLanguageModel } from "./loaded";
import { type Family, visionLanguageModel } from "./vision-language";

export type Blip2Generation = VisionLanguageModel<Blip2GenerationParams>;

const MARK = "<image>";

/** The model in an open checkpoint of the family. @throws listing every misfit of config, weights, tokenizers and image processor */
export async function loadBlip2Generation({ folder, config: raw, tensors }: Checkpoint, dtype: Dtype): Promise<Blip2Generation> {
  const modelType = String(raw.model_type);
  const config = queriesConfig(raw, modelType === "instructblip");
  const part = languagePart(raw.text_config, "config.json: text_config", { folder, tensors, prefix: "language_model." });
  const spec = generationSpec(config, part);
  const tokenizer = await loadTokenizer(folder);
  const instruction = config.qformer_config.use_qformer_text_input ? await instructionTokenizer(folder) : undefined;
  const processor = asTileProcessor(loadImageProcessor(folder) as Parameters<typeof asTileProcessor>[0] & { config: ProcessorConfig });
  const ignore = new RegExp(`${part.ignored.source}|position_ids$`);
  const params = loadWeights(spec, tensors, { dtype, ignore, where: folder });
  const markToken = Number(raw.image_token_index ?? tokenizer.idOf(MARK) ?? tokenizer.vocabSize);
  const family: Family<Blip2GenerationParams> = {
    modelType,
    folder,
    dtype,
    spec,
    tokenizer,
    imageMark: MARK,
    markToken,
    featureTokens: [markToken],
    encode: (text, pictures) => pictureFirst(tokenizer, markToken, text, pictures),
    tile: (pictures) => pictures.map((picture) => processor.tile(picture)),
    expand: () => ({
      ids: new Array(config.num_query_tokens).fill(markToken),
      places: new Array(config.num_query_tokens).fill(undefined), // each query looks at the whole picture
    }),
    features: (p, { pixels, count, size }, tap, text) =>
      tf.tidy(() => {
        const ids = instruction && tf.tensor2d([instruction.encode(withoutMark(text))], undefined, "int32");
        const input = tf.tensor4d(pixels, [count, size.height, size.width, 3]);
        return projectPictures(p, config, input, { ids, tap }).squeeze<tf.Tensor2D>([0]); //          [Q, D]
      }),
    language: ({ language }) => part.model(language),
    dispose() {
      disposeParams(spec, params);
      part.dispose();
    },
  };
  return visionLanguageModel(family, params);
}

function instructionTokenizer(folder: string): Promise<Tokenizer> {
  const own = join(folder, "qformer_tokenizer");
  if (!existsSync(own))
    throw new Error(`${folder}: qformer_tokenizer is missing; InstructBLIP's Q-Former reads the instruction with a tokenizer of its own`);
  return loadTokenizer(own);
}

/** The text behind the picture's mark. */
const withoutMark = (text: string): string => (text.startsWith(MARK) ? text.slice(MARK.length) : text);

/** The picture stands before the text and its special tokens, wherever the mark is written first or left out. */
function pictureFirst(tokenizer: Tokenizer, markToken: number, text: string, pictures: number): number[] {
  const rest = withoutMark(text);
  if (rest.includes(MARK))
    throw new RangeError(
      `prompt: BLIP-2 reads one picture, before the text; leave ${MARK} out or write it once, first, not in ${JSON.stringify(text)}`,
    );
  if (pictures > 1) throw new RangeError(`prompt: ${pictures} pictures came; BLIP-2 reads one, before the text`);
  const marked = pictures === 1 || rest !== text;
  return [...(marked ? [markToken] : []), ...tokenizer.encode(rest)];
}
