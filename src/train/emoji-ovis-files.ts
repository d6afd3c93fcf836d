/** The files of emoji-ovis around its weights, as transformers' Ovis2Processor and `load` read them. */
import type { IdOf, TalkerSizes } from "./emoji-talk";
import { smallQwen2 } from "./fresh";
import { CLIP_MEAN, CLIP_STD } from "../image/processor-config";
import type { Frame } from "./conversations";

/** What stands around questions and answers; the chat template says the same. */
export const FRAME: Frame = { user: "<|user|>", assistant: "<|assistant|>", end: "<|end|>" };
const [PAD, IMAGE, ATOM] = ["<|pad|>", "<image>", "<IMG_ATOM>"];
/** A picture begins, its whole is over, next column, next row, the picture ends. */
const INDICATORS = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"];
export const SPECIAL = [PAD, FRAME.user, FRAME.assistant, FRAME.end, IMAGE, ATOM, ...INDICATORS];

export const chatTemplate = `{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ '${FRAME.user}' }}
{%- elif message['role'] == 'assistant' -%}{{ '${FRAME.assistant}' }}
{%- else -%}{{ raise_exception('emoji-ovis knows the roles user and assistant, not ' + message['role']) }}{%- endif -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{ '${IMAGE}' }}{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{ '${FRAME.end}' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '${FRAME.assistant}' }}{%- endif -%}
`;

/** What tokenizer_config.json says besides the tokens. */
export const tokenizerSettings = (model_max_length: number) => ({ eos_token: FRAME.end, pad_token: PAD, model_max_length });

/** words: visual words, indicators included. */
type Sizes = TalkerSizes & { words: number };

/** config.json of an Ovis2 in the layout of transformers. */
export const configOf = (r: Sizes, vocabSize: number, idOf: IdOf) => ({
  architectures: ["Ovis2ForConditionalGeneration"],
  model_type: "ovis2",
  hidden_size: r.text.hidden_size,
  vocab_size: vocabSize,
  image_token_id: idOf[ATOM],
  visual_indicator_token_ids: INDICATORS.map((token) => idOf[token]),
  tie_word_embeddings: true,
  vision_config: {
    model_type: "ovis2_vision",
    image_size: r.imageSize,
    patch_size: r.patchSize,
    num_channels: 3,
    hidden_act: "silu",
    hidden_stride: 1,
    mlp_bias: false,
    qkv_bias: false,
    rms_norm_eps: 1e-5,
    num_visual_indicator_tokens: INDICATORS.length,
    tokenize_function: "softmax",
    vocab_size: r.words,
    ...r.vision,
  },
  text_config: { ...smallQwen2({ end: idOf[FRAME.end], pad: idOf[PAD], contextLength: r.contextLength, vocabSize }), ...r.text },
});

export const preprocessorOf = ({ imageSize, maxPatches }: Sizes) => ({
  image_processor_type: "Ovis2ImageProcessor",
  processor_class: "Ovis2Processor",
  ...{ do_convert_rgb: true, do_resize: true, resample: 3, size: { height: imageSize, width: imageSize } },
  ...{ do_rescale: true, rescale_factor: 1 / 255, do_normalize: true, image_mean: CLIP_MEAN, image_std: CLIP_STD },
  ...{ crop_to_patches: true, min_patches: 1, max_patches: maxPatches, use_covering_area_grid: true },
});

export const processorOf = ({ imageSize, patchSize }: Sizes) => ({
  processor_class: "Ovis2Processor",
  image_seq_length: (imageSize / patchSize) ** 2,
  image_token: IMAGE,
});
