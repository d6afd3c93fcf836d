/** Every check of the oracle's flava_pretraining family: visual words, hidden patches, the losses of pre-training, their gradients, LoRA. */
import { join } from "node:path";
import { tf } from "vitrine/engine";
import { type BlockMaskSettings, blockMask, loadBlockMask } from "vitrine/image/block-mask";
import { readPicture } from "vitrine/image/picture";
import { loadCodebookProcessor } from "vitrine/image/processor";
import { type Flava, load } from "vitrine/models";
import { codebookLogits } from "vitrine/models/flava-codebook";
import { type FlavaBatch, flavaLosses } from "vitrine/models/flava-pretraining";
import { type Cases, type Checks as Collector, Checks, channelsLast, FLOAT, integers, type Oracle, PIXELS_PIL } from "./check";
import { checkGradients } from "./gradients";
import { checkLora } from "./lora";

/** The arrays of a pre-training case, by our names. */
function batchOf(oracle: Oracle, { inputs }: { inputs: { [name: string]: string } }): FlavaBatch {
  const matrix = (name: string) => (inputs[name] ? integers(oracle.array(inputs[name])) : undefined);
  const matches = inputs.matches && oracle.array(inputs.matches);
  return {
    pixels: inputs.pixel_values ? channelsLast(oracle.array(inputs.pixel_values)) : undefined,
    ...{ hidden: matrix("bool_masked_pos"), words: matrix("mim_labels") },
    ...{ ids: matrix("input_ids"), mask: matrix("attention_mask"), masked: matrix("input_ids_masked"), labels: matrix("mlm_labels") },
    matches: matches ? tf.tensor1d(Int32Array.from(matches.values), "int32") : undefined,
  };
}

async function checkCodebook(oracle: Oracle, checks: Collector, model: Flava): Promise<void> {
  for (const [i, wanted] of (oracle.cases.codebook as Cases[]).entries()) {
    const pixels = channelsLast(oracle.array(wanted.pixel_values));
    const scores = tf.tidy(() =>
      codebookLogits(model.params.codebook!, model.config.image_codebook_config, pixels).transpose([0, 3, 1, 2]),
    );
    await checks.tensor(`codebook ${i}: scores`, scores, oracle.array(wanted.logits), FLOAT);
    const words = model.visualWords(pixels);
    if (wanted.words) await checks.tensor(`codebook ${i}: words`, words, oracle.array(wanted.words), { atol: 0, rtol: 0 });
    tf.dispose([pixels, scores, words]);
    for (const [at, file] of ((wanted.files ?? []) as string[]).entries())
      for (const layout of ["model", "v5_layout"]) {
        const got = loadCodebookProcessor(join(oracle.folder, layout)).process(await readPicture(join(oracle.root, file)));
        const all = channelsLast(oracle.array(wanted.pixel_values));
        const want = all.slice([at, 0, 0, 0], [1, -1, -1, -1]);
        checks.close(`codebook ${i}: ${layout}: ${file}`, got, await want.data(), PIXELS_PIL);
        tf.dispose([all, want]);
      }
  }
}

/** The settings of a case, by our names and with the reference's own for those that it does not give. */
function settingsOf(one: { [key: string]: number | [number, number] | undefined }, standard: BlockMaskSettings): BlockMaskSettings {
  const [rows, columns] = Array.isArray(one.input_size) ? one.input_size : [one.input_size, one.input_size];
  const total = (one.total_mask_patches ?? 75) as number;
  const narrow = (one.mask_group_min_aspect_ratio ?? standard.aspect[0]) as number;
  return {
    ...{ rows: rows as number, columns: columns as number, total },
    least: (one.mask_group_min_patches ?? 16) as number,
    most: (one.mask_group_max_patches ?? total) as number,
    aspect: [narrow, (one.mask_group_max_aspect_ratio ?? 1 / narrow) as number],
  };
}

function checkBlockMasks(oracle: Oracle, checks: Collector): void {
  const [own, nested] = ["model", "v5_layout"].map((layout) => loadBlockMask(join(oracle.folder, layout)));
  checks.exact("hidden patches: both layouts", 1, JSON.stringify(own) === JSON.stringify(nested) ? [] : ["differ"]);
  const cases = oracle.cases.block_masks as Cases[];
  const wrong = cases.flatMap(({ settings, draws, mask }, i) => {
    let drawn = 0;
    const got = blockMask(settingsOf(settings, own), () => draws[drawn++]);
    return String(got) === String(mask) && drawn === draws.length ? [] : [`case ${i}`];
  });
  checks.exact("hidden patches: masks by the same draws", cases.length, wrong);
}

export async function checkFlavaPretraining(oracle: Oracle): Promise<Checks["rows"]> {
  const checks = new Checks(oracle.family);
  const model = await load<Flava>(join(oracle.folder, "model"));
  await checkCodebook(oracle, checks, model);
  checkBlockMasks(oracle, checks);
  const batches = new Map<string, FlavaBatch>();
  for (const wanted of oracle.cases.pretraining as Cases[]) {
    const batch = batchOf(oracle, wanted);
    batches.set(wanted.name, batch);
    const { total, ...parts } = flavaLosses(model, batch);
    const names = Object.keys(wanted.losses);
    checks.exact(
      `${wanted.name}: which losses`,
      names.length,
      String(Object.keys(parts).sort()) === String(names.sort()) ? [] : [`${Object.keys(parts)}`],
    );
    for (const [name, loss] of Object.entries(parts))
      checks.close(`${wanted.name}: ${name}`, await loss.data(), [wanted.losses[name]], FLOAT);
    checks.close(`${wanted.name}: total`, await total.data(), [wanted.total], FLOAT);
    tf.dispose([total, ...Object.values(parts)]);
  }
  const loss = (batch: FlavaBatch) => (one: Flava) => tf.tidy(() => flavaLosses(one, batch).total);
  for (const wanted of oracle.cases.gradients as Cases[])
    await checkGradients(oracle, checks, model as never, loss(batches.get(wanted.batch)!) as never, wanted);
  for (const wanted of oracle.cases.lora as Cases[]) {
    const batch = batches.get(wanted.batch)!;
    const matching = (one: Flava) =>
      tf.tidy(() => one.matching(one.encodePairs(batch.pixels!, batch.masked!, batch.mask, undefined, batch.hidden)));
    await checkLora(oracle, checks, model as never, { logits: matching, loss: loss(batch) } as never, wanted);
  }
  tf.dispose([...batches.values()].map((batch) => Object.values(batch).filter(Boolean)) as tf.Tensor[][]);
  model.dispose();
  return checks.rows;
}
