/**
 * Which connector? One small model of frozen patches, a connector and a decoder for each connector and seed, trained on the same questions about emoji. The
 * connectors' first weights differ by necessity; the decoder's, the batches and their order are the same for all connectors of a seed.
 */
import { join } from "node:path";
import { shuffledBatches } from "../data/batches";
import { type Scene, type Turn, turnsOf } from "../data/questions";
import { mixSeeds, type Random, random, shuffle } from "../data/random";
import { breathe } from "../engine/interrupt";
import { take } from "../engine/read";
import { tf } from "../engine/tf";
import { resolveModel } from "../files/hub";
import { readJson } from "../files/json";
import { languageConfig } from "../models/language-config";
import { llamaRotary, llamaSpec } from "../models/llama";
import { llamaLanguage } from "../models/llama-language";
import { placeFeatures } from "../models/internvl";
import { leaves } from "../nn/spec";
import { loadTokenizer } from "../text/tokenizer";
import { type Accuracy, accuracy } from "./answers";
import type { Seen, StudyData } from "./connector-data";
import { CONNECTORS, type ConnectorName } from "./connectors";
import { answerLoss, type Conversation, type Pupil, teacher } from "./conversations";
import { FRAME } from "./emoji-vl-files";
import { freshVariables } from "./fresh";
import { type Row, train } from "./loop";

/** Everything that decides the result; committed beside the curves. */
export const studyRecipe = {
  data: "emoji (Twemoji style), English, without skin tones: colours, groups, counts and places; the vocabulary of emoji-vl",
  vision: "emoji-clip's picture tower, frozen: the 64 patches behind the last block but one",
  pictures: { singles: 1, scattered: 4500, held: 400, augment: { shift: 0.08, zoom: 0.2, turn: 10, colour: 0.05 }, seed: 0 },
  text: { hidden_size: 128, intermediate_size: 384, num_hidden_layers: 3, num_attention_heads: 4, num_key_value_heads: 2 },
  /** Pictures in a batch, each with up to so many questions. */
  batchSize: 32,
  questions: 4,
  steps: 700,
  learningRate: 3e-3,
  warmupSteps: 0.05,
  schedule: "cosine" as const,
  weightDecay: 0.05,
  betas: [0.9, 0.98] as [number, number],
  seeds: [0, 1, 2],
  /** Steps between two measurements on the validation split. */
  every: 50,
};
export type StudyRecipe = typeof studyRecipe;

/** A model of the study. */
export type Candidate = {
  pupil: Pupil;
  variables: tf.Variable[];
  /** Tokens of a picture, weights of the connector and of the decoder. */
  sizes: { tokens: number; connectorWeights: number; decoderWeights: number };
  dispose(): void;
};

/** An untrained model around a connector. seen: whose pictures it will be asked about */
export async function candidate(
  name: ConnectorName,
  seen: Seen[],
  { seed, text }: { seed: number } & Pick<StudyRecipe, "text">,
): Promise<Candidate> {
  const tokenizer = await loadTokenizer(await resolveModel("emoji-vl"));
  const { side, width } = seen[0];
  const connector = CONNECTORS[name]({ side, width, hidden: text.hidden_size });
  const config = languageConfig(
    { model_type: "qwen2", vocab_size: tokenizer.vocabSize, max_position_embeddings: 512, ...text },
    "text",
    true,
  );
  const bridge = freshVariables(connector.spec, mixSeeds(seed, 1), connector.given);
  const decoder = freshVariables(llamaSpec(config), mixSeeds(seed, 2));
  const rotary = llamaRotary(config);
  const language = llamaLanguage(decoder.params, config, rotary, []);
  const id = (token: string) => tokenizer.encode(token, { addSpecialTokens: false });
  const mark = id(FRAME.image.mark)[0];
  const ids = [...id(FRAME.image.start), ...Array<number>(connector.tokens).fill(mark), ...id(FRAME.image.end)];
  const see = (picture: Scene["picture"]) => ({ values: seen.map(({ patches }) => patches.get(picture)).find(Boolean)!, ids });
  const variables = [...bridge.variables, ...decoder.variables];
  return {
    pupil: {
      teacher: teacher(tokenizer, { shape: [side, side, width], see }, FRAME),
      language,
      embed: ({ ids, pixels }) =>
        tf.tidy(() => {
          const places = Array.from(ids.dataSync()).flatMap((id, i) => (id === mark ? [i] : []));
          const tokens = connector.connect(bridge.params, pixels.reshape([-1, side * side, width]) as tf.Tensor3D);
          return placeFeatures(language.embed(ids), places, tokens.reshape([places.length, text.hidden_size]) as tf.Tensor2D);
        }),
    },
    variables,
    sizes: { tokens: connector.tokens, connectorWeights: weights(connector.spec), decoderWeights: weights(llamaSpec(config)) },
    dispose() {
      tf.dispose([variables, rotary.inverseFrequencies]);
    },
  };
}

