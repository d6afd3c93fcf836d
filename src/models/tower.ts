/** The picture tower of a LLaVA model: CLIP's or SigLIP's. */
import type { tf } from "../engine/tf";
import { type Tap, noTap } from "../nn/tap";
import { type ClipVision, clipStates, clipVisionConfig, clipVisionSpec, type VisionConfig } from "./clip";
import { checkKnown } from "./config";
import { type SiglipVision, type SiglipVisionConfig, siglipStates, siglipVisionConfig, siglipVisionSpec } from "./siglip";

export type TowerConfig = { kind: "clip_vision_model"; vit: VisionConfig } | { kind: "siglip_vision_model"; vit: SiglipVisionConfig };
export type Tower = ClipVision | SiglipVision;

/** A `vision_config` by its `model_type`. @throws listing unhandled keys and impossible sizes */
export function towerConfig(raw: unknown, where = "config.json: vision_config"): TowerConfig {
  const { model_type: kind = "clip_vision_model", ...rest } = (raw ?? {}) as { [key: string]: unknown };
  checkKnown(`${where}: model_type`, String(kind), ["clip_vision_model", "siglip_vision_model"]);
  return kind === "siglip_vision_model"
    ? { kind, vit: siglipVisionConfig(rest, where) }
    : { kind: "clip_vision_model", vit: clipVisionConfig(rest, where) };
}

/** Every weight by its name in the file. prefix: "vision_tower.vision_model.". */
export const towerSpec = (c: TowerConfig, prefix: string) =>
  (c.kind === "siglip_vision_model" ? siglipVisionSpec(c.vit, prefix) : clipVisionSpec(c.vit, prefix)) as ReturnType<
    typeof siglipVisionSpec
  >;

/** Weights of a tower's file that no language model reads: SigLIP's pooling head, CLIP's stored positions. */
export const towerIgnored = /\.position_ids$|vision_model\.head\./;

/** Rows, or columns, of patches in a tile. */
export const towerSide = ({ vit }: TowerConfig): number => Math.floor(vit.image_size / vit.patch_size);

/** Whether a class token stands before the patches. */
export const hasClassToken = (c: TowerConfig): boolean => c.kind === "clip_vision_model";

/** The residual stream at some depths. pixels: [B, S, S, 3] -> each [B, N, D] */
export const towerStates = (p: Tower, c: TowerConfig, pixels: tf.Tensor4D, depths: readonly number[], tap: Tap = noTap): tf.Tensor3D[] =>
  c.kind === "siglip_vision_model"
    ? siglipStates(p as SiglipVision, c.vit, pixels, depths, tap)
    : clipStates(p as ClipVision, c.vit, pixels, depths, tap);
