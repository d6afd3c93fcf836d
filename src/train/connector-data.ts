/** The pictures of the connector study: scenes of emoji with questions, as a frozen tower sees them. */
import { dataset } from "../data/index";
import type { Split } from "../data/kin";
import { type Drawn, drawn, scatter, type Scene, single } from "../data/questions";
import { mixSeeds, type Random, random } from "../data/random";
import { pixelBatch } from "../embed";
import { breathe } from "../engine/interrupt";
import { take } from "../engine/read";
import { tf } from "../engine/tf";
import type { Picture } from "../image/picture";
import { clipStates } from "../models/clip";
import { type Clip, load } from "../models/index";
import { type Jitter, jitter } from "./augment";

/** Scenes, and what the frozen tower makes of each picture: side x side patches of `width` numbers. */
export type Seen = { scenes: Scene[]; patches: Map<Picture, Float32Array>; side: number; width: number };
export type StudyData = { training: Seen; validation: Seen; test: Seen };

export type StudyDataOptions = {
  /** Pictures of each emoji of the training split alone, and pictures with one to four at random. */
  singles: number;
  scattered: number;
  /** Pictures with one to four at random for the validation and the test split; of one emoji there is one each. */
  held: number;
  /** Changes of the training pictures. */
  augment: Jitter;
  seed: number;
};

const CELLS = { rows: 2, columns: 2, side: 32 };
const BATCH = 64;

/** Draws the scenes and looks at all of them once, with emoji-clip's tower. */
export async function studyData({ singles, scattered, held, augment, seed }: StudyDataOptions): Promise<StudyData> {
  const clip = await load<Clip>("emoji-clip");
  const seen = async (split: Split, copies: number, several: number, change?: Jitter): Promise<Seen> => {
    const rows = await dataset("emoji", { split });
    const emoji = await Promise.all(rows.map(async (row) => drawn(row, await row.image())));
    const next = random(mixSeeds(seed, split.length));
    return look(clip, scenesOf(emoji, copies, several, next, change));
  };
  const data = {
    training: await seen("train", singles, scattered, augment),
    validation: await seen("validation", 1, held),
    test: await seen("test", 1, held),
  };
  clip.dispose();
  return data;
}

function scenesOf(emoji: Drawn[], copies: number, several: number, next: Random, change?: Jitter): Scene[] {
  const moved = (one: Drawn) => (change ? { ...one, picture: jitter(one.picture, next, change) } : one);
  const any = () => moved(emoji[Math.floor(next() * emoji.length)]);
  const alone = Array.from({ length: copies }, () => emoji.map((one) => single(moved(one)))).flat();
  const together = Array.from({ length: several }, () => scatter(Array.from({ length: 1 + Math.floor(next() * 4) }, any), CELLS, next));
  return [...alone, ...together];
}

/** The patches behind CLIP's last block but one, as LLaVA reads them, each with mean 0 and deviation 1. pixels: [B, S, S, 3] -> [B, patches, width] */
export function clipPatches({ params, config }: Clip, pixels: tf.Tensor4D): tf.Tensor3D {
  const [states] = clipStates(params.vision, config.vision_config, pixels, [-2]);
  const { mean, variance } = tf.moments(states, -1, true);
  return states.sub(mean).div(variance.add(1e-6).sqrt()).slice([0, 1, 0], [-1, -1, -1]) as tf.Tensor3D;
}

async function look(clip: Clip, scenes: Scene[]): Promise<Seen> {
  const [side] = clip.grid;
  const width = clip.config.vision_config.hidden_size;
  const size = side * side * width;
  const patches = new Map<Picture, Float32Array>();
  for (let i = 0; i < scenes.length; i += BATCH) {
    const part = scenes.slice(i, i + BATCH).map(({ picture }) => picture);
    const values = await take(tf.tidy(() => clipPatches(clip, pixelBatch(clip, part))));
    part.forEach((picture, j) => patches.set(picture, values.slice(j * size, (j + 1) * size)));
    await breathe();
  }
  return { scenes, patches, side, width };
}
