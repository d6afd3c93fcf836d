/** Every check of an oracle's InternVL families, in the layout of transformers and in that of the original repository. */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { load, type VisionLanguageModel } from "vitrine/models";
import { type Cases, Checks, FLOAT, type Oracle } from "./check";
import { checkImages } from "./images";
import { checkTokenization } from "./tokenization";
import { type Ask, checkVisionLanguage, readPictures, run, type TextOf, withPixels } from "./vision-language";

const named = (oracle: Oracle, name: string): Cases => oracle.cases.forward.find((f: Cases) => f.name === name);

export async function checkInternVL(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const model = await load<VisionLanguageModel>(join(oracle.folder, "model"));
  await checkVisionLanguage(oracle, checks, model);
  await checkTwoPictures(oracle, checks, model);
  model.dispose();
  return checks.rows;
}

/** The row of the left-padded batch that has two pictures, alone: rotary positions tell only distances, so the padding changes nothing. */
async function checkTwoPictures(oracle: Oracle, checks: Checks, model: VisionLanguageModel): Promise<void> {
  const wanted = named(oracle, "batch_left_padded");
  const [ids, mask, pixels] = ["input_ids", "attention_mask", "pixel_values"].map((part) => oracle.array(`batch.${part}`));
  const [, N] = ids.shape;
  for (const [row, text] of (wanted.texts as string[]).entries()) {
    const pictures = await readPictures(oracle, wanted.images[row]);
    const prompt = withPixels(model.prompt(text, pictures, { max_patches: wanted.max_patches }), pixels);
    const real = [...ids.values.slice(row * N, (row + 1) * N)].filter((_, i) => mask.values[row * N + i] === 1);
    checks.exact(`batch_left_padded ${row}: ids`, 1, String(prompt.ids) === String(real) ? [] : [text]);
    const [, , V] = oracle.array(wanted.logits).shape;
    const want = oracle.array(wanted.logits).values.slice((row * N + N - real.length) * V, (row + 1) * N * V);
    const logits = run(model, prompt);
    await checks.tensor(`batch_left_padded ${row}: logits`, logits, { values: want, shape: [1, real.length, V] }, FLOAT);
    logits.dispose();
  }
}

export async function checkInternVLChat(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const model = await load<VisionLanguageModel>(join(oracle.folder, "model"));
  const wanted = named(oracle, "image_prompt");
  const forward = oracle.cases.forward.map((one: Cases) => (one === wanted ? { ...one, projector: one.mlp1 } : one));
  await checkVisionLanguage({ ...oracle, cases: { ...oracle.cases, forward } }, checks, model, {
    ask: folded(wanted.max_tiles),
    ...(oracle.family === "internvl_chat_internlm2" ? { textOf: pieces } : {}),
  });
  await checkLongText(oracle, checks, model);
  model.dispose();
  return checks.rows;
}

/** The oracle's prompts hold each picture's tokens; ours say `<image>`. */
const fold = (text: string): string => text.replace(/<img>(<IMG_CONTEXT>)+<\/img>/g, "<image>");
const folded =
  (max_patches: number): Ask =>
  (model, text, pictures) =>
    model.prompt(fold(text), pictures, { max_patches });

/** InternLM2's oracle joins SentencePiece's pieces as they are. */
const pieces: TextOf = (model, ids) => model.tokenizer.tokens(ids).join("");

/** A text beyond max_position_embeddings, where the scaling of rotary positions depends on the length. */
async function checkLongText(oracle: Oracle, checks: Checks, model: VisionLanguageModel): Promise<void> {
  for (const wanted of oracle.cases.forward.filter((f: Cases) => f.logits_last16)) {
    const { values, shape } = oracle.array(wanted.inputs[0]);
    const want = oracle.array(wanted.logits_last16);
    const logits = tf.tidy(() => {
      const embeddings = model.language.embed(tf.tensor2d(Int32Array.from(values), shape as [number, number], "int32"));
      const hidden = model.language.forward({ embeddings });
      return model.language.logits(hidden.slice([0, hidden.shape[1] - 16, 0], [1, 16, hidden.shape[2]]));
    });
    await checks.tensor(`${wanted.name}: logits`, logits, want, FLOAT);
    logits.dispose();
  }
}
