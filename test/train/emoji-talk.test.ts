/** Conversations about emoji: what is asked, about how many pictures, and the same ones for the same seed. */
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { type Drawn, QUESTIONS, single, type Topic } from "vitrine/data/questions";
import type { Conversation, ConversationBatch, Teacher } from "vitrine/train/conversations";
import { asked, drawings, talkBatches, textsOf } from "vitrine/train/emoji-talk";

let emoji: Drawn[];
before(async () => {
  emoji = (await drawings("validation", false, 64)).slice(0, 40);
});

const recipe = { batchSize: 16, mix: { single: 0.5, scattered: 0.35, pair: 0.15 }, tiledEvery: 4, augment: {}, seed: 5 };

/** The conversations of some batches. */
function talks(batches: number, topics?: Topic[]): Conversation[][] {
  const out: Conversation[][] = [];
  const batch = (talks: Conversation[]) => {
    out.push(talks);
    return {} as ConversationBatch;
  };
  const teacher = { batch } as Teacher;
  const source = talkBatches(teacher, emoji, { ...recipe, topics }, 64);
  for (let i = 0; i < batches; i++) source.next();
  return out;
}
const topicOf = (question: string): string =>
  Object.entries(QUESTIONS).find(([, ways]) =>
    ways.some((way) => way === question || (way.includes("{place}") && question.startsWith(way.split("{")[0]))),
  )![0];

test("talkBatches() makes every fourth batch of large pictures, a quarter as many, and the same again for a seed", () => {
  const batches = talks(8);
  assert.deepEqual(
    batches.map(({ length }) => length),
    [16, 16, 16, 4, 16, 16, 16, 4],
  );
  for (const [i, batch] of batches.entries())
    for (const talk of batch) {
      assert.ok(talk[0].picture, "a picture comes with the first question");
      const pictures = talk.flatMap(({ picture }) => picture ?? []);
      assert.ok(pictures.length <= 2);
      assert.equal(
        pictures.some(({ width, height }) => Math.max(width, height) > 64),
        i % 4 === 3,
      );
    }
  assert.deepEqual(talks(8), batches);
});

test("talkBatches() asks about everything, or about the topics of its recipe alone", () => {
  const topics = (batches: Conversation[][]) => [...new Set(batches.flat(2).map(({ question }) => topicOf(question)))].sort();
  assert.deepEqual(topics(talks(8)), ["caption", "colour", "count", "kind", "place"]);
  assert.deepEqual(topics(talks(8, ["count", "kind", "colour", "place"])), ["colour", "count", "kind", "place"]);
});

test("textsOf() holds every answer of the conversations, and every word of their questions", () => {
  const texts = textsOf(emoji, 64);
  const words = new Set(texts.flatMap((text) => text.match(/\p{L}+/gu) ?? []));
  for (const { question, answer } of talks(8).flat(2)) {
    assert.deepEqual(
      question.match(/\p{L}+/gu)!.filter((word) => !words.has(word)),
      [],
    );
    assert.ok(texts.includes(answer), answer);
  }
  assert.equal(asked(emoji.map(single), "kind").length, emoji.length);
});
