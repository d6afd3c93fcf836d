/** An Ovis2 that learns to answer: its prompts with indicators, and what the language model reads of a batch. */
import { tf } from "../engine/tf";
import type { VisionLanguageModel } from "../models/loaded";
import { placeFeatures } from "../models/internvl";
import { type Ovis2Config, ovis2Indicators, type Ovis2Params, ovis2Tiles } from "../models/ovis2";
import { gatherRows } from "../nn/ops";
import { noTap, type Tap } from "../nn/tap";
import { type Frame, type Pupil, teacher } from "./conversations";

/** frame: what stands around questions and answers; pictures stand as the model's own prompts have them. tap: as `ovis2Tiles`'s. */
export function ovisPupil(model: VisionLanguageModel<Ovis2Params>, config: Ovis2Config, frame: Frame, tap: Tap = noTap): Pupil {
  const { image_token_id: atom, visual_indicator_token_ids: indicators, vision_config } = config;
  const side = vision_config.image_size;
  return {
    teacher: teacher(
      model.tokenizer,
      {
        shape: [side, side, 3],
        see(picture) {
          const { ids, images } = model.prompt(model.imageMark, [picture]);
          return { values: images[0].tiled.pixels, ids: ids.slice(images[0].start, images[0].end) };
        },
      },
      frame,
    ),
    language: model.language,
    embed: ({ ids, pixels }) =>
      tf.tidy(() => {
        const words = model.language.embed(ids);
        const visual = Array.from(ids.dataSync()).flatMap((id, place) => (id === atom || indicators.includes(id) ? [{ id, place }] : []));
        if (visual.length === 0) return words;
        const tiles = ovis2Tiles(model.params, config, pixels, tap); //                                     [tiles, n, D]
        const [count, n, D] = tiles.shape;
        const rows = tf.concat([tiles.reshape([count * n, D]), ovis2Indicators(model.params, config)]) as tf.Tensor2D;
        let next = 0;
        const order = visual.map(({ id }) => (id === atom ? next++ : count * n + indicators.indexOf(id)));
        if (next !== count * n) throw new RangeError(`the batch has ${next} picture tokens, its ${count} tiles give ${count * n}`);
        return placeFeatures(
          words,
          visual.map(({ place }) => place),
          gatherRows(rows, tf.tensor1d(order, "int32")) as tf.Tensor2D,
        );
      }),
  };
}
