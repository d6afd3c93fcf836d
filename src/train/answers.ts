/** How well a vision-language model answers questions whose answers are known. */
import { type Random, random, shuffle } from "../data/random";
import { breathe } from "../engine/interrupt";
import { take } from "../engine/read";
import { tf } from "../engine/tf";
import { answerStates, type Exchange, type Pupil } from "./conversations";

/** Questions at a time. */
const BATCH = 50;

/** Log-probability of each token of each exchange's answer, and whether it is the likeliest. Exchanges stand alone. */
async function* answerTokens(pupil: Pupil, exchanges: readonly Exchange[]) {
  const { teacher, language } = pupil;
  for (let i = 0; i < exchanges.length; i += BATCH) {
    const part = exchanges.slice(i, i + BATCH);
    const batch = teacher.batch(part.map((one) => [one]));
    const [best, chosen] = tf.tidy(() => {
      const states = answerStates(pupil, batch);
      const logits = language.logits(states.expandDims(0) as tf.Tensor3D).squeeze([0]) as tf.Tensor2D; // [A, V]
      const picked = logits.mul(tf.oneHot(batch.labels, logits.shape[1])).sum(1);
      return [logits.argMax(1), picked.sub(logits.logSumExp(1))];
    });
    const [tokens, scores] = [await take(best), await take(chosen)];
    const labels = await batch.labels.data();
    tf.dispose([batch.pixels, batch.ids, batch.places, batch.labels]);
    let at = 0;
    for (const exchange of part) {
      const count = teacher.tokensOf([{ ...exchange, picture: undefined }]).answers.filter(Boolean).length;
      const range = Array.from({ length: count }, (_, j) => at + j);
      at += count;
      yield { likeliest: range.every((j) => tokens[j] === labels[j]), meanLog: range.reduce((sum, j) => sum + scores[j], 0) / count };
    }
    await breathe();
  }
}

export type Accuracy = {
  /** Share of answers that greedy decoding gives to the letter. */
  accuracy: number;
  /** Share of the most frequent answer: what always saying the same would reach. */
  majority: number;
  count: number;
};

/** Greedy answers against the right ones: every token of a right answer is the likeliest. */
export async function accuracy(pupil: Pupil, exchanges: readonly Exchange[]): Promise<Accuracy> {
  let right = 0;
  for await (const { likeliest } of answerTokens(pupil, exchanges)) right += likeliest ? 1 : 0;
  const counts = new Map<string, number>();
  for (const { answer } of exchanges) counts.set(answer, (counts.get(answer) ?? 0) + 1);
  const count = exchanges.length;
  return { accuracy: right / count, majority: Math.max(...counts.values()) / count, count };
}

/** How often the right answer is likelier, token by token, than `others` answers to the same question about other pictures. Chance: 1 / (others + 1). */
export async function choice(pupil: Pupil, exchanges: readonly Exchange[], others = 9, seed = 0): Promise<number> {
  const next: Random = random(seed);
  const all = exchanges.flatMap((one, i) => {
    const wrong = shuffle(
      exchanges.filter((_, j) => j !== i),
      next,
    ).slice(0, others);
    return [one, ...wrong.map(({ answer }) => ({ ...one, answer }))];
  });
  const scores: number[] = [];
  for await (const { meanLog } of answerTokens(pupil, all)) scores.push(meanLog);
  const right = exchanges.filter((_, i) => {
    const [own, ...rest] = scores.slice(i * (others + 1), (i + 1) * (others + 1));
    return rest.every((score) => score < own);
  });
  return right.length / exchanges.length;
}
