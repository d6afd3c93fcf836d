/** A worker thread of `preparePictures`: jobs come in, the same arrays go back filled. Nothing is copied on the way. */
import { parentPort, workerData } from "node:worker_threads";
import { type Job, lane } from "./lane";
import { imageProcessor } from "./processor";

const port = parentPort;
if (!port) throw new Error("prepare-worker is started by preparePictures(), as a worker thread");
const take = lane(imageProcessor(workerData), (answer) => port.postMessage(answer, [answer.values.buffer as ArrayBuffer]));
port.on("message", (job: Job) => take(job));
