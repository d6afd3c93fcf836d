/** Conversations about emoji as training makes them, and what is measured of a model that has learned from them. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { COLOURS } from "../data/colours";
import { dataset } from "../data/index";
import type { Split } from "../data/kin";
import {
  compose,
  type Drawn,
  drawn,
  NOTHING,
  NUMBERS,
  QUESTIONS,
  scatter,
  type Scene,
  single,
  type Topic,
  turnsOf,
} from "../data/questions";
import { mixSeeds, random, shuffle } from "../data/random";
import { writeFileAtomic } from "../files/atomic";
import { jsonText } from "../files/json";
import { trainByteBpe } from "../text/byte-bpe";
import { accuracy, choice } from "./answers";
import { type Jitter, jitter } from "./augment";
import type { Conversation, ConversationBatch, Exchange, Pupil, Teacher } from "./conversations";

/** What of a recipe decides the conversations. */
export type TalkRecipe = {
  batchSize: number;
  /** Shares of conversations about one emoji, about up to four in one picture, and about two pictures. */
  mix: { single: number; scattered: number; pair: number };
  /** Every so many batches one is of large pictures, cut into tiles, a quarter as many conversations. */
  tiledEvery: number;
  augment: Jitter;
  /** What is asked about; default: everything. */
  topics?: readonly Topic[];
  seed: number;
};

/** Four cells in a picture of one tile of `side` pixels. */
const cellsOf = (side: number) => ({ rows: 2, columns: 2, side: side / 2 });
/** Pictures of several tiles with an emoji in each. */
const largeOf = (side: number) => [
  { rows: 2, columns: 2, side },
  { rows: 1, columns: 2, side },
  { rows: 2, columns: 1, side },
];

/** Every emoji of a split with its picture of `side` pixels and its colour. */
export async function drawings(split: Split, skinTones: boolean, side: number): Promise<Drawn[]> {
  const rows = await dataset("emoji", { split, skinTones, size: side });
  return Promise.all(rows.map(async (row) => drawn(row, await row.image())));
}

/** Every text that conversations about some emoji hold, for a vocabulary. */
export function textsOf(emoji: readonly Drawn[], side: number): string[] {
  const answers = [...COLOURS, ...NUMBERS, NOTHING];
  const places = turnsOf(compose([undefined, undefined, undefined, undefined], cellsOf(side))).map(({ question }) => question);
  return emoji.flatMap(({ caption, group }) => [caption, group, ...answers, ...places, ...Object.values(QUESTIONS).flat()]);
}

/** Endless batches of conversations about emoji of `side` pixels. */
export function* talkBatches(
  teacher: Teacher,
  emoji: Drawn[],
  recipe: TalkRecipe,
  side: number,
): Generator<ConversationBatch, void, undefined> {
  const [cells, large] = [cellsOf(side), largeOf(side)];
  const next = random(mixSeeds(recipe.seed, 1));
  const one = () => emoji[Math.floor(next() * emoji.length)];
  const moved = () => {
    const it = one();
    return { ...it, picture: jitter(it.picture, next, recipe.augment) };
  };
  const several = (most: number) => Array.from({ length: Math.floor(next() * most) + 1 }, moved);
  const scattered = () => scatter(several(4), cells, next);
  const small = () => (next() < recipe.mix.single / (recipe.mix.single + recipe.mix.scattered) ? single(moved()) : scattered());
  const tiled = () => {
    const grid = large[Math.floor(next() * large.length)];
    return scatter(several(grid.rows * grid.columns), grid, next);
  };
  /** Up to so many of the questions about a scene, in random order, the picture with the first. */
  const talk = (scene: Scene, most: number): Conversation => {
    const turns = shuffle(
      turnsOf(scene, next).filter(({ topic }) => recipe.topics?.includes(topic) ?? true),
      next,
    ).slice(0, most);
    return turns.map(({ question, answer }, i) => ({ question, answer, picture: i === 0 ? scene.picture : undefined }));
  };
  for (let step = 0; ; step++) {
    const cut = step % recipe.tiledEvery === recipe.tiledEvery - 1;
    const count = cut ? recipe.batchSize / 4 : recipe.batchSize;
    yield teacher.batch(
      Array.from({ length: count }, () => {
        if (cut) return talk(tiled(), 3);
        return next() < recipe.mix.pair ? [...talk(small(), 2), ...talk(small(), 2)] : talk(small(), 4);
      }),
    );
  }
}

