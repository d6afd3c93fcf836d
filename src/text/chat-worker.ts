/** The worker thread of one chat template: it compiles the template once and fills it as often as asked. A runaway template ends only this thread. */
import { parentPort, workerData } from "node:worker_threads";
import { type Compiled, compileTemplate, TemplateRefusal } from "./jinja";

/** What a worker is asked, and what it says. `refusal`: the template itself raised it. */
export type Question = { variables: Record<string, unknown> };
export type Reply = { text: string; spans: [number, number][] } | { error: string; refusal: boolean };

const port = parentPort;
if (!port) throw new Error("chat-worker is started by a chat template, as a worker thread");
let compiled: Compiled | undefined;
port.on("message", ({ variables }: Question) => {
  try {
    compiled ??= compileTemplate((workerData as { source: string }).source);
    port.postMessage(compiled(variables) satisfies Reply);
  } catch (error) {
    const { message } = error as Error;
    const reply: Reply = { error: message, refusal: error instanceof TemplateRefusal };
    port.postMessage(reply);
  }
});
port.postMessage("ready");
