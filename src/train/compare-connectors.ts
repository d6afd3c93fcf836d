/**
 * npm run train:connectors: trains the models of the connector study, one for each connector and seed, and writes `data/connectors/results.json`: the recipe,
 * and of each run its sizes, its losses, and its answers about pictures it has never seen. `-- --only NAME` trains one
 * connector and keeps what the file has of the others; `-- --steps N --seeds N --out FILE`.
 */
import { mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { interruptOnCtrlC } from "../engine/interrupt";
import { engine } from "../engine/index";
import { writeFileAtomic } from "../files/atomic";
import { readJson } from "../files/json";
import { studyData } from "./connector-data";
import { candidate, type Study, study, studyAnswers, studyRecipe, type StudyRun } from "./connector-study";
import { CONNECTOR_NAMES } from "./connectors";

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { steps: { type: "string" }, seeds: { type: "string" }, out: { type: "string" }, only: { type: "string" } },
  });
  const recipe = { ...studyRecipe, steps: Number(values.steps ?? studyRecipe.steps) };
  recipe.seeds = recipe.seeds.slice(0, Number(values.seeds ?? recipe.seeds.length));
  const out = values.out ?? join(process.cwd(), "data", "connectors", "results.json");
  interruptOnCtrlC();
  console.log((await engine()).why);
  const data = await studyData(recipe.pictures);
  const names = CONNECTOR_NAMES.filter((name) => name === (values.only ?? name));
  if (names.length === 0) throw new Error(`--only ${values.only}: expected one of ${CONNECTOR_NAMES.join(", ")}`);
  const runs = values.only ? (readJson(out) as Study).runs.filter(({ connector }) => connector !== values.only) : [];
  for (const seed of recipe.seeds)
    for (const connector of names) {
      const one = await candidate(connector, [data.training, data.validation, data.test], { ...recipe, seed });
      const [training, held]: [StudyRun["training"], StudyRun["held"]] = [[], []];
      let losses: number[] = [];
      for await (const row of study(one, data, { ...recipe, seed })) {
        losses.push(row.loss);
        if (row.held === undefined) continue;
        training.push({ step: row.step, value: rounded(losses.reduce((a, b) => a + b, 0) / losses.length) });
        held.push({ step: row.step, value: rounded(row.held) });
        losses = [];
      }
      runs.push({ connector, seed, ...one.sizes, training, held, answers: await studyAnswers(one, data.test) });
      console.log(JSON.stringify({ ...runs[runs.length - 1], training: undefined, held: held[held.length - 1] }));
      one.dispose();
      await write(out, { recipe, runs });
    }
}

/** One run a line, so that a difference can be read. */
async function write(file: string, { recipe, runs }: Study): Promise<void> {
  const place = ({ connector, seed }: StudyRun) => seed * CONNECTOR_NAMES.length + CONNECTOR_NAMES.indexOf(connector);
  const lines = [...runs].sort((a, b) => place(a) - place(b)).map((run) => JSON.stringify(run));
  mkdirSync(dirname(file), { recursive: true });
  await writeFileAtomic(file, `{"recipe": ${JSON.stringify(recipe)},\n"runs": [\n${lines.join(",\n")}\n]}\n`);
}

const rounded = (x: number): number => Number(x.toFixed(4));

main().catch((error) => {
  console.error((error as Error).message);
  process.exitCode = 1;
});
