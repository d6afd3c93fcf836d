/** Thoughts before an answer: whole runs against the oracle's two-phase answers, a budget that is kept, sessions that go on without thoughts. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { type Piece, pipeline } from "vitrine/chat";
import { withoutThoughts } from "vitrine/chat/thinking";
import { engine } from "vitrine/engine";
import type { Picture } from "vitrine/image/picture";
import { load } from "vitrine/models";
import type { VisionLanguageModel } from "vitrine/models/loaded";
import { OVIS_EARLY_STOP, THINK_END } from "vitrine/text/ovis-chat";
import { openOracle } from "../parity/check";
import { ORACLE } from "../support/clip";
import { keepsTensorCount, messageOf } from "../support/close";
import { counting, oraclePicture } from "../support/talk";

const oracle = openOracle(ORACLE, "ovis2_5");
const QUESTION = "What is in this image?";

let model: VisionLanguageModel;
let wide: Picture;
let gray: Picture;
let [end, earlyStop]: [number, number[]] = [0, []];
before(async () => {
  await engine();
  model = await load<VisionLanguageModel>(join(oracle.folder, "model"));
  [wide, gray] = [await oraclePicture("rgb_wide.png"), await oraclePicture("gray.png")];
  end = model.tokenizer.idOf(THINK_END)!;
  earlyStop = model.tokenizer.encode(OVIS_EARLY_STOP, { addSpecialTokens: false });
});
after(() => model.dispose());

/** The oracle's second case ends inside the sentence that ends thoughts: its ids are compared in test/parity/ovis25.ts, a chat refuses to ask so. */
const [whole, cut] = oracle.cases.thinking;
test("an answer with a budget for thoughts is the oracle's, token by token; the thoughts stand apart", async () => {
  const { budget, max_new_tokens, new_ids, text } = whole;
  const talk = await pipeline(model);
  const genConfig = { enableThinking: true, thinkingBudget: budget, maxNewTokens: max_new_tokens };
  await keepsTensorCount(async () => {
    assert.equal((await talk.prompt([QUESTION, wide], { genConfig })).text, text);
    const response = await talk([QUESTION, wide], { genConfig });
    assert.deepEqual(response.tokenIds, new_ids);
    const [thoughts, answer] = [new_ids.slice(0, new_ids.indexOf(end) + 1), new_ids.slice(new_ids.indexOf(end) + 1)];
    assert.equal(response.thoughts, model.tokenizer.decode(thoughts).replace(THINK_END, "").trim());
    assert.equal(response.text, model.tokenizer.decode(answer).trim());
    assert.match(response.thoughts as string, /based on the thinking directly now\.$/);
  });
});

test("without enableThinking the thoughts are written down as empty, as the original does", async () => {
  const talk = await pipeline(model);
  const { text } = await talk.prompt([QUESTION, wide]);
  assert.equal(text, oracle.cases.chat[0].rendered_with_generation_prompt);
  assert.equal((await talk.prompt([QUESTION, wide], { genConfig: { enableThinking: false } })).text, text);
  const told = await pipeline(model, { variables: { enable_thinking: true } });
  assert.equal((await told.prompt([QUESTION, wide])).text, oracle.cases.chat[1].rendered_with_generation_prompt);
  assert.equal(
    (await told.prompt([QUESTION, wide], { genConfig: { enableThinking: false } })).text,
    text,
    "the question's own word counts",
  );
  const { thoughts } = await talk([QUESTION, wide], { genConfig: { maxNewTokens: 3, ignoreEos: true } });
  assert.equal(thoughts, undefined);
});

test("the budget is kept, greedily and by lot, also where the answer streams", async () => {
  const talk = await pipeline(model);
  for (const budget of [1, 4, 9])
    for (const doSample of [false, true]) {
      const genConfig = { enableThinking: true, thinkingBudget: budget, maxNewTokens: 80, ignoreEos: true, doSample, topK: 0, seed: 3 };
      const pieces: Piece[] = [];
      const stream = talk.stream([QUESTION, wide], { genConfig });
      let next = await stream.next();
      for (; !next.done; next = await stream.next()) pieces.push(next.value);
      const response = next.value;
      assert.deepEqual(
        pieces.map(({ tokenId }) => tokenId),
        response.tokenIds,
      );
      const at = response.tokenIds.indexOf(end);
      const natural = at >= 0 && at < budget;
      if (!natural) assert.deepEqual(response.tokenIds.slice(budget, budget + earlyStop.length), earlyStop, `budget ${budget}`);
      assert.equal(pieces.filter(({ thought }) => thought).length, at + 1);
      assert.ok(pieces.slice(0, at + 1).every(({ thought }) => thought));
      assert.equal(response.tokenIds.length, 80);
      const said = (some: Piece[]) =>
        some
          .map(({ text }) => text)
          .join("")
          .replace(THINK_END, "")
          .trim();
      assert.equal(said(pieces.slice(0, at + 1)), response.thoughts);
      assert.equal(said(pieces.slice(at + 1)), response.text);
    }
});

