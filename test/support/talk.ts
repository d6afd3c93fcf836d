/** The oracle's InternVL as a model that talks, in float32: its decoder as `generate` drives one, with what it says to a picture. */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { openCheckpoint } from "vitrine/files/checkpoint";
import { embedPrompt, internVLConfig, internVLSpec, projectImages } from "vitrine/models/internvl";
import { embedTokens, headWeight, llama, llamaLogits, llamaRotary } from "vitrine/models/llama";
import type { LanguageModel } from "vitrine/models/loaded";
import { makeCache } from "vitrine/nn/cache";
import { type Dtype, loadWeights } from "vitrine/nn/spec";
import { channelsLast, openOracle } from "../parity/check";

const TOWERS = join(__dirname, "..", "oracle", "towers");

/** Tokens that a model was given, step by step. */
export type Counted = LanguageModel & { given: number[] };

export function openTower(dtype: Dtype = "float32") {
  const oracle = openOracle(TOWERS, "internvl_hf");
  const folder = join(oracle.folder, "model");
  const checkpoint = openCheckpoint(folder);
  const config = internVLConfig(checkpoint.config);
  const params = loadWeights(internVLSpec(config), checkpoint.tensors, { dtype, where: folder });
  const { text_config: c } = config;
  const rotary = llamaRotary(c);
  const given: number[] = [];
  const language: Counted = {
    given,
    vocabSize: c.vocab_size,
    hiddenSize: c.hidden_size,
    contextLength: c.max_position_embeddings,
    layers: c.num_hidden_layers,
    endTokens: [478],
    embed: (ids) => embedTokens(params.language, ids),
    forward: (inputs) => {
      given.push(inputs.embeddings.shape[1]);
      return llama(params.language, c, { ...inputs, rotary });
    },
    logits: (hidden) => llamaLogits(params.language, hidden),
    headWeight: headWeight(params.language),
    makeCache: (room) => makeCache(c.num_hidden_layers, room),
  };
  return { oracle, folder, config, params, language };
}

export type Tower = ReturnType<typeof openTower>;

/** Embeddings of a prompt without pictures. [1, N, D] */
export const embed = ({ language }: Pick<Tower, "language">, ids: number[]): tf.Tensor3D =>
  tf.tidy(() => language.embed(tf.tensor2d(ids, [1, ids.length], "int32")));

/** The oracle's question about a picture, as embeddings. The first tiles of its pixels are that picture's. */
export function picturePrompt({ oracle, config, params }: Tower): { embeddings: tf.Tensor3D; ids: number[] } {
  const { input_ids: ids } = oracle.cases.generation[0] as { input_ids: number[] };
  const tiles = ids.filter((id) => id === config.image_token_id).length / config.image_seq_length;
  const embeddings = tf.tidy(() => {
    const pixels = channelsLast(oracle.array("forward.pixel_values")).slice([0, 0, 0, 0], [tiles, -1, -1, -1]) as tf.Tensor4D;
    return embedPrompt(params, config, tf.tensor2d(ids, [1, ids.length], "int32"), projectImages(params, config, pixels));
  });
  return { embeddings, ids };
}
