/** What a BLIP-2 of the first stage can do with pictures and captions that it has never seen, each number beside what guessing gives. */
import type { ImageText } from "../data/index";
import { mixSeeds, random } from "../data/random";
import { take } from "../engine/read";
import { tf } from "../engine/tf";
import type { Blip2 } from "../models/blip2-load";
import { captionPictures } from "../models/blip2-caption";
import { OBJECTIVES } from "../models/qformer-masks";
import { picturesSeen, type States, statesOf } from "./stage-one";

const BATCH = 64;
/** The pictures, or texts, that the contrastive head finds nearest, which the matching head then sorts. */
const RERANKED = 16;

/** rows: of the held-out split; training: whose captions give the frequencies of words. */
export async function measureStageOne(model: Blip2, rows: ImageText[], training: ImageText[]): Promise<object> {
  const pictures = await Promise.all(rows.map((row) => row.image()));
  const states = await picturesSeen(model, pictures, rows.length);
  const captions = rows.map((row) => row.caption);
  const cosines = await cosinesOf(model, states, captions);
  return {
    retrieval: await retrieval(model, states, captions, cosines),
    matching: await matching(model, states, captions, cosines),
    generation: await generation(model, states, captions, training),
  };
}

const rounded = (x: number): number => Number(x.toFixed(4));
const order = (scores: ArrayLike<number>): number[] => Array.from(scores, (_, i) => i).sort((a, b) => scores[b] - scores[a]);
const batches = <T>(items: readonly T[]): T[][] =>
  Array.from({ length: Math.ceil(items.length / BATCH) }, (_, i) => items.slice(i * BATCH, (i + 1) * BATCH));

/** The contrastive head's similarity of every picture (rows) with every text. */
async function cosinesOf(model: Blip2, states: States, captions: string[]): Promise<number[][]> {
  const texts = tf.tidy(() => model.encodeWords(model.read(captions)));
  const lines: number[][] = [];
  for (const batch of batches(captions.map((_, i) => i))) {
    const flat = await take(tf.tidy(() => model.similarities(model.encodePicture(statesOf(states, batch)), texts)));
    batch.forEach((_, i) => lines.push(Array.from(flat.subarray(i * captions.length, (i + 1) * captions.length))));
  }
  texts.dispose();
  return lines;
}

/** The matching head's log-odds of pairs of a picture and a text. */
async function odds(model: Blip2, states: States, captions: string[], pairs: [picture: number, text: number][]): Promise<number[]> {
  const scores: number[] = [];
  for (const batch of batches(pairs)) {
    const logits = tf.tidy(() => {
      const seen = statesOf(
        states,
        batch.map(([picture]) => picture),
      );
      const [no, yes] = tf.split(model.matchingLogits(seen, model.read(batch.map(([, text]) => captions[text]))), 2, 1);
      return yes.sub(no).flatten();
    });
    scores.push(...(await take(logits)));
  }
  return scores;
}

async function retrieval(model: Blip2, states: States, captions: string[], cosines: number[][]): Promise<object[]> {
  const results: object[] = [];
  for (const direction of ["text → image", "image → text"] as const) {
    const byText = direction === "text → image";
    const lines = byText ? captions.map((_, text) => cosines.map((line) => line[text])) : cosines;
    const orders = lines.map(order);
    const pairs = orders.flatMap((found, i) => found.slice(0, RERANKED).map((j): [number, number] => (byText ? [j, i] : [i, j])));
    const scores = await odds(model, states, captions, pairs);
    const sorted = orders.map((found, i) => order(scores.slice(i * RERANKED, (i + 1) * RERANKED)).map((place) => found[place]));
    const within = (lists: number[][], k: number) =>
      rounded(lists.filter((found, i) => found.slice(0, k).includes(i)).length / lists.length);
    const recalls = (lists: number[][]) => ({ "R@1": within(lists, 1), "R@5": within(lists, 5), "R@10": within(lists, 10) });
    results.push({
      direction,
      contrastive: recalls(orders),
      reranked: recalls(sorted),
      random: rounded(1 / captions.length),
      count: captions.length,
    });
  }
  return results;
}

