/** What the workloads are: their sizes (those of peer.py) and the least work that each must do. */
import type { ClipConfig } from "vitrine/models/clip";

export const WORKLOADS = ["clip-image", "clip-text", "clip-lora", "embed-files", "load"] as const;
export type Workload = (typeof WORKLOADS)[number];

/** The checkpoint that they use, in the folder that peer.py makes. */
export const CHECKPOINT = "clip-vit-base-patch32";

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
export function operations(workload: Exclude<Workload, "load">, config: ClipConfig): number {
  const [image, text] =
    workload === "clip-lora"
      ? [imageOperations(config, PAIRS), textOperations(config, PAIRS, TOKENS)]
      : [imageOperations(config, workload === "embed-files" ? FILES : PICTURES), textOperations(config, TEXTS, TOKENS)];
  if (workload === "clip-image" || workload === "embed-files") return image.weights + image.attention;
  if (workload === "clip-text") return text.weights + text.attention;
  return 2 * (image.weights + text.weights) + 3 * (image.attention + text.attention);
}