test("a conversation goes on from answers without their thoughts; what was computed before them is used again", async () => {
  const { model: counted, given } = counting(model);
  const talk = await pipeline(counted);
  const genConfig = { enableThinking: true, thinkingBudget: 4, maxNewTokens: 90, ignoreEos: true };
  const session = await talk.chat([QUESTION, wide], { genConfig });
  const first = session.response!;
  assert.deepEqual(session.messages[1].content, [{ type: "text", text: first.text }]);
  assert.equal(session.history[0][1], first.text);
  given.length = 0;
  await talk.chat(["And this?", gray], { session });
  const second = session.response!;
  assert.equal(second.cachedTokenLen, first.inputTokenLen, "all of the first prompt; the thoughts behind it are gone");
  assert.equal(given[0], second.inputTokenLen - first.inputTokenLen, "tokens that were computed");
  const fresh = await talk(
    session.messages.slice(0, -1).map(({ role, content }) => ({
      role,
      content: content.map((part) => (part.type === "text" ? part : { type: "image" as const, image: part.picture })),
    })),
    { genConfig },
  );
  assert.deepEqual([second.tokenIds, second.text, second.thoughts], [fresh.tokenIds, fresh.text, fresh.thoughts]);
  assert.ok(second.thoughts);
  talk.close();
});

test("withoutThoughts() takes the tags off, and leaves an answer whose thoughts did not end as it is", () => {
  const ids = (text: string) => model.tokenizer.encode(text, { addSpecialTokens: false });
  const split = (text: string) => withoutThoughts(model, { ids: ids(text), text: model.tokenizer.decode(ids(text)) }, { end });
  assert.deepEqual(split("<think>\na cat?\n</think>\n\nA cat."), { thoughts: "a cat?", text: "A cat." });
  assert.deepEqual(split("a cat?</think>A cat."), { thoughts: "a cat?", text: "A cat." });
  assert.deepEqual(split("</think>A </think>cat."), { thoughts: "", text: "A </think>cat." });
  assert.deepEqual(split("a cat?"), { text: "a cat?" });
});

test("thinking options that do not go together, or not with the model, are refused by name", async () => {
  const talk = await pipeline(model);
  const ask = (genConfig: object) => () => talk("x", { genConfig });
  await messageOf(ask({ thinkingBudget: 5 }), "thinkingBudget goes with enableThinking: true");
  await messageOf(ask({ enableThinking: "yes" }), 'enableThinking is "yes", expected true or false');
  await messageOf(ask({ enableThinking: true, thinkingBudget: 0 }), "thinkingBudget is 0, expected a whole number of tokens from 1");
  await messageOf(ask({ enableThinking: true, thinkingBudget: 5, numBeams: 2 }), "thinkingBudget goes with one beam");
  await messageOf(
    ask({ enableThinking: true, thinkingBudget: cut.budget, maxNewTokens: cut.max_new_tokens }),
    `thinkingBudget is ${cut.budget}; with the ${earlyStop.length} tokens that end thoughts nothing of maxNewTokens, ${cut.max_new_tokens}, is left`,
    `more than ${cut.budget + earlyStop.length}`,
  );
  const llava = await load<VisionLanguageModel>(join(ORACLE, "llava", "model"));
  await messageOf(
    async () => (await pipeline(llava))("x", { genConfig: { enableThinking: true } }),
    "llava does not think: its tokenizer has no </think>",
  );
  llava.dispose();
});

for (const family of ["ovis2_5", "llava_hd"])
  test(`negative ids of pictures neither change nor break the repetition penalty (${family})`, async () => {
    const one = await load<VisionLanguageModel>(join(ORACLE, family, "model"));
    const talk = await pipeline(one);
    const { ids } = await talk.prompt([QUESTION, wide]);
    assert.ok(ids.some((id) => id < 0));
    const genConfig = { maxNewTokens: 12, ignoreEos: true, repetitionPenalty: 1.7 };
    const response = await talk([QUESTION, wide], { genConfig });
    const plain = await talk([QUESTION, wide], { genConfig: { ...genConfig, repetitionPenalty: 1 } });
    assert.notDeepEqual(response.tokenIds, plain.tokenIds, "the penalty does something here");
    const known = new Set(ids);
    const again = (list: number[]) => list.filter((id, i) => known.has(id) || list.indexOf(id) < i).length;
    assert.ok(again(response.tokenIds) < again(plain.tokenIds), `${response.tokenIds} against ${plain.tokenIds}`);
    assert.ok(response.tokenIds.every((id) => id >= 0 && id < one.language.vocabSize));
    talk.close();
    one.dispose();
  });
