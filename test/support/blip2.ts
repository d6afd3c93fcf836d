/** The oracle's BLIP-2 of the first stage, and the same with a language head, which no published layout of transformers has. */
import { cpSync } from "node:fs";
import { join } from "node:path";
import { random } from "vitrine/data/random";
import type { tf } from "vitrine/engine";
import { openSafetensors, saveSafetensors, toFloat32 } from "vitrine/files/safetensors";
import { type Blip2, load } from "vitrine/models";
import { blip2Spec } from "vitrine/models/blip2";
import { leaves } from "vitrine/nn/spec";
import { channelsLast, integers, openOracle } from "../parity/check";
import { ORACLE, scratch } from "./clip";

export const BLIP2 = join(ORACLE, "blip2_itm", "model");

/** The inputs of the oracle's forward pass: three pictures, three padded texts. */
export function blip2Inputs(queries: number) {
  const oracle = openOracle(ORACLE, "blip2_itm");
  const [ids, padding] = ["forward.input_ids", "forward.attention_mask"].map((name) =>
    integers(oracle.array(name)).slice([0, queries], [-1, -1]),
  );
  return {
    pixels: channelsLast(oracle.array("forward.pixel_values")),
    text: { ids, padding } as { ids: tf.Tensor2D; padding: tf.Tensor2D },
  };
}

/** A copy of the oracle's folder whose file has a language head too, of random weights. */
export async function speakingBlip2(): Promise<Blip2> {
  const folder = scratch();
  cpSync(BLIP2, folder, { recursive: true });
  const quiet = await load<Blip2>(BLIP2);
  const draw = random(11);
  const head = leaves(blip2Spec(quiet.config, true)).filter(({ spec }) => spec.name.startsWith("cls.predictions."));
  quiet.dispose();
  const file = openSafetensors(join(BLIP2, "model.safetensors"));
  const bytes = (values: Float32Array) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const old = [...file.tensors.values()].map((source) => ({
    name: source.name,
    dtype: "F32" as const,
    shape: source.shape,
    data: bytes(toFloat32(source)),
  }));
  const added = head.map(({ spec: { name, shape } }) => ({
    name,
    dtype: "F32" as const,
    shape,
    data: bytes(
      Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => (name.endsWith("LayerNorm.weight") ? 1 : draw() - 0.5)),
    ),
  }));
  await saveSafetensors(join(folder, "model.safetensors"), [...old, ...added], { format: "pt" });
  file.close();
  return load<Blip2>(folder);
}
