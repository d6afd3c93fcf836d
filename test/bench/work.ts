/** What the workloads are: their sizes (those of peer.py) and the least work that each must do. */
import type { ClipConfig } from "vitrine/models/clip";

export const WORKLOADS = [
  "clip-image",
  "clip-text",
  "clip-lora",
  "embed-files",
  "load",
  "qformer",
  "vlm-prefill",
  "vlm-decode",
  "vlm-lora",
] as const;
export type Workload = (typeof WORKLOADS)[number];
export type ClipWorkload = Exclude<Workload, "qformer" | `vlm-${string}`>;

/** The checkpoint that CLIP's workloads use, in the folder that peer.py makes. */
export const CHECKPOINT = "clip-vit-base-patch32";
const VLM = "internvl2-1b";
const OTHERS: { [workload: string]: string } = { qformer: "qformer", "vlm-prefill": VLM, "vlm-decode": VLM, "vlm-lora": VLM };
/** The checkpoint of a workload. */
export const checkpointOf = (workload: Workload): string => OTHERS[workload] ?? CHECKPOINT;

export const PICTURES = 32;
/** JPEG files of `embed-files`, PICTURES of them a batch. */
export const FILES = 128;
export const TEXTS = 64;
export const TOKENS = 77;
/** Matching pairs of a training step. */
export const PAIRS = 32;

/** Sizes of one tower. */
type Tower = { hidden_size: number; intermediate_size: number; num_hidden_layers: number };
/** Floating-point operations of the products with weights, and of attention's two products. */
type Operations = { weights: number; attention: number };

/** A transformer's blocks on B sequences of N positions: q, k, v, out and the feed-forward pair; scores and their weighted sum. */
function blocks({ hidden_size: D, intermediate_size: F, num_hidden_layers: L }: Tower, B: number, N: number): Operations {
  return { weights: L * B * N * 2 * (4 * D * D + 2 * D * F), attention: L * B * N * 2 * (2 * N * D) };
}

function imageOperations({ vision_config: v, projection_dim }: ClipConfig, B: number): Operations {
  const patches = Math.floor(v.image_size / v.patch_size) ** 2;
  const { weights, attention } = blocks(v, B, patches + 1);
  const ends = B * patches * 2 * v.num_channels * v.patch_size ** 2 * v.hidden_size + B * 2 * v.hidden_size * projection_dim;
  return { weights: weights + ends, attention };
}

function textOperations({ text_config: t, projection_dim }: ClipConfig, B: number, N: number): Operations {
  const { weights, attention } = blocks(t, B, N);
  return { weights: weights + B * 2 * t.hidden_size * projection_dim, attention };
}

/**
 * Floating-point operations of one repetition, for the share of the machine's limit. A training step with frozen weights does each weight's product
 * twice (forward, gradient to the input) and attention's thrice; elementwise work and the adapters (below 2 %) are left out,
 * and of `embed-files` the reading and resizing.
 */
export function operations(workload: Exclude<ClipWorkload, "load">, config: ClipConfig): number {
  const [image, text] =
    workload === "clip-lora"
      ? [imageOperations(config, PAIRS), textOperations(config, PAIRS, TOKENS)]
      : [imageOperations(config, workload === "embed-files" ? FILES : PICTURES), textOperations(config, TEXTS, TOKENS)];
  if (workload === "clip-image" || workload === "embed-files") return image.weights + image.attention;
  if (workload === "clip-text") return text.weights + text.attention;
  return 2 * (image.weights + text.weights) + 3 * (image.attention + text.attention);
}

/** Tokens of a picture, and of the whole prompt when it is read and when it trains. */
const IMAGE_TOKENS = 256;
const [PREFILL, TRAINED] = [320, 512];

type QFormerSizes = Tower & { encoder_hidden_size: number; cross_attention_frequency: number };

/** The same for 8 pictures of 257 states read by 32 queries: keys and values of the states are made every second layer. */
export function qFormerOperations(c: QFormerSizes): number {
  const { weights, attention } = blocks(c, 8, 32);
  const D = c.hidden_size;
  const crossed = Math.ceil(c.num_hidden_layers / c.cross_attention_frequency);
  const states = 8 * 257 * 2 * (2 * c.encoder_hidden_size * D);
  return weights + attention + crossed * (states + 8 * 32 * 2 * (2 * D * D) + 8 * 32 * 2 * (2 * 257 * D));
}

type VlmSizes = {
  vision_config: Tower & { image_size: number; patch_size: number };
  text_config: Tower & { num_attention_heads: number; num_key_value_heads: number; vocab_size: number };
};

/** Numbers in the weights of a decoder's blocks. */
function decoderWeights({
  hidden_size: D,
  intermediate_size: F,
  num_hidden_layers: L,
  num_attention_heads: H,
  num_key_value_heads: G,
}: VlmSizes["text_config"]): number {
  return L * (2 * D * D + 2 * D * ((D / H) * G) + 3 * D * F);
}

/** The same for one picture's tower and a prompt: read (the last position's logits), or trained (logits of every position that counts, twice). */
export function vlmOperations(workload: "vlm-prefill" | "vlm-lora", { vision_config: v, text_config: t }: VlmSizes): number {
  const tower = blocks(v, 1, (v.image_size / v.patch_size) ** 2 + 1);
  const picture = tower.weights + tower.attention;
  const N = workload === "vlm-prefill" ? PREFILL : TRAINED;
  const read = 2 * N * decoderWeights(t);
  const attention = t.num_hidden_layers * N * (N + 1) * 2 * t.hidden_size; // half of the pairs: nobody looks ahead
  const head = 2 * t.hidden_size * t.vocab_size;
  return workload === "vlm-prefill"
    ? picture + read + attention + head
    : picture + 2 * read + 3 * attention + 2 * (TRAINED - IMAGE_TOKENS) * head;
}

/** Bytes of weights that a decoder reads for one token, the head (the embedding table) in at least 16 bits. bits: of a number in the blocks' weights. */
export function decodeBytes({ text_config: t }: VlmSizes, bits: number): number {
  return (decoderWeights(t) * bits) / 8 + (t.hidden_size * t.vocab_size * Math.max(16, bits)) / 8;
}