/**
 * How the matching head sorts true pairs, pairs with a text drawn at random, and with the nearest wrong text. It was trained on two wrong pairs for each
 * true one, so a pair counts as true here where its odds are above 1 : 2.
 */
async function matching(model: Blip2, states: States, captions: string[], cosines: number[][]): Promise<object> {
  const next = random(mixSeeds(0, 3));
  const count = captions.length;
  const scoresOf = (text: (i: number) => number) =>
    odds(
      model,
      states,
      captions,
      captions.map((_, i) => [i, text(i)]),
    );
  const right = await scoresOf((i) => i);
  const wrong = {
    random: await scoresOf((i) => (i + 1 + Math.floor(next() * (count - 1))) % count),
    nearest: await scoresOf((i) => order(cosines[i]).find((j) => j !== i) as number),
  };
  const threshold = Math.log(1 / 2);
  const share = (scores: number[], test: (score: number) => boolean) => scores.filter(test).length / count;
  const found = share(right, (score) => score > threshold);
  const against = (scores: number[]) => ({
    accuracy: rounded((found + share(scores, (score) => score <= threshold)) / 2),
    // Of a true pair and a wrong one, whichever, how often the true one scores higher (the area under the ROC curve).
    ranking: rounded(right.reduce((sum, a) => sum + share(scores, (b) => b < a), 0) / count),
  });
  return { trueFound: rounded(found), random: against(wrong.random), nearest: against(wrong.nearest), chance: 0.5 };
}

/** Nats a token of the plain names, under each mask, with the right picture and another; a word's frequency alone, and a blind guess. */
async function generation(model: Blip2, states: States, captions: string[], training: ImageText[]): Promise<object> {
  const loss = async (mask: (typeof OBJECTIVES)[number], moved = 0) => {
    let [total, tokens] = [0, 0];
    for (const batch of batches(captions.map((_, i) => i))) {
      const text = model.read(
        batch.map((i) => captions[i]),
        "[DEC]",
      );
      const seen = statesOf(
        states,
        batch.map((i) => (i + moved) % captions.length),
      );
      const [value] = await take(tf.tidy(() => model.loss.generation(seen, text, { mask })));
      const [count] = await take(tf.tidy(() => text.padding.slice([0, 1], [-1, -1]).sum()));
      total += value * count;
      tokens += count;
      tf.dispose([seen, text.ids, text.padding]);
    }
    return rounded(total / tokens);
  };
  const names = await captionPictures(
    model,
    statesOf(
      states,
      captions.map((_, i) => i),
    ),
  );
  return {
    loss: Object.fromEntries(await Promise.all(OBJECTIVES.map(async (mask) => [mask, await loss(mask)]))),
    otherPicture: await loss("generation", 1),
    wordFrequencies: rounded(frequencyLoss(model, captions, training)),
    chance: rounded(Math.log(model.config.qformer_config.vocab_size)),
    exact: rounded(
      names.filter((name, i) => name === model.tokenizer.decode(model.tokenizer.encode(captions[i]))).length / captions.length,
    ),
    sharesAWord: rounded(names.filter((name, i) => sharesWord(name, captions[i])).length / captions.length),
    examples: captions.slice(0, 8).map((caption, i) => ({ caption, said: names[i] })),
  };
}

const wordsOf = (text: string): string[] => text.toLowerCase().match(/\p{L}{3,}/gu) ?? [];
const sharesWord = (a: string, b: string): boolean => wordsOf(a).some((word) => wordsOf(b).includes(word));

/** The loss of saying each token by its frequency in the training captions (one added to each count). */
function frequencyLoss({ tokenizer, config }: Blip2, captions: string[], training: ImageText[]): number {
  const V = config.qformer_config.vocab_size;
  const counts = new Float64Array(V).fill(1);
  for (const { caption } of training) for (const id of tokenizer.encode(caption).slice(1)) counts[id]++;
  const total = counts.reduce((a, b) => a + b, 0);
  const losses = captions.flatMap((caption) => tokenizer.encode(caption).slice(1)).map((id) => -Math.log(counts[id] / total));
  return losses.reduce((a, b) => a + b, 0) / losses.length;
}
