/** Tiny models that talk, with a prompt about a picture. */
import { join } from "node:path";
import type { Asked } from "vitrine/inside/answer";
import { type Picture, readPicture } from "vitrine/image/picture";
import { load, type VisionLanguageModel } from "vitrine/models";
import { ORACLE } from "../support/clip";
import { openOracle } from "../parity/check";

/** InternVL with random weights, its first prompt about a picture, and what it answers by itself. */
export async function talker(
  family = "internvl_hf",
): Promise<{ model: VisionLanguageModel; asked: Asked; picture: Picture; text: string }> {
  const oracle = openOracle(ORACLE, family);
  const [wanted] = oracle.cases.forward;
  const model = await load<VisionLanguageModel>(join(oracle.folder, "model"));
  const picture = await readPicture(join(oracle.root, wanted.image ?? wanted.images[0]));
  const answer = oracle.cases.generation[0].new_ids.slice(0, 4) as number[];
  return { model, picture, text: wanted.text, asked: { prompt: model.prompt(wanted.text, [picture]), answer } };
}

/** Another picture of the same size: the same colours, upside down. */
export const turned = ({ width, height, data }: Picture): Picture => {
  const out = new Uint8Array(data.length);
  for (let i = 0; i < data.length; i += 3) out.set(data.subarray(i, i + 3), data.length - 3 - i);
  return { width, height, data: out };
};
