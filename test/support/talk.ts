/** The oracle's InternVL as a model that talks, in float32; it counts the tokens that it is given. */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { readPicture } from "vitrine/image/picture";
import { load } from "vitrine/models";
import type { InternVL } from "vitrine/models/internvl-load";
import type { LanguageModel, VisionLanguageModel } from "vitrine/models/loaded";
import { openOracle } from "../parity/check";

const ORACLE = join(__dirname, "..", "oracle");

/** A model whose `forward` writes down how many tokens each call had. */
export function counting<M extends VisionLanguageModel>(model: M): { model: M; given: number[] } {
  const given: number[] = [];
  const forward: LanguageModel["forward"] = (inputs) => {
    given.push(inputs.embeddings.shape[1]);
    return model.language.forward(inputs);
  };
  return { model: { ...model, language: { ...model.language, forward } }, given };
}

export async function openTower() {
  const oracle = openOracle(ORACLE, "internvl_hf");
  const { model, given } = counting(await load<InternVL>(join(oracle.folder, "model")));
  return { oracle, model, language: model.language, given };
}

export type Tower = Awaited<ReturnType<typeof openTower>>;

/** Embeddings of a prompt without pictures. [1, N, D] */
export const embed = ({ language }: Pick<Tower, "language">, ids: number[]): tf.Tensor3D =>
  tf.tidy(() => language.embed(tf.tensor2d(ids, [1, ids.length], "int32")));

/** One of the oracle's pictures by name, such as "rgb_wide.png". */
export const oraclePicture = (name: string) => readPicture(join(ORACLE, "images", name));

/** The oracle's question about a picture, as embeddings. */
export async function picturePrompt({ oracle, model }: Tower): Promise<{ embeddings: tf.Tensor3D; ids: number[] }> {
  const { text, image, input_ids } = oracle.cases.generation[0] as { text: string; image: string; input_ids: number[] };
  const prompt = model.prompt(text, [await readPicture(join(ORACLE, image))]);
  if (String(prompt.ids) !== String(input_ids)) throw new Error(`the prompt's ids are ${prompt.ids}, the oracle's ${input_ids}`);
  return { embeddings: model.embedPrompt(prompt), ids: prompt.ids };
}