/** The topic's questions about scenes, each alone and asked the first way. */
export const asked = (scenes: Scene[], topic: Topic): Exchange[] =>
  scenes.flatMap((scene) =>
    turnsOf(scene)
      .filter((turn) => turn.topic === topic)
      .map(({ question, answer }) => ({ question, answer, picture: scene.picture })),
  );

export type MeasureOptions = {
  seed: number;
  /** Of a tile, in pixels. */
  side: number;
  /** Pictures of several emoji for each kind of question. */
  scenes?: number;
  /** Whether names are asked for; default true. */
  names?: boolean;
};

/** Greedy answers about pictures never seen in training, beside what always giving the most frequent answer would reach. */
export async function measureAnswers(
  pupil: Pupil,
  emoji: Drawn[],
  { seed, side, scenes = 400, names = true }: MeasureOptions,
): Promise<object> {
  const next = random(mixSeeds(seed, 2));
  const among = (count: number) => shuffle(emoji, next).slice(0, count);
  const many = (grid: ReturnType<typeof cellsOf>) =>
    Array.from({ length: scenes }, (_, i) => scatter(among((i % (grid.rows * grid.columns)) + 1), grid, next));
  const [alone, scattered, large] = [emoji.map(single), many(cellsOf(side)), many(largeOf(side)[0])];
  const captions = asked(alone, "caption");
  return {
    colour: await accuracy(pupil, asked(alone, "colour")),
    kind: await accuracy(pupil, asked(alone, "kind")),
    count: await accuracy(pupil, asked(scattered, "count")),
    place: await accuracy(pupil, asked(scattered, "place")),
    "count in tiles": await accuracy(pupil, asked(large, "count")),
    "place in tiles": await accuracy(pupil, asked(large, "place")),
    ...(names ? { caption: { "right of 10": await choice(pupil, captions), chance: 0.1, ...(await accuracy(pupil, captions)) } } : {}),
  };
}

/** Sizes of a small model that talks, by the keys of its config. */
export type TalkerSizes = {
  contextLength: number;
  imageSize: number;
  patchSize: number;
  maxPatches: number;
  vision: { hidden_size: number; intermediate_size: number; num_hidden_layers: number; num_attention_heads: number };
  text: TalkerSizes["vision"] & { num_key_value_heads: number };
};

export type IdOf = { [token: string]: number };

/**
 * The folder of a model that talks, before training: a vocabulary of what conversations about some emoji say, then what `rest` makes of it: weights, which it
 * writes itself, and files by their names, objects as JSON.
 */
export async function writeTalker<C>(
  folder: string,
  emoji: readonly Drawn[],
  {
    vocabSize: most,
    imageSize,
    special,
    settings,
  }: { vocabSize: number; imageSize: number; special: string[]; settings: { [key: string]: unknown } },
  rest: (vocabSize: number, idOf: IdOf) => Promise<{ config: C; files: { [name: string]: object | string } }>,
): Promise<C> {
  mkdirSync(folder, { recursive: true });
  const { vocabSize, idOf } = await trainByteBpe(textsOf(emoji, imageSize), { vocabSize: most, folder, special, settings });
  const { config, files } = await rest(vocabSize, idOf);
  for (const [name, value] of Object.entries(files))
    await writeFileAtomic(join(folder, name), typeof value === "string" ? value : jsonText(value));
  return config;
}
