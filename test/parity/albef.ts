/** Every check of an oracle's ALBEF: text, pictures, each layer of both halves, heads, losses, gradients, LoRA training, and its three weight files. */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { type Albef, load } from "vitrine/models";
import { record } from "vitrine/nn/tap";
import { checkHidden } from "./blip";
import { ATTENTION, Checks, FLOAT, type Oracle } from "./check";
import { checkImages } from "./images";
import { checkMatching, matchingRuns, pairsOf } from "./matching";
import { checkTokenization } from "./tokenization";

export async function checkAlbef(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const folder = join(oracle.folder, "model");
  const albef = await load<Albef>(folder);
  const pairs = pairsOf(oracle);
  await checkForward(oracle, checks, albef, pairs);
  const runs = matchingRuns(pairs);
  for (const file of ["ALBEF.pth", "checkpoint_retrieval.pth", "legacy_pickle.pth"]) {
    const other = await load<Albef>(join(folder, file));
    const logits = runs.logits(other);
    await checks.tensor(`itm logits of ${file}`, logits, oracle.array(oracle.cases.forward[0].itm_logits), FLOAT);
    logits.dispose();
    other.dispose();
  }
  await checkMatching(oracle, checks, albef, runs);
  albef.dispose();
  return checks.rows;
}

async function checkForward(oracle: Oracle, checks: Checks, albef: Albef, { pixels, words }: ReturnType<typeof pairsOf>): Promise<void> {
  const [wanted] = oracle.cases.forward;
  const { tap, seen } = record();
  const states = albef.see(pixels, tap);
  const logits = albef.matchingLogits(states, words, { tap });
  const F = albef.config.text_config.fusion_layer;
  const see = (name: string, array: string, tolerance = FLOAT) => checks.tensor(name, seen.get(name), oracle.array(array), tolerance);
  const part = (i: number) => (i < F ? "text" : "fused");
  await checkHidden(oracle, checks, seen, "vision.", wanted.vision_hidden);
  await checks.tensor("vision.final", states, oracle.array(wanted.image_embeds), FLOAT);
  await checkHidden(oracle, checks, seen, "text.", wanted.text_hidden.slice(0, F + 1));
  for (let i = F; i < wanted.text_hidden.length - 1; i++) await see(`fused.blocks.${i}.resid_post`, wanted.text_hidden[i + 1]);
  await see(`fused.blocks.${F}.resid_pre`, wanted.text_embeds);
  for (const [i, name] of wanted.self_attention.entries()) await see(`${part(i)}.blocks.${i}.attn.pattern`, name, ATTENTION);
  for (const [i, name] of Object.entries(wanted.cross_attention as { [layer: string]: string }))
    await see(`fused.blocks.${i}.cross_attn.pattern`, name, ATTENTION);
  const [pictures, texts] = [albef.encodePicture(states), albef.encodeWords(words)];
  await checks.tensor("image embeddings", pictures, oracle.array(wanted.image_feat), FLOAT);
  await checks.tensor("text embeddings", texts, oracle.array(wanted.text_feat), FLOAT);
  await checks.tensor("itc logits", albef.logits(pictures, texts), oracle.array(wanted.sim_i2t), FLOAT);
  await checks.tensor("itm logits", logits, oracle.array(wanted.itm_logits), FLOAT);
  seen.dispose();
  tf.dispose([states, logits, pictures, texts]);
}
