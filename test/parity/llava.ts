/** Every check of an oracle's LLaVA, LLaVA-NeXT and LLaVA-OneVision families. */
import { join } from "node:path";
import { load, type VisionLanguageModel } from "vitrine/models";
import { Checks, type Oracle } from "./check";
import { checkImages } from "./images";
import { checkTokenization } from "./tokenization";
import { checkVisionLanguage } from "./vision-language";

export async function checkLlava(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const model = await load<VisionLanguageModel>(join(oracle.folder, "model"));
  await checkVisionLanguage(oracle, checks, model);
  model.dispose();
  return checks.rows;
}
