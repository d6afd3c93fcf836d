/** What a cell sees of our types: tslab reads dist's declarations with TypeScript 5.0.4, node10, not strict, lib ES2022. */
import assert from "node:assert/strict";
import { existsSync, readdirSync, realpathSync } from "node:fs";
import { join, resolve } from "node:path";
import { test } from "node:test";
import type typescript from "typescript";

const ROOT = resolve(__dirname, "..");
const DIST = join(ROOT, "dist");
const ts: typeof typescript = require("@tslab/typescript-for-tslab");

/** tslab's own options (tslab/dist/converter.js) on Node 20 and later. */
const OPTIONS: typescript.CompilerOptions = {
  module: ts.ModuleKind.ESNext,
  moduleResolution: ts.ModuleResolutionKind.Node10,
  esModuleInterop: true,
  target: ts.ScriptTarget.ES2022,
  lib: ["lib.es2022.d.ts"],
  declaration: true,
  experimentalDecorators: true,
  resolveJsonModule: true,
  jsx: ts.JsxEmit.React,
  typeRoots: [join(ROOT, "node_modules", "@types")],
  allowJs: true,
  checkJs: true,
  skipLibCheck: true,
  noEmit: true,
};

/** Every module of the package: `vitrine/models`, `vitrine/nn/lora`, … */
const modules = (readdirSync(DIST, { recursive: true }) as string[])
  .map((path) => path.replaceAll("\\", "/"))
  .filter((path) => path.endsWith(".d.ts") && !/^(setup|kernels|cli)\//.test(path))
  .map((path) => `vitrine/${path.replace(/(\/index)?\.d\.ts$/, "")}`)
  .sort();

/** Declarations are read once for all programs. */
const parsed = new Map<string, typescript.SourceFile | undefined>();
const PLACE = join(ROOT, "notebooks", "cell-of-a-test.ts");

/** A cell in notebooks/ that exists only here, compiled with the package. */
function compile(cell: string, options = OPTIONS): typescript.Program {
  const host = ts.createCompilerHost(options);
  const { getSourceFile, fileExists } = host;
  host.getSourceFile = (name, ...rest) => {
    if (name === PLACE) return ts.createSourceFile(name, cell, ts.ScriptTarget.ES2022);
    if (!parsed.has(name)) parsed.set(name, getSourceFile(name, ...rest));
    return parsed.get(name);
  };
  host.fileExists = (name) => name === PLACE || fileExists(name);
  return ts.createProgram([PLACE], options, host);
}

/** The errors of the cell and of our declarations' syntax; tslab too shows none of other people's declarations. */
function errorsOf(program: typescript.Program): string[] {
  const cell = program.getSourceFile(PLACE)!;
  const ours = ourFiles(program).flatMap((file) => program.getSyntacticDiagnostics(file));
  return described([
    ...program.getOptionsDiagnostics(),
    ...program.getSyntacticDiagnostics(cell),
    ...program.getSemanticDiagnostics(cell),
    ...ours,
  ]);
}

const ourFiles = (program: typescript.Program) =>
  program.getSourceFiles().filter((file) => file.fileName !== PLACE && realpathSync(file.fileName).startsWith(DIST));

const described = (all: readonly typescript.Diagnostic[]) =>
  all.map((d) => {
    const line = d.file && d.start !== undefined ? d.file.getLineAndCharacterOfPosition(d.start).line + 1 : 0;
    return `${d.file?.fileName ?? ""}:${line} ${ts.flattenDiagnosticMessageText(d.messageText, "\n")}`;
  });

test("the compiler is tslab's", () => {
  assert.equal(ts.version, "5.0.4");
  assert.ok(existsSync(join(DIST, "models", "index.d.ts")), "run `npm run build` first");
});

test("a cell that imports every module of the package compiles", () => {
  const must = [
    "models",
    "embed",
    "retrieval",
    "nn/lora",
    "nn/peft",
    "nn/tap",
    "train/loop",
    "train/contrastive",
    "data",
    "figures/attention-map",
    "notebook",
    "engine",
    "nn/trainable",
    "models/save",
    "engine/progress",
  ];
  for (const name of must) assert.ok(modules.includes(`vitrine/${name}`), `no vitrine/${name}`);
  const program = compile(
    [...modules.map((name, i) => `import * as m${i} from "${name}";`), `export const all = [${modules.map((_, i) => `m${i}`)}];`].join(
      "\n",
    ),
  );
  assert.deepEqual(errorsOf(program), []);
});

test("our declarations hold no error of their own, checked as the compiler would check a library", () => {
  const program = compile(modules.map((name) => `import "${name}";`).join("\n"), { ...OPTIONS, skipLibCheck: false });
  const ours = ourFiles(program);
  assert.ok(ours.length >= modules.length, `${ours.length} declarations of ${modules.length} modules`);
  assert.deepEqual(
    described(ours.flatMap((file) => [...program.getSyntacticDiagnostics(file), ...program.getSemanticDiagnostics(file)])),
    [],
  );
});

/** A notebook's first cells. Each line after `@ts-expect-error` is wrong: were our types `any`, the compiler would not mind, and the test fail. */
const CELL = `
import { load } from "vitrine/models";
import { embedImages, embedTexts } from "vitrine/embed";
import { zeroShot, retrieval, neighbours } from "vitrine/retrieval";
import { record, edit } from "vitrine/nn/tap";
import { withLora, mergeLora } from "vitrine/nn/lora";
import { saveAdapter, loadAdapter } from "vitrine/nn/peft";
import { withTrainable } from "vitrine/nn/trainable";
import { saveModel } from "vitrine/models/save";
import { train } from "vitrine/train/loop";
import { pairBatches, pairLoss } from "vitrine/train/contrastive";
import { dataset } from "vitrine/data";
import { engine, tf } from "vitrine/engine";
import { interruptSignal } from "vitrine/engine/interrupt";
import { show } from "vitrine/notebook";

export async function cells() {
  const clip = await load("emoji-clip", { dtype: "bfloat16" });
  // @ts-expect-error no such dtype
  await load("emoji-clip", { dtype: "float16" });
  // @ts-expect-error no such option
  await load("emoji-clip", { dtpye: "float32" });
  const layers: number = clip.config.vision_config.num_hidden_layers;
  // @ts-expect-error no such key
  clip.config.vision_config.num_layers;
  const weight: tf.Tensor2D = clip.params.vision.blocks[0].attn.q.weight;
  // @ts-expect-error no such part
  clip.params.vision.blocks[0].attention;
  const rows = await dataset("emoji", { split: "test", language: "zh" });
  // @ts-expect-error no such split
  await dataset("emoji", { split: "tset" });
  const { tap, seen } = record(/pattern$/);
  clip.encodeText(tf.tensor2d([[1, 2]], undefined, "int32"), undefined, tap).dispose();
  const pattern: tf.Tensor = seen.get("text.blocks.0.attn.pattern");
  edit("z", (z) => tf.zerosLike(z)).check();
  const images = await embedImages(clip, await Promise.all(rows.map((row) => row.image())), { batchSize: 8 });
  const { indices, failures } = await embedImages(clip, ["cat.png"], { onError: "skip", workers: 2 });
  const [place, reason]: [number, string] = [indices[0], failures[0].error.message];
  console.log(place, reason);
  // @ts-expect-error no such way
  await embedImages(clip, ["cat.png"], { onError: "ignore" });
  const texts = await embedTexts(clip, rows.map((row) => row.caption), { signal: interruptSignal() });
  const shares: unknown[] = (await retrieval(images, texts)).objects();
  (await neighbours(texts, images, 3)).print();
  (await zeroShot(clip, ["cat.png"], ["cat"], { templates: ["a {}"] })).print();
  // @ts-expect-error labels are a list
  await zeroShot(clip, ["cat.png"], "cat");
  const { model, adapter } = withLora(clip, { targetModules: ["q_proj"], r: 8, useDora: true });
  // @ts-expect-error PEFT's r is called r
  withLora(clip, { targetModules: ["q_proj"], rank: 8 });
  const batches = pairBatches(model, rows, { batchSize: 4, seed: 0 });
  for await (const row of train({ variables: adapter.variables, batches, loss: pairLoss(model), steps: 2, learningRate: 1e-3, schedule: "cosine" })) {
    const step: number = row.step;
    // @ts-expect-error no such column
    row.stepp;
    console.log(step);
  }
  await saveAdapter(model, adapter, "outputs/adapter");
  const again = loadAdapter(clip, "outputs/adapter").model;
  const merged = mergeLora(again);
  await saveModel(merged.model, "outputs/merged", { dtype: "bfloat16" });
  withTrainable(clip, (name) => name.endsWith("bias")).dispose();
  merged.disposeMerged();
  const why: string = (await engine()).why;
  show(rows[0] && (await rows[0].image()));
  return [layers, weight, pattern, shares, why];
}`;

for (const strict of [false, true])
  test(`the notebook's calls have our types${strict ? ", strictly too" : ""}`, () => {
    assert.deepEqual(errorsOf(compile(CELL, { ...OPTIONS, strict })), []);
  });
