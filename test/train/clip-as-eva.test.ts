import assert from "node:assert/strict";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { load } from "vitrine/models";
import { clipStates } from "vitrine/models/clip";
import { evaVit, evaVitConfig, evaVitSpec } from "vitrine/models/eva-vit";
import { layerNormOp } from "vitrine/nn/ops";
import { random } from "vitrine/data/random";
import { mapLeaves, type Params } from "vitrine/nn/spec";
import { clipAsEva } from "vitrine/train/clip-as-eva";
import { farthest } from "../support/close";
import { MODEL } from "../support/clip";

before(() => engine().then(() => {}));

test("clipAsEva() gives CLIP's states in BLIP-2's layout, the norms before the first block and behind the last included", async () => {
  for (const folder of ["emoji-clip", MODEL]) {
    const clip = await load(folder);
    const c = clip.config.vision_config;
    const tower = clipAsEva(clip.folder);
    const config = evaVitConfig(tower.config);
    const spec = evaVitSpec(config);
    const names = new Set(Object.keys(tower.weights));
    const params = mapLeaves(spec, (leaf) => {
      assert.ok(names.delete(leaf.name), leaf.name);
      return tf.tensor(tower.weights[leaf.name], leaf.view ?? leaf.shape);
    }) as Params<typeof spec>;
    assert.deepEqual([...names], []);
    const draw = random(5);
    const pixels = tf.tensor4d(
      Float32Array.from({ length: 2 * c.image_size ** 2 * 3 }, () => 4 * draw() - 2),
      [2, c.image_size, c.image_size, 3],
    );
    const [before] = clipStates(clip.params.vision as never, c, pixels, [-1]);
    const { weight, bias } = clip.params.vision.lnPost;
    const want = layerNormOp(before, weight, bias, c.layer_norm_eps).dataSync();
    const off = farthest(evaVit(params, config, pixels).dataSync(), want);
    const scale = Math.max(...Array.from(want, Math.abs));
    assert.ok(off < 2e-3 * scale, `off by ${off} at scale ${scale}`);
    clip.dispose();
  }
});
