/** Pictures made ready for a model while the caller computes: worker threads read, decode, resize and normalise them ahead, a bounded number of them. */
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { interruptSignal } from "../engine/interrupt";
import { type Answer, type Job, lane, plainWork, thrown, tileWork, type Work } from "./lane";
import type { Picture, PictureSource } from "./picture";
import type { Recipe } from "./prepare-worker";
import type { ImageProcessor } from "./processor";
import type { Tiled, TileOverrides, TileProcessor } from "./tiles";

/** The numbers of one picture, or why it cannot be read (`code` as in PictureErrorCode). `values` is overwritten once the next picture is asked for. */
export type Prepared = { index: number; source: PictureSource; values: Float32Array; error?: Error };

export type PrepareOptions = {
  /** How many pictures may be in work or waiting for the caller. */
  ahead: number;
  /** Threads beside this one; default: a quarter of the cores (VITRINE_THREADS), at least one. 0: this thread does it all. */
  workers?: number;
  /** Ends early, within the time of one picture. */
  signal?: AbortSignal;
};

/** The first pictures are prepared in this thread: that is sooner than a worker could start, and a short list needs none. */
const HERE = 32;
/** More threads than this wait for the disk and for each other. */
const MOST_WORKERS = 16;

type Many<T> = Iterable<T> | AsyncIterable<T>;

/** Preparing takes about a quarter of the time that a base-size tower takes on the same cores. */
export function defaultWorkers(): number {
  const threads = Number(process.env.VITRINE_THREADS) || availableParallelism();
  return Math.max(1, Math.min(MOST_WORKERS, Math.ceil(threads / 4)));
}

/**
 * Prepares pictures in the order given, `ahead` of them at most before the caller took the first. The threads work on while the caller computes, end
 * with the last picture, and also when the caller leaves the loop or `signal` comes. The numbers are those of `processor.process(await readPicture(source))`.
 *
 * @throws what the iterator of sources throws, and whatever is no fault of a picture; a picture that cannot be read is yielded with its `error`
 */
export async function* preparePictures(
  processor: ImageProcessor,
  sources: Many<PictureSource>,
  options: PrepareOptions,
): AsyncGenerator<Prepared, void, undefined> {
  const { config } = processor;
  for await (const { tiled: _, ...one } of prepare(plainWork(processor), config && { kind: "plain", config }, sources, options)) yield one;
}

/** The tiles of one picture, or why it cannot be read. */
export type PreparedTiles = { index: number; source: PictureSource; tiled?: Tiled; error?: Error };

/**
 * Cuts pictures into tiles in the order given, as `preparePictures` does with pictures of fixed size: the tiles are those of
 * `processor.tile(await readPicture(source), overrides)`, and the caller's to keep.
 *
 * @throws what the iterator of sources throws, and TypeError for wrong overrides; a picture that cannot be read is yielded with its `error`
 */
export async function* prepareTiles(
  processor: TileProcessor,
  sources: Many<PictureSource>,
  { overrides = {}, ...options }: PrepareOptions & { overrides?: TileOverrides },
): AsyncGenerator<PreparedTiles, void, undefined> {
  processor.layout({ width: 1, height: 1 }, overrides); // wrong overrides are no fault of a picture
  const recipe: Recipe = { kind: "tiles", config: processor.config, overrides };
  for await (const { index, source, values, tiled, error } of prepare(tileWork(processor, overrides), recipe, sources, options))
    yield { index, source, tiled: tiled && { pixels: values, ...tiled }, error };
}

/**
 * The tiles of all pictures of a batch, with the index of each. failures: what cannot be read (only with `onError: "skip"`).
 *
 * @throws an error that names every picture that cannot be read, unless `onError` is "skip"
 */
export async function readTiles(
  processor: TileProcessor,
  sources: PictureSource[],
  { onError = "throw", ahead = 8, ...options }: Partial<PrepareOptions> & { overrides?: TileOverrides; onError?: "throw" | "skip" } = {},
): Promise<{ tiled: Tiled[]; indices: number[]; failures: { index: number; error: Error }[] }> {
  const [tiled, indices, failures]: [Tiled[], number[], { index: number; error: Error }[]] = [[], [], []];
  for await (const one of prepareTiles(processor, sources, { ahead, ...options })) {
    if (one.error) failures.push({ index: one.index, error: one.error });
    if (one.tiled) tiled.push(one.tiled);
    if (one.tiled) indices.push(one.index);
  }
  (options.signal ?? interruptSignal()).throwIfAborted();
  if (failures.length && onError === "throw") {
    const lines = failures.map(({ index, error }) => `  picture ${index}: ${error.message}`);
    throw new AggregateError(
      failures.map(({ error }) => error),
      `${failures.length} of ${sources.length} pictures cannot be read (onError: "skip" leaves them out):\n${lines.join("\n")}`,
    );
  }
  return { tiled, indices, failures };
}

type Ready = Prepared & Pick<Answer, "tiled">;

