/** Pictures read and prepared a few at a time: the work of one thread, the same in the main thread and in a worker. */
import { breathe } from "../engine/interrupt";
import { type PictureSource, readPicture } from "./picture";
import type { ImageProcessor } from "./processor";

/** One picture to prepare. into: where its numbers go, so that the same memory serves again and again. */
export type Job = { index: number; source: PictureSource; into: Float32Array };

/** A finished job, or why its picture cannot be read: what survives the way between threads. */
export type Answer = { index: number; values: Float32Array; error?: PlainError };
type PlainError = { name: string; message: string; stack?: string; code?: string; source?: string };

/** Pictures decoded ahead of the one that is being resized: the decoder has threads of its own. */
const AT_ONCE = 2;

/** A function that takes jobs at any time and works on at most AT_ONCE of them, in their order. Each is answered once, until `signal` comes. */
export function lane(processor: ImageProcessor, reply: (answer: Answer) => void, signal?: AbortSignal): (job: Job) => void {
  const waiting: Job[] = [];
  let running = 0;
  const run = async ({ index, source, into }: Job): Promise<void> => {
    running++;
    let error: PlainError | undefined;
    try {
      const picture = await readPicture(source, { signal });
      await breathe(); // pixels are read without waiting: signals must get in between two of them
      processor.process(picture, into);
    } catch (cause) {
      error = plainError(cause as Error);
    }
    running--;
    reply({ index, values: into, error });
    next();
  };
  const next = (): void => {
    while (!signal?.aborted && running < AT_ONCE && waiting.length) void run(waiting.shift() as Job);
  };
  return (job) => {
    waiting.push(job);
    next();
  };
}

const plainError = (error: Error & { code?: string; source?: string }): PlainError => ({
  name: error.name,
  message: error.message,
  stack: error.stack,
  code: error.code,
  source: error.source,
});

/** The error of an answer as it was thrown. */
export const thrown = ({ name, message, ...rest }: PlainError): Error => Object.assign(new Error(message), { name, ...rest });
