/** BLIP as a person meets it: captions and answers through a pipeline, embeddings and matching, and what it refuses. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { pipeline } from "vitrine/chat";
import { embedImages, embedTexts } from "vitrine/embed";
import { tf } from "vitrine/engine";
import { readPicture } from "vitrine/image/picture";
import { answerAttention, answerLogits } from "vitrine/inside/answer";
import { type BlipRetrieval, type BlipTalker, load } from "vitrine/models";
import { blipConfig } from "vitrine/models/blip";
import { openOracle } from "../parity/check";
import { ORACLE } from "../support/clip";
import { expectClose, keepsTensorCount, messageOf } from "../support/close";

const picture = () => readPicture(join(ORACLE, "images", "rgb_wide.png"));

test("a pipeline captions a picture, from a beginning or from none, as transformers' generate() does", async () => {
  const oracle = openOracle(ORACLE, "blip_caption");
  const pipe = await pipeline(join(oracle.folder, "model"));
  await keepsTensorCount(async () => {
    for (const wanted of oracle.cases.generation) {
      const start = wanted.prompt ? pipe.model.tokenizer.encode(wanted.prompt, { addSpecialTokens: false }).length + 1 : 1;
      const count = wanted.sequence.length - start;
      const response = await pipe(
        { text: wanted.prompt ?? "", images: [await picture()] },
        { genConfig: { maxNewTokens: count, minNewTokens: count } },
      );
      assert.deepEqual(response.tokenIds, wanted.sequence.slice(start));
    }
  });
  pipe.close();
});

test("answers of BLIP: cached as uncached, and where they look is a picture's patches", async () => {
  const model = await load<BlipTalker>(join(ORACLE, "blip_caption", "model"));
  const prompt = model.prompt("a photo of", [await picture()]);
  const answer = [11, 12, 13];
  const [whole, rows] = [answerLogits(model, { prompt, answer }), await answerAttention(model, { prompt, answer })];
  const { language } = model;
  const [embeddings, cache] = [model.embedPrompt(prompt), language.makeCache(8)];
  const encoded = { states: language.encoder!.encode({ embeddings }) };
  const steps: number[] = [];
  for (const ids of [prompt.start!, [11], [12]]) {
    const x = tf.tidy(() => {
      const hidden = language.forward({ embeddings: language.embed(tf.tensor2d([ids], undefined, "int32")), encoded, cache });
      return language.logits(hidden.slice([0, ids.length - 1, 0], [1, 1, -1])).flatten();
    });
    steps.push(...x.dataSync());
    x.dispose();
  }
  expectClose(steps, whole.dataSync(), 2e-4);
  assert.deepEqual([rows.length, rows[0][0].length, rows[0][0][0].length], [language.layers, 3, prompt.ids.length]);
  assert.equal(prompt.images[0].places.length, prompt.ids.length);
  assert.equal(prompt.images[0].places[0], undefined, "the class token shows nothing of its own");
  expectClose([rows[1][0][2].reduce((sum, x) => sum + x, 0)], [1], 1e-5);
  tf.dispose([whole, embeddings, encoded.states]);
  cache.dispose();
  model.dispose();
});

test("embedImages() and embedTexts() of BLIP give the cosines of its retrieval", async () => {
  const oracle = openOracle(ORACLE, "blip_itm");
  const model = await load<BlipRetrieval>(join(oracle.folder, "model"));
  const [forward] = oracle.cases.forward;
  const images = await embedImages(
    model,
    forward.images.map((name: string) => join(oracle.root, name)),
  );
  const texts = await embedTexts(model, forward.texts);
  const cosines = tf.tidy(() =>
    tf.matMul(tf.tensor2d(images.values, [3, images.width]), tf.tensor2d(texts.values, [3, texts.width]), false, true),
  );
  expectClose(cosines.dataSync(), oracle.array(forward.itc_similarity).values, 2e-4);
  cosines.dispose();
  model.dispose();
});

test("BLIP says what it does not take", async () => {
  const model = await load<BlipTalker>(join(ORACLE, "blip_vqa", "model"));
  const one = await picture();
  await messageOf(() => model.prompt("What?", []), "BLIP reads one picture, before the text: 0 came");
  await messageOf(() => model.prompt("<image>What?<image>", [one, one]), "BLIP reads one picture, before the text: 2 came");
  model.dispose();
  const text = { hidden_size: 24, num_attention_heads: 4, encoder_hidden_size: 32 };
  const vision = { hidden_size: 32, num_attention_heads: 2 };
  assert.throws(
    () => blipConfig({ text_config: text, vision_config: { ...vision, hidden_size: 40 } }),
    /encoder_hidden_size is 32, the picture's states have 40/,
  );
  assert.throws(
    () => blipConfig({ text_config: text, vision_config: vision }, true),
    /encoder_hidden_size is 32, the question's states have 24/,
  );
  assert.throws(() => blipConfig({ text_config: { ...text, is_decoder: false }, vision_config: vision }), /is_decoder is false/);
});