/** recipe: what a worker is made from; undefined: this thread does it all. */
async function* prepare(
  work: Work,
  recipe: Recipe | undefined,
  sources: Many<PictureSource>,
  { ahead, workers = defaultWorkers(), signal = interruptSignal() }: PrepareOptions,
): AsyncGenerator<Ready, void, undefined> {
  const news = bell();
  const threads = new Threads(work, recipe, recipe ? workers : 0, signal, news.ring);
  const feed = new Feed(sources, ahead, threads, news);
  signal.addEventListener("abort", news.ring);
  const feeding = feed.run();
  try {
    for (let index = 0; ; index++) {
      while (!threads.answers.has(index) && !signal.aborted && !feed.isOver(index)) await news.next();
      const answer = threads.answers.get(index);
      if (signal.aborted || !answer) break;
      threads.answers.delete(index);
      yield { index, source: feed.take(index), values: answer.values, tiled: answer.tiled, error: answer.error && thrown(answer.error) };
      if (work.length) threads.spare.push(answer.values);
      feed.release();
    }
    threads.throwIfFailed();
    feed.throwIfFailed();
  } finally {
    signal.removeEventListener("abort", news.ring);
    feed.stop();
    await threads.close();
    await Promise.race([feeding, new Promise(setImmediate)]); // a source that never answers is not waited for
  }
}

/** "Something changed": `next()` resolves at the next `ring()`. */
function bell() {
  let waiting: (() => void)[] = [];
  return {
    next: () => new Promise<void>((resolve) => waiting.push(resolve)),
    ring: () => {
      const all = waiting;
      waiting = [];
      for (const resolve of all) resolve();
    },
  };
}

/** Hands sources to the threads as places become free. */
class Feed {
  #count = 0;
  #inFlight = 0;
  #ended = false;
  #stopped = false;
  #failure: { error: unknown } | undefined;
  /** Sources by index, until their picture is taken. */
  readonly #sources = new Map<number, PictureSource>();

  constructor(
    readonly sources: Many<PictureSource>,
    readonly ahead: number,
    readonly threads: Threads,
    readonly news: ReturnType<typeof bell>,
  ) {}

  async run(): Promise<void> {
    try {
      for await (const source of this.sources) {
        while (this.#inFlight >= this.ahead && !this.#stopped) await this.news.next();
        if (this.#stopped) break; // closes the iterator
        this.#inFlight++;
        this.#sources.set(this.#count, source);
        this.threads.post(this.#count++, source);
      }
    } catch (error) {
      this.#failure = { error };
    }
    this.#ended = true;
    this.news.ring();
  }

  take(index: number): PictureSource {
    const source = this.#sources.get(index) as PictureSource;
    this.#sources.delete(index);
    return source;
  }

  release(): void {
    this.#inFlight--;
    this.news.ring();
  }

  /** Whether no picture of that index will come. */
  isOver(index: number): boolean {
    return this.threads.failure !== undefined || (this.#ended && index >= this.#count);
  }

  stop(): void {
    this.#stopped = true;
    this.news.ring();
  }

  throwIfFailed(): void {
    if (this.#failure) throw this.#failure.error;
  }
}

/** This thread and the workers, started when the first picture is for them. Answers wait in a map until they are taken. */
class Threads {
  readonly answers = new Map<number, Answer>();
  /** Arrays to use again. */
  readonly spare: Float32Array[] = [];
  failure: Error | undefined;
  readonly #workers: Worker[] = [];
  readonly #closing = new AbortController();
  readonly #here: (job: Job) => void;

  constructor(
    readonly work: Work,
    readonly recipe: Recipe | undefined,
    readonly count: number,
    signal: AbortSignal,
    readonly changed: () => void,
  ) {
    this.#here = lane(work, (answer) => this.#receive(answer), AbortSignal.any([signal, this.#closing.signal]));
  }

  post(index: number, source: PictureSource): void {
    const into = this.spare.pop() ?? new Float32Array(this.work.length);
    const sent = index < HERE || this.count === 0 ? undefined : portable(source);
    if (sent)
      this.#worker(index % this.count).postMessage({ index, source: sent.source, into }, [into.buffer as ArrayBuffer, ...sent.transfer]);
    else this.#here({ index, source, into });
  }

  #worker(i: number): Worker {
    if (this.#workers[i]) return this.#workers[i];
    const worker = new Worker(join(__dirname, "prepare-worker.js"), { workerData: this.recipe, execArgv: [] });
    worker.on("message", (answer: Answer) => this.#receive(answer));
    worker.on("error", (error) => this.#fail(error));
    worker.on("exit", (code) => this.#closing.signal.aborted || this.#fail(new Error(`it ended with code ${code}`)));
    this.#workers[i] = worker;
    return worker;
  }

  #receive(answer: Answer): void {
    this.answers.set(answer.index, answer);
    this.changed();
  }

  #fail(cause: Error): void {
    const text = `preparing pictures: a worker thread failed (${cause.message}); { workers: 0 } does without them`;
    this.failure ??= new Error(text, { cause });
    this.changed();
  }

  throwIfFailed(): void {
    if (this.failure) throw this.failure;
  }

  async close(): Promise<void> {
    this.#closing.abort();
    await Promise.all(this.#workers.map((worker) => worker?.terminate()));
  }
}

/** A source that another thread can have: bytes and pixels are copied once and handed over. undefined: what is no picture at all is refused here. */
function portable(source: PictureSource): { source: PictureSource; transfer: ArrayBuffer[] } | undefined {
  if (typeof source === "string" || source instanceof URL) return { source: String(source), transfer: [] };
  const { width, height, data } = source instanceof Uint8Array ? ({ data: source } as Picture) : (Object(source) as Picture);
  if (!ArrayBuffer.isView(data)) return undefined;
  const copy = new Uint8Array(data);
  return { source: width === undefined ? copy : { width, height, data: copy }, transfer: [copy.buffer] };
}