const weights = (spec: unknown): number => leaves(spec).reduce((sum, { spec }) => sum + spec.shape.reduce((a, b) => a * b, 1), 0);

/** A training step, and every so many steps the loss on the validation split. */
export type StudyRow = Row & { held?: number };

/** Trains a model; one row a step. */
export async function* study(
  { pupil, variables }: Candidate,
  data: StudyData,
  recipe: StudyRecipe & { seed: number },
): AsyncGenerator<StudyRow> {
  const { steps, learningRate, warmupSteps, schedule, weightDecay, betas, every } = recipe;
  const run = train({
    variables,
    batches: batches(pupil, data.training, recipe),
    loss: answerLoss(pupil),
    ...{ steps, learningRate, warmupSteps, schedule, weightDecay, betas },
    noDecay: (v) => v.rank < 2,
  });
  for await (const row of run)
    yield row.step % every === 0 || row.step === steps ? { ...row, held: await heldLoss(pupil, data.validation) } : row;
}

/** The questions of the study. Names are left out: that of an emoji never seen can hardly be said. */
export const TOPICS = ["colour", "kind", "count", "place"] as const;
const asks = (scene: Scene, next?: Random) => turnsOf(scene, next).filter(({ topic }) => topic !== "caption");

function* batches({ teacher }: Pupil, { scenes }: Seen, { batchSize, questions, seed }: StudyRecipe & { seed: number }) {
  const next = random(mixSeeds(seed, 3));
  for (const batch of shuffledBatches(scenes, batchSize, { seed, epochs: Infinity, dropLast: true }))
    yield teacher.batch(batch.map((scene) => talk(scene, shuffle(asks(scene, next), next).slice(0, questions))));
}

/** Questions about one picture, which comes with the first. */
const talk = ({ picture }: Scene, turns: Turn[]): Conversation =>
  turns.map(({ question, answer }, i) => ({ question, answer, picture: i === 0 ? picture : undefined }));

/** Mean loss of the answers' tokens about pictures that are not trained on. */
async function heldLoss(pupil: Pupil, { scenes }: Seen): Promise<number> {
  let [total, tokens] = [0, 0];
  for (let i = 0; i < scenes.length; i += BATCH) {
    const batch = pupil.teacher.batch(scenes.slice(i, i + BATCH).map((scene) => talk(scene, asks(scene))));
    const count = batch.labels.shape[0];
    total += (await take(tf.tidy(() => answerLoss(pupil)(batch))))[0] * count;
    tokens += count;
    tf.dispose(batch as tf.TensorContainer);
    await breathe();
  }
  return total / tokens;
}
const BATCH = 64;

export type StudyAnswers = { [topic in (typeof TOPICS)[number]]: Accuracy };

/** Greedy answers about pictures of the test split: colour and kind of one emoji, number and place of several. */
export async function studyAnswers({ pupil }: Candidate, { scenes }: Seen): Promise<StudyAnswers> {
  const result = {} as StudyAnswers;
  for (const topic of TOPICS) {
    const alone = topic === "colour" || topic === "kind";
    const asked = scenes
      .filter(({ cells }) => (cells.length === 1) === alone)
      .flatMap((scene) => asks(scene).map((turn) => ({ ...turn, picture: scene.picture })));
    result[topic] = await accuracy(
      pupil,
      asked.filter((turn) => turn.topic === topic),
    );
  }
  return result;
}

/** A run as the committed file has it: losses at every so many steps, those of training as the mean since the last. */
export type StudyRun = Candidate["sizes"] & {
  connector: ConnectorName;
  seed: number;
  training: { step: number; value: number }[];
  held: { step: number; value: number }[];
  answers: StudyAnswers;
};
export type Study = { recipe: StudyRecipe; runs: StudyRun[] };

/** What `npm run train:connectors` has measured, as it travels with the package. */
export const studyMeasured = (): Study => readJson(join(__dirname, "../data/connectors/results.json")) as Study;
