/** A template filled in a thread of its own, with little time and memory: templates come from strangers. */
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import type { Question, Reply } from "./chat-worker";

/** What a template may take to be filled. */
export const TEMPLATE_LIMITS = { milliseconds: 1000, megabytes: 64, characters: 8_000_000 };
/** A thread starts in a tenth of a second; on a busy machine in several. */
const START_MS = 30_000;

const { milliseconds, megabytes, characters } = TEMPLATE_LIMITS;
const YOUNG_MB = 8;

/** Fills one template; the thread is started at the first use, kept, and started again after it had to be ended. */
export class GuardedTemplate {
  #worker: Worker | undefined;
  #ready: Promise<void> | undefined;
  #queue: Promise<unknown> = Promise.resolve();
  #settle: ((reply: Reply | Error) => void) | undefined;

  /** where: how error messages call the template. */
  constructor(
    private readonly where: string,
    private readonly source: string,
  ) {}

  /** @throws Error naming the template: what it raised, what it uses that is not known, or which limit it passed. */
  fill(variables: Record<string, unknown>): Promise<{ text: string; spans: [number, number][] }> {
    const turn = this.#queue.then(() => this.#fill(variables));
    this.#queue = turn.catch(() => undefined);
    return turn;
  }

  /** Ends the thread. A later fill() starts another. */
  close(): void {
    const worker = this.#worker;
    this.#worker = undefined;
    void worker?.terminate();
  }

  async #fill(variables: Record<string, unknown>): Promise<{ text: string; spans: [number, number][] }> {
    const worker = this.#open();
    worker.ref();
    try {
      await this.#ready;
      const answer = await this.#ask(worker, { variables });
      if ("error" in answer)
        throw new Error(answer.refusal ? `${this.where} refuses this conversation: ${answer.error}` : `${this.where}: ${answer.error}`);
      if (answer.text.length > characters)
        throw new Error(`${this.where} gives ${answer.text.length} characters, at most ${characters} are taken`);
      return answer;
    } finally {
      worker.unref();
    }
  }

  #ask(worker: Worker, question: Question): Promise<Reply> {
    return new Promise<Reply>((resolve, reject) => {
      const late = () =>
        this.#end(worker, new Error(`${this.where} was not filled within ${milliseconds} ms: a loop or a recursion in it does not end`));
      const timer = setTimeout(late, milliseconds);
      this.#settle = (reply) => {
        clearTimeout(timer);
        this.#settle = undefined;
        if (reply instanceof Error) reject(reply);
        else resolve(reply);
      };
      worker.postMessage(question);
    });
  }

  #open(): Worker {
    if (this.#worker) return this.#worker;
    const worker = new Worker(join(__dirname, "chat-worker.js"), {
      workerData: { source: this.source },
      execArgv: [],
      resourceLimits: { maxOldGenerationSizeMb: megabytes - YOUNG_MB, maxYoungGenerationSizeMb: YOUNG_MB, stackSizeMb: 2 },
    });
    this.#worker = worker;
    this.#ready = new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`${this.where}: its thread did not start within ${START_MS / 1000} s`)), START_MS);
      worker.once("message", () => {
        clearTimeout(timer);
        worker.on("message", (reply: Reply) => this.#settle?.(reply));
        resolve();
      });
      worker.once("error", (error) => {
        clearTimeout(timer);
        reject(error);
      });
    });
    this.#ready.catch(() => undefined); // told to whoever waits for it
    worker.on("error", (error) => this.#end(worker, this.#why(error)));
    return worker;
  }

  #why(error: Error & { code?: string }): Error {
    const isMemory = error.code === "ERR_WORKER_OUT_OF_MEMORY";
    const text = isMemory
      ? `needs more than the ${megabytes} MB that a template may use: a loop in it makes too much`
      : `failed: ${error.message}`;
    return new Error(`${this.where} ${text}`, { cause: error });
  }

  #end(worker: Worker, error: Error): void {
    if (this.#worker === worker) this.#worker = undefined;
    void worker.terminate();
    this.#settle?.(error);
  }
}
