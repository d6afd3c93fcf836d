/** A worker thread of `preparePictures` and `prepareTiles`: jobs come in, arrays go back filled. Values are handed over, not copied. */
import { parentPort, workerData } from "node:worker_threads";
import { type Job, lane, plainWork, tileWork } from "./lane";
import type { ProcessorConfig } from "./processor-config";
import { imageProcessor } from "./processor";
import type { TileConfig } from "./tile-config";
import { type TileOverrides, tileProcessor } from "./tiles";

/** What a worker is made from. */
export type Recipe = { kind: "plain"; config: ProcessorConfig } | { kind: "tiles"; config: TileConfig; overrides: TileOverrides };

const port = parentPort;
if (!port) throw new Error("prepare-worker is started by preparePictures() and prepareTiles(), as a worker thread");
const recipe = workerData as Recipe;
const work = recipe.kind === "plain" ? plainWork(imageProcessor(recipe.config)) : tileWork(tileProcessor(recipe.config), recipe.overrides);
const take = lane(work, (answer) => port.postMessage(answer, [answer.values.buffer as ArrayBuffer]));
port.on("message", (job: Job) => take(job));
