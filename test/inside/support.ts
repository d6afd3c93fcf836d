/** Tiny models that talk, with a prompt about a picture. */
import { join } from "node:path";
import type { Asked } from "vitrine/inside/answer";
import { type Picture, readPicture } from "vitrine/image/picture";
import { load, type VisionLanguageModel } from "vitrine/models";
import { ORACLE } from "../support/clip";
import { openOracle } from "../parity/check";

/** A model with random weights, a prompt about a picture, and how its own answer begins. */
export async function talker(
  family = "internvl_hf",
): Promise<{ model: VisionLanguageModel; asked: Asked; picture: Picture; text: string }> {
  const oracle = openOracle(ORACLE, family);
  const [[forward], [generation]] = [oracle.cases.forward, oracle.cases.generation];
  const model = await load<VisionLanguageModel>(join(oracle.folder, "model"));
  const [text, file] = generation.prompt ? [generation.prompt, generation.image] : [forward.text, forward.image ?? forward.images[0]];
  const picture = await readPicture(join(oracle.root, file));
  return { model, picture, text, asked: { prompt: model.prompt(text, [picture]), answer: generation.new_ids.slice(0, 4) } };
}

/** Another picture of the same size: the same colours, upside down. */
export const turned = ({ width, height, data }: Picture): Picture => {
  const out = new Uint8Array(data.length);
  for (let i = 0; i < data.length; i += 3) out.set(data.subarray(i, i + 3), data.length - 3 - i);
  return { width, height, data: out };
};
