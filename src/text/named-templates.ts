/** The prompts of the original programs, which their checkpoints do not carry: separators and system texts by name and version. Data only. */

/**
 * How the parts of a conversation are put together:
 * - `joined`: system and its separator, then role, message, separator for each turn (FastChat's MPT and SINGLE styles);
 * - `two`: `role: message`, and after it the first separator (user) or the second (assistant) (FastChat's TWO style);
 * - `llama2`: user messages in `[INST] … [/INST]`, the system text inside the first one.
 */
export type NamedTemplate = {
  /** The programs and versions that used it. */
  version: string;
  style: "joined" | "two" | "llama2";
  /** The system text where a conversation has none; undefined: then there is no system part at all. */
  system?: string;
  /** Around the system text, `{system}` stands for it. */
  systemFrame?: string;
  user: string;
  assistant: string;
  separators: readonly [afterUser: string, afterAssistant: string];
  /** What stands for a picture, and what follows it. */
  imageToken: string;
  afterImage: string;
  /** After the assistant's role where it is not told to think (`enable_thinking: true`), as in the original's default. */
  noThinking?: string;
};

const INTERNVL = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。";
const INTERNVL_2_5 = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。";
const VICUNA =
  "A chat between a curious human and an artificial intelligence assistant. " +
  "The assistant gives helpful, detailed, and polite answers to the human's questions.";
const VICUNA_USER = VICUNA.replace("curious human", "curious user").replace("human's", "user's");
const LLAVA_LLAMA2 =
  "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, " +
  "and assist the user with a variety of tasks using natural language.";
const MINIGPT4 =
  "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. Please answer my questions.";

const image = { imageToken: "<image>", afterImage: "\n" };
const chatml: Omit<NamedTemplate, "version" | "separators"> = {
  ...image,
  ...{ style: "joined", systemFrame: "<|im_start|>system\n{system}", user: "<|im_start|>user\n", assistant: "<|im_start|>assistant\n" },
};
const llava: Omit<NamedTemplate, "version"> = { ...image, style: "two", user: "USER", assistant: "ASSISTANT", separators: [" ", "</s>"] };
const instruct: Omit<NamedTemplate, "version" | "separators"> = { ...image, style: "llama2", user: "[INST] ", assistant: " " };
const minigpt4: Omit<NamedTemplate, "version" | "user" | "assistant"> = {
  imageToken: "<Img><ImageHere></Img>",
  afterImage: " ",
  style: "joined",
  separators: ["", ""],
};

/** By the names that the original programs gave them. To add one, add a row. */
export const NAMED_TEMPLATES: { readonly [name: string]: NamedTemplate } = {
  "internlm2-chat": { ...chatml, version: "InternVL 1.5 and 2 with InternLM2", system: INTERNVL, separators: ["<|im_end|>", "<|im_end|>"] },
  "Hermes-2": {
    ...chatml,
    version: "InternVL 1.2, 1.5 and 2 with Nous-Hermes 2 or Qwen2",
    system: INTERNVL,
    separators: ["<|im_end|>", "<|im_end|>"],
  },
  "phi3-chat": {
    ...{
      ...image,
      version: "InternVL 1.5 and 2 with Phi-3",
      style: "joined" as const,
      system: INTERNVL,
      systemFrame: "<|system|>\n{system}",
    },
    ...{ user: "<|user|>\n", assistant: "<|assistant|>\n", separators: ["<|end|>", "<|end|>"] },
  },
  internvl2_5: { ...chatml, version: "InternVL 2.5 and 3", system: INTERNVL_2_5, separators: ["<|im_end|>\n", "<|im_end|>\n"] },
  internvl_zh: { ...llava, version: "InternVL-Chat 1.1", system: "", user: "<human>", assistant: "<bot>" },
  vicuna_v1: { ...llava, version: "LLaVA 1.5 and 1.6 with Vicuna", system: VICUNA_USER },
  llava_v1: { ...llava, version: "LLaVA 1", system: VICUNA },
  llava_llama_2: { ...instruct, version: "LLaVA 1 with Llama 2", system: LLAVA_LLAMA2, separators: ["<s>", "</s>"] },
  mistral_instruct: { ...instruct, version: "LLaVA 1.6 with Mistral", system: "", separators: ["", "</s>"] },
  chatml_direct: {
    ...chatml,
    version: "LLaVA 1.6 with Nous-Hermes 2",
    system: "Answer the questions.",
    separators: ["<|im_end|>", "<|im_end|>"],
  },
  minigpt4: { ...minigpt4, version: "MiniGPT-4's second stage of training", user: "###Human: ", assistant: " ###Assistant: " },
  "minigpt4-vicuna": {
    ...{ ...minigpt4, version: "MiniGPT-4's demo with Vicuna", system: MINIGPT4, user: "Human: ", assistant: "Assistant: " },
    separators: ["###", "###"],
  },
  "minigpt4-llama2": {
    ...minigpt4,
    version: "MiniGPT-4's demo with Llama 2",
    system: MINIGPT4,
    user: "<s>[INST] ",
    assistant: " [/INST] ",
  },
  minigptv2: { ...minigpt4, version: "MiniGPT-v2", system: "", user: "<s>[INST] ", assistant: " [/INST]" },
  ovis2: {
    ...chatml,
    version: "Ovis 1.6 and 2 with Qwen",
    system: "You are a helpful assistant.",
    separators: ["<|im_end|>\n", "<|im_end|>\n"],
  },
  ovis2_5: {
    ...chatml,
    version: "Ovis 2.5 with Qwen3",
    separators: ["<|im_end|>\n", "<|im_end|>\n"],
    noThinking: "<think>\n\n</think>\n\n",
  },
};
