/** Every check of an oracle's Ovis2 family. */
import { cpSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { readJson } from "vitrine/files/json";
import { load, type VisionLanguageModel } from "vitrine/models";
import type { Ovis2Params } from "vitrine/models/ovis2";
import { indicatorEmbeddings } from "vitrine/models/visual-tokenizer";
import { type Cases, Checks, FLOAT, type Oracle } from "./check";
import { checkImages } from "./images";
import { checkTokenization } from "./tokenization";
import { checkVisionLanguage } from "./vision-language";

export async function checkOvis2(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const folder = withTiles(oracle);
  try {
    const model = await load<VisionLanguageModel<Ovis2Params>>(folder);
    const extra = async (seen: { get(name: string): tf.Tensor }, wanted: Cases) => {
      const tokens = seen.get("visual_tokens");
      await checks.tensor("visual tokens", tokens, oracle.array(wanted.visual_tokens), FLOAT);
      await checks.tensor("visual embeddings", seen.get("visual_embeddings"), oracle.array(wanted.image_features), FLOAT);
      const want = oracle.array(wanted.indicator_features);
      const indicators = tf.tidy(() => indicatorEmbeddings(model.params.tokenizer, want.shape[0]));
      await checks.tensor("indicators", indicators, want, FLOAT);
      indicators.dispose();
    };
    await checkVisionLanguage(oracle, checks, model, { extra });
    model.dispose();
  } finally {
    rmSync(folder, { recursive: true });
  }
  return checks.rows;
}

/** The model with as many tiles as the oracle's prompt was made with. */
function withTiles(oracle: Oracle): string {
  const folder = mkdtempSync(join(tmpdir(), "vitrine-ovis2-"));
  cpSync(join(oracle.folder, "model"), folder, { recursive: true });
  const path = join(folder, "preprocessor_config.json");
  const [{ max_patches }] = oracle.cases.forward;
  writeFileSync(path, JSON.stringify({ ...readJson(path), max_patches }));
  return folder;
}
