/** Pictures read and prepared a few at a time: the work of one thread, the same in the main thread and in a worker. */
import { breathe } from "../engine/interrupt";
import { type Picture, type PictureSource, readPicture } from "./picture";
import type { ImageProcessor } from "./processor";
import type { Tiled, TileOverrides, TileProcessor } from "./tiles";

/** One picture to prepare. into: where its numbers go, so that the same memory serves again and again. */
export type Job = { index: number; source: PictureSource; into: Float32Array };

/** A finished job, or why its picture cannot be read: what survives the way between threads. tiled: only of work that cuts. */
export type Answer = { index: number; values: Float32Array; tiled?: Omit<Tiled, "pixels">; error?: PlainError };
type PlainError = { name: string; message: string; stack?: string; code?: string; source?: string };

/** What is done to each picture. length: of the array that a job brings along; 0 where that depends on the picture. */
export type Work = { length: number; run(picture: Picture, into: Float32Array): Pick<Answer, "values" | "tiled"> };

/** One picture of fixed size. */
export const plainWork = (processor: ImageProcessor): Work => ({
  length: processor.size.height * processor.size.width * 3,
  run: (picture, into) => ({ values: processor.process(picture, into) }),
});

/** Tiles, as many as the picture needs. */
export const tileWork = (processor: TileProcessor, overrides: TileOverrides): Work => ({
  length: 0,
  run: (picture) => {
    const { pixels, ...tiled } = processor.tile(picture, overrides);
    return { values: pixels, tiled };
  },
});

/** Pictures decoded ahead of the one that is being resized: the decoder has threads of its own. */
const AT_ONCE = 2;

/** A function that takes jobs at any time and works on at most AT_ONCE of them, in their order. Each is answered once, until `signal` comes. */
export function lane(work: Work, reply: (answer: Answer) => void, signal?: AbortSignal): (job: Job) => void {
  const waiting: Job[] = [];
  let running = 0;
  const run = async ({ index, source, into }: Job): Promise<void> => {
    running++;
    let done: Pick<Answer, "values" | "tiled"> = { values: into };
    let error: PlainError | undefined;
    try {
      const picture = await readPicture(source, { signal });
      await breathe(); // pixels are read without waiting: signals must get in between two of them
      done = work.run(picture, into);
    } catch (cause) {
      error = plainError(cause as Error);
    }
    running--;
    reply({ index, ...done, error });
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
