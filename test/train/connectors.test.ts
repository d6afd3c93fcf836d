/** The connector study: what each connector computes, and that the committed curves are what training gives. */
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { studyData, type StudyData } from "vitrine/train/connector-data";
import { candidate, study, studyMeasured, studyRecipe, TOPICS } from "vitrine/train/connector-study";
import { CONNECTOR_NAMES, CONNECTORS } from "vitrine/train/connectors";
import { answerLoss } from "vitrine/train/conversations";
import { freshVariables } from "vitrine/train/fresh";
import { expectClose, keepsTensorCount } from "../support/close";

const SIZES = { side: 4, width: 6, hidden: 8 };
const measured = studyMeasured();
let data: StudyData;
before(async () => {
  await engine();
  data = await studyData({ ...studyRecipe.pictures, singles: 1, scattered: 40, held: 20 });
});

for (const name of CONNECTOR_NAMES)
  test(`${name}: as many tokens as it says, each of which sees the patches that it should`, async () => {
    const { spec, given, tokens, connect } = CONNECTORS[name](SIZES);
    const { params, variables } = freshVariables(spec, 0, given);
    const x = tf.randomNormal([2, 16, 6], 0, 1, "float32", 1) as tf.Tensor3D;
    const changed = tf.tidy(() => x.add(tf.oneHot(tf.tensor1d([5], "int32"), 16).reshape([1, 16, 1])) as tf.Tensor3D); // the patch of row 1, column 1
    await keepsTensorCount(() => {
      const [y, z] = [connect(params, x), connect(params, changed)];
      assert.deepEqual(y.shape, [2, tokens, 8]);
      const moved = tf.tidy(() => y.sub(z).abs().max(2).slice([0, 0], [1, tokens]).greater(1e-6).dataSync());
      const wanted = { linear: [5], MLP: [5], "shuffle + MLP": [0], "visual words": [5], "Q-Former": [0, 1, 2, 3] }[name];
      assert.deepEqual(
        Array.from(moved, (is, i) => (is ? i : -1)).filter((i) => i >= 0),
        wanted,
      );
      tf.dispose([y, z]);
    });
    tf.dispose([variables, x, changed]);
  });

test("linear is a product, and MLP two with a GELU between them", () => {
  const x = tf.randomNormal([1, 16, 6], 0, 1, "float32", 1) as tf.Tensor3D;
  const line = freshVariables(CONNECTORS.linear(SIZES).spec, 0);
  const [weight, bias] = line.variables;
  const product = (a: tf.Tensor, w: tf.Tensor, b: tf.Tensor) =>
    tf.matMul(a.reshape([16, -1]) as tf.Tensor2D, w as tf.Tensor2D, false, true).add(b);
  expectClose(CONNECTORS.linear(SIZES).connect(line.params, x).dataSync(), product(x, weight, bias).dataSync(), 1e-6);
  const two = freshVariables(CONNECTORS.MLP(SIZES).spec, 0);
  const [w1, b1, w2, b2] = two.variables;
  const gelu = (z: tf.Tensor) => z.mul(z.div(Math.SQRT2).erf().add(1)).div(2);
  expectClose(CONNECTORS.MLP(SIZES).connect(two.params, x).dataSync(), product(gelu(product(x, w1, b1)), w2, b2).dataSync(), 1e-5);
});

test("candidate(): a seed gives the decoder the same weights around every connector, and a loss that reaches all of them", async () => {
  const heads: number[][] = [];
  for (const name of CONNECTOR_NAMES) {
    const one = await candidate(name, [data.training], { ...studyRecipe, seed: 3 });
    const { tokens, connectorWeights, decoderWeights } = one.sizes;
    assert.equal(
      connectorWeights + decoderWeights,
      one.variables.reduce((sum, v) => sum + v.size, 0),
    );
    const recorded = measured.runs.find(({ connector }) => connector === name)!;
    assert.deepEqual([recorded.tokens, recorded.connectorWeights, recorded.decoderWeights], [tokens, connectorWeights, decoderWeights]);
    heads.push(Array.from(one.pupil.language.headWeight!.dataSync()));
    const batch = one.pupil.teacher.batch(
      data.training.scenes.slice(0, 2).map(({ picture }) => [{ question: "How many are there?", answer: "one", picture }]),
    );
    const { value, grads } = tf.variableGrads(() => answerLoss(one.pupil)(batch), one.variables);
    assert.deepEqual(
      one.variables.filter((v) => !grads[v.name]).map((v) => v.shape),
      [],
    );
    tf.dispose([value, grads, batch as tf.TensorContainer]);
    one.dispose();
  }
  for (const head of heads.slice(1)) assert.deepEqual(head, heads[0]);
});

test("data/connectors has every connector and seed, and answers above the most frequent one", () => {
  assert.deepEqual(measured.recipe, studyRecipe);
  assert.deepEqual(
    measured.runs.map(({ connector, seed }) => `${connector} ${seed}`).sort(),
    CONNECTOR_NAMES.flatMap((name) => studyRecipe.seeds.map((seed) => `${name} ${seed}`)).sort(),
  );
  for (const { connector, seed, answers, held } of measured.runs) {
    for (const topic of TOPICS) assert.ok(answers[topic].accuracy > answers[topic].majority + 0.05, `${connector} ${seed}, ${topic}`);
    assert.deepEqual(
      held.map(({ step }) => step),
      Array.from({ length: studyRecipe.steps / studyRecipe.every }, (_, i) => (i + 1) * studyRecipe.every),
    );
  }
});

test("the committed curves begin as training does now", async () => {
  const all = await studyData(studyRecipe.pictures);
  const one = await candidate("linear", [all.training, all.validation], { ...studyRecipe, seed: 0 });
  const recorded = measured.runs.find(({ connector, seed }) => connector === "linear" && seed === 0)!;
  for await (const { step, held } of study(one, all, { ...studyRecipe, seed: 0 })) {
    if (held === undefined) continue;
    assert.equal(step, recorded.held[0].step);
    assert.ok(Math.abs(held - recorded.held[0].value) < 0.03, `held-out loss ${held}, recorded ${recorded.held[0].value}`); // sums in another order drift apart
    break;
  }
  one.dispose();
});
