/** Every check of an oracle's blip2_itm family: text, pictures, the Q-Former's three passes, heads, losses, gradients, LoRA training. */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { type Blip2, load } from "vitrine/models";
import { record } from "vitrine/nn/tap";
import { ATTENTION, type Cases, Checks, channelsLast, FLOAT, integers, type Oracle } from "./check";
import { checkGradients } from "./gradients";
import { checkImages } from "./images";
import { checkLora } from "./lora";
import { checkTokenization } from "./tokenization";

type Inputs = { pixels: tf.Tensor4D; text: { ids: tf.Tensor2D; padding: tf.Tensor2D } };

export async function checkBlip2Retrieval(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  await checkTokenization(oracle, checks);
  await checkImages(oracle, checks);
  const blip2 = await load<Blip2>(join(oracle.folder, "model"));
  const inputs = forwardInputs(oracle, blip2.config.num_query_tokens);
  await checkForward(oracle, checks, blip2, inputs);
  const losses = lossesOf(inputs);
  for (const wanted of oracle.cases.gradients ?? []) {
    const loss = losses[wanted.name as "itc" | "itm"];
    if (loss) await checkGradients(oracle, checks, blip2, loss, wanted);
    else checks.exact(`gradients (${wanted.name})`, 1, ["no loss of this name"]);
  }
  const run = {
    logits: (model: Blip2) => tf.tidy(() => model.matchingLogits(model.see(inputs.pixels), inputs.text)),
    loss: (model: Blip2) => tf.tidy(() => losses.itc(model).add(losses.itm(model)) as tf.Scalar),
  };
  for (const wanted of oracle.cases.lora ?? []) await checkLora(oracle, checks, blip2, run, wanted);
  tf.dispose([inputs.pixels, inputs.text.ids, inputs.text.padding]);
  blip2.dispose();
  return checks.rows;
}

/** The reference's texts begin with an image token for each query, which its model slices off. */
function forwardInputs(oracle: Oracle, queries: number): Inputs {
  const [ids, padding] = ["forward.input_ids", "forward.attention_mask"].map((name) =>
    tf.tidy(() => integers(oracle.array(name)).slice([0, queries], [-1, -1])),
  );
  return { pixels: channelsLast(oracle.array("forward.pixel_values")), text: { ids, padding } };
}

/** As the oracle's notes on its gradients say: negatives of the matching loss are texts moved on by one. */
function lossesOf({ pixels, text }: Inputs): { itc(model: Blip2): tf.Scalar; itm(model: Blip2): tf.Scalar } {
  const B = pixels.shape[0];
  const withRolled = (x: tf.Tensor2D) => tf.concat([x, x.slice([B - 1, 0], [1, -1]), x.slice([0, 0], [B - 1, -1])]) as tf.Tensor2D;
  const labels = () => tf.tensor1d([...new Array(B).fill(1), ...new Array(B).fill(0)], "int32");
  return {
    itc: (model) => tf.tidy(() => model.loss.contrastive(model.see(pixels), text)),
    itm: (model) =>
      tf.tidy(() => {
        const states = model.see(pixels);
        return model.loss.matching(tf.concat([states, states]), { ids: withRolled(text.ids), padding: withRolled(text.padding) }, labels());
      }),
  };
}

async function checkForward(oracle: Oracle, checks: Checks, blip2: Blip2, { pixels, text }: Inputs): Promise<void> {
  const [forward] = oracle.cases.forward;
  const { tap, seen } = record();
  const states = blip2.see(pixels, tap);
  await checks.tensor("vision.final", states, oracle.array(forward.vision_last_hidden_state), FLOAT);
  const [pictures, words] = [blip2.encodePicture(states, tap), blip2.encodeWords(text, tap)];
  const logits = blip2.matchingLogits(states, text, { tap });
  for (const [pass, prefix] of [
    ["qformer_itc_image", "image.qformer"],
    ["qformer_itc_text", "text.qformer"],
    ["qformer_itm", "qformer"],
  ]) {
    const wanted: Cases = forward[pass];
    const see = async (name: string, what: string, tolerance = FLOAT) =>
      checks.tensor(`${prefix}.${name}`, seen.get(`${prefix}.${name}`), oracle.array(what), tolerance);
    await see("embed", wanted.hidden[0]);
    const layers = blip2.config.qformer_config.num_hidden_layers;
    for (let i = 0; i < layers; i++) await see(`layers.${i}.out`, wanted.hidden[i + 1]);
    // The reference lists cross-attentions among them too; of one's own tokens an attention is square.
    const own = (wanted.self_attention as string[]).filter((name) => oracle.array(name).shape.at(-1) === oracle.array(name).shape.at(-2));
    checks.exact(`${prefix}: self-attentions`, own.length, own.length === layers ? [] : [`${own.length} for ${layers} layers`]);
    for (let i = 0; i < layers; i++) await see(`layers.${i}.self.pattern`, own[i], ATTENTION);
    for (const [i, name] of Object.entries((wanted.cross_attention ?? {}) as { [layer: string]: string }))
      await see(`layers.${i}.cross.pattern`, name, ATTENTION);
  }
  await checks.tensor("itm logits", logits, oracle.array(forward.itm_logits), FLOAT);
  await checks.tensor("itc image embeddings", pictures, oracle.array(forward.itc_image_embeds), FLOAT);
  await checks.tensor("itc text embeddings", words, oracle.array(forward.itc_text_embeds), FLOAT);
  await checks.tensor("itc logits_per_image", blip2.similarities(pictures, words), oracle.array(forward.itc_logits_per_image), FLOAT);
  seen.dispose();
}
