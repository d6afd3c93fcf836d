/**
 * The encoder that CLIP and SigLIP share: pre-norm transformer blocks (Dosovitskiy et al. 2021, eq. 2-3) with the weight names of transformers'
 * CLIPEncoder and SiglipEncoder.
 */
import type { tf } from "../engine/tf";
import { asBlock } from "../nn/block";
import { activationName, add, attention, layerNorm, linearSpec, mlp, type Mask, normSpec, rotate } from "../nn/layers";
import type { Rotary } from "../nn/rope";
import { type Params, repeat } from "../nn/spec";
import { at, type Tap, watched } from "../nn/tap";

export type EncoderConfig = {
  hidden_size: number;
  intermediate_size: number;
  num_hidden_layers: number;
  num_attention_heads: number;
  hidden_act: string;
  layer_norm_eps: number;
};

const blockSpec = (name: string, { hidden_size: D, intermediate_size: F }: EncoderConfig) => ({
  ln1: normSpec(`${name}.layer_norm1`, D),
  attn: {
    q: linearSpec(`${name}.self_attn.q_proj`, D, D),
    k: linearSpec(`${name}.self_attn.k_proj`, D, D),
    v: linearSpec(`${name}.self_attn.v_proj`, D, D),
    out: linearSpec(`${name}.self_attn.out_proj`, D, D),
  },
  ln2: normSpec(`${name}.layer_norm2`, D),
  mlp: { fc1: linearSpec(`${name}.mlp.fc1`, D, F), fc2: linearSpec(`${name}.mlp.fc2`, F, D) },
});
type Block = Params<ReturnType<typeof blockSpec>>;

/** The blocks of a tower by their names in the file. prefix: such as "text_model.". */
export const encoderSpec = (c: EncoderConfig, prefix: string) =>
  repeat(c.num_hidden_layers, (i) => blockSpec(`${prefix}encoder.layers.${i}`, c));

/**
 * Rotary positions in a picture: a part of each head turns with the row, the other with the column. Each turn has frequencies for all of the head, 0 where
 * the other one turns; positions are int32 [1, N].
 */
export type Turns = { rows: tf.Tensor2D; columns: tf.Tensor2D; byRow: Rotary; byColumn: Rotary };

/** x: [B, N, D] -> [B, N, D] */
function block(p: Block, c: EncoderConfig, x: tf.Tensor3D, tap: Tap, mask: Mask, turns?: Turns): tf.Tensor3D {
  const { num_attention_heads: heads, layer_norm_eps: eps } = c;
  const act = activationName(c.hidden_act);
  const turn = ({ rows, columns, byRow, byColumn }: Turns) => {
    const [down, along] = [rotate(byRow, rows), rotate(byColumn, columns)];
    return (x: tf.Tensor3D, heads: number) => along(down(x, heads), heads);
  };
  const rotary = turns && turn(turns);
  x = tap("resid_pre", x);
  x = tap(
    "resid_mid",
    add(x, "attn_out", tap, (onto) => attention(p.attn, layerNorm(p.ln1, x, eps), { heads, rotary, tap: at(tap, "attn"), mask, onto })),
  );
  return tap(
    "resid_post",
    add(x, "mlp_out", tap, (onto) => mlp(p.mlp, layerNorm(p.ln2, x, eps), act, at(tap, "mlp"), onto)),
  );
}

/**
 * The residual stream behind the last block. x: [B, N, D], padding: int32 [B, N], 1 where a token is real -> [B, N, D]
 * Taps: `blocks.N.{resid_pre,attn.{q,k,v,attn_scores,pattern,z},attn_out,resid_mid,mlp.{pre,post},mlp_out,resid_post}`.
 */
export const encoder = (blocks: Block[], c: EncoderConfig, x: tf.Tensor3D, tap: Tap, mask: Mask = {}): tf.Tensor3D =>
  encoderStates(blocks, c, x, [-1], tap, mask)[0];

/**
 * The residual stream at some depths, in their order: 0 is what goes into the first block, i what comes out of block i, -1 out of the last (as
 * transformers' `hidden_states`, before any final norm). Blocks behind the deepest one run only while a tap watches them. -> each [B, N, D]
 *
 * @throws RangeError for a depth that the tower does not have
 */
export function encoderStates(
  blocks: Block[],
  c: EncoderConfig,
  x: tf.Tensor3D,
  depths: readonly number[],
  tap: Tap,
  { causal, padding }: Mask = {},
  turns?: Turns,
): tf.Tensor3D[] {
  const wanted = depths.map((depth) => (depth < 0 ? blocks.length + 1 + depth : depth));
  const odd = wanted.findIndex((depth) => !Number.isInteger(depth) || depth < 0 || depth > blocks.length);
  if (odd >= 0) throw new RangeError(`vision_feature_layer ${depths[odd]}: the tower has ${blocks.length} layers`);
  const states = [x];
  for (const [i, p] of blocks.entries()) {
    const t = at(tap, `blocks.${i}`);
    if (i >= Math.max(...wanted) && !watched(t)) break;
    const { rows, columns } = turns ?? {};
    const compute = ({ x, padding, rows, columns }: { x: tf.Tensor3D; padding?: tf.Tensor2D; rows?: tf.Tensor2D; columns?: tf.Tensor2D }) =>
      block(p, c, x, t, { causal, padding }, turns && { ...turns, rows: rows!, columns: columns! });
    x = asBlock(p, { x, padding, rows, columns }, compute, { tap: t });
    states.push(x);
  }
  return wanted.map((depth) => states[depth]);
}
