/** The files of emoji-vl around its weights, as transformers' InternVLProcessor and `load` read them. */
import type { IdOf, TalkerSizes } from "./emoji-talk";
import { smallQwen2 } from "./fresh";
import type { InternVLFrame } from "./conversations";

/** What stands around questions, answers and pictures; the chat template says the same. */
export const FRAME: InternVLFrame = {
  user: "<|user|>",
  assistant: "<|assistant|>",
  end: "<|end|>",
  image: { start: "<img>", mark: "<IMG_CONTEXT>", end: "</img>" },
};
const PAD = "<|pad|>";
const VIDEO = "<video>";
export const SPECIAL = [PAD, FRAME.user, FRAME.assistant, FRAME.end, FRAME.image.start, FRAME.image.end, FRAME.image.mark, VIDEO];

export const chatTemplate = `{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ '${FRAME.user}' }}
{%- elif message['role'] == 'assistant' -%}{{ '${FRAME.assistant}' }}
{%- else -%}{{ raise_exception('emoji-vl knows the roles user and assistant, not ' + message['role']) }}{%- endif -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{ '${FRAME.image.mark}' }}{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{ '${FRAME.end}' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '${FRAME.assistant}' }}{%- endif -%}
`;

const NAMES = {
  start_image_token: FRAME.image.start,
  end_image_token: FRAME.image.end,
  context_image_token: FRAME.image.mark,
  video_token: VIDEO,
};

/** What tokenizer_config.json says besides the tokens. */
export const tokenizerSettings = (model_max_length: number) => ({
  eos_token: FRAME.end,
  pad_token: PAD,
  model_max_length,
  extra_special_tokens: NAMES,
  ...NAMES,
});

type Sizes = TalkerSizes;

/** config.json of an InternVL in the layout of transformers. */
export const configOf = (r: Sizes, vocabSize: number, idOf: IdOf) => ({
  architectures: ["InternVLForConditionalGeneration"],
  model_type: "internvl",
  downsample_ratio: 0.5,
  image_seq_length: (r.imageSize / r.patchSize / 2) ** 2,
  image_token_id: idOf[FRAME.image.mark],
  projector_hidden_act: "gelu",
  tie_word_embeddings: true,
  vision_feature_layer: -1,
  vision_feature_select_strategy: "default",
  vision_config: {
    model_type: "internvl_vision",
    image_size: [r.imageSize, r.imageSize],
    patch_size: [r.patchSize, r.patchSize],
    attention_bias: true,
    hidden_act: "gelu",
    layer_norm_eps: 1e-6,
    norm_type: "layer_norm",
    use_qk_norm: false,
    ...r.vision,
  },
  text_config: { ...smallQwen2({ end: idOf[FRAME.end], pad: idOf[PAD], contextLength: r.contextLength, vocabSize }), ...r.text },
});

const IMAGENET = { image_mean: [0.485, 0.456, 0.406], image_std: [0.229, 0.224, 0.225] };
const view = (side: number) => ({
  do_convert_rgb: true,
  do_normalize: true,
  do_rescale: true,
  do_resize: true,
  ...IMAGENET,
  resample: 3,
  rescale_factor: 1 / 255,
  size: { height: side, width: side },
});

export const preprocessorOf = ({ imageSize, maxPatches }: Sizes) => ({
  ...view(imageSize),
  crop_to_patches: true,
  image_processor_type: "GotOcr2ImageProcessor",
  max_patches: maxPatches,
  min_patches: 1,
  processor_class: "InternVLProcessor",
});

/** transformers' processor wants one although emoji-vl has seen no video. */
export const videoProcessorOf = ({ imageSize }: Sizes) => ({ ...view(imageSize), video_processor_type: "InternVLVideoProcessor" });
