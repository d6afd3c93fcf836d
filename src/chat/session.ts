/** A conversation: what was said, the last answer, and what of it stays computed. */
import type { GenerationOptions } from "../generate";
import type { Piece, Response } from "./answer";
import type { Memory } from "./memory";
import type { Ask, Message } from "./messages";
import type { ThinkingOptions } from "./thinking";

/** A conversation with a model, by LMDeploy's names. `for await (const { text } of session)` reads an answer that is asked for with `stream: true`. */
export type Session = {
  sessionId: number;
  /** The last question. */
  prompt?: Ask;
  /** The answer to it; with `stream: true` from the moment when it was read to its end. */
  response?: Response;
  /** Questions and answers so far. */
  history: [prompt: Ask, answer: string][];
  /** All that was said, pictures included: what the next turn goes on from. */
  messages: Message[];
  genConfig?: GenConfig;
  [Symbol.asyncIterator](): AsyncIterator<Piece>;
  /** Ends an answer that is being read, and frees what is kept computed. The conversation can go on, and is then computed anew. */
  close(): void;
};

export type GenConfig = GenerationOptions &
  ThinkingOptions & {
    /** How many answers; drawn with seeds one after another. Only where a pipeline is called, and not in a chat. */
    n?: number;
  };

/** What the pipeline knows of a session. */
export type Kept = {
  session: Session;
  memory?: Memory;
  busy: boolean;
  closing: boolean;
  stream?: AsyncGenerator<Piece, Response, undefined>;
};

/** Sessions of one pipeline. Those that were not used for longest are no longer kept computed: at most `most` are. */
export function makeSessions(most: number): { open(given?: Session): Kept; remember(kept: Kept, memory: Memory): void; close(): void } {
  const all = new WeakMap<Session, Kept>();
  /** Those with a memory, the one used last at the end. */
  const warm = new Set<Kept>();
  let [made, isClosed] = [0, false];
  const forget = (kept: Kept) => {
    kept.memory?.cache.dispose();
    kept.memory = undefined;
    warm.delete(kept);
  };
  const begin = (): Kept => {
    const session: Session = {
      sessionId: ++made,
      history: [],
      messages: [],
      [Symbol.asyncIterator]() {
        if (!kept.stream) throw new Error(`session ${session.sessionId}: nothing to read; ask with chat(…, { session, stream: true })`);
        return kept.stream;
      },
      close() {
        kept.closing = true;
        if (kept.busy) void kept.stream?.return(undefined as never);
        else forget(kept);
      },
    };
    const kept: Kept = { session, busy: false, closing: false };
    all.set(session, kept);
    return kept;
  };
  return {
    open(given) {
      const kept = given && !isClosed ? all.get(given) : undefined;
      if (isClosed || (given && !kept))
        throw new Error(`${given ? `session ${given.sessionId}` : "chat: a session"} is of another pipeline, or of one that is closed`);
      if (kept?.busy)
        throw new Error(
          `session ${kept.session.sessionId} is answering already; wait for that answer (or read its stream to the end), or begin a new session`,
        );
      const found = kept ?? begin();
      found.closing = false;
      return found;
    },
    remember(kept, memory) {
      kept.memory = memory;
      warm.delete(kept);
      warm.add(kept);
      if (kept.closing || isClosed) forget(kept);
      for (const one of warm) if (warm.size > most) forget(one);
    },
    close() {
      isClosed = true;
      for (const kept of warm) forget(kept);
    },
  };
}
