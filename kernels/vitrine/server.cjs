// Jupyter's protocol around tslab's sockets: one cell after the other, errors as error messages, cells behind a failed one given up.
const { ZmqServer } = require("tslab/dist/jupyter");

const ANSWERED = new Set([
  "kernel_info_request",
  "execute_request",
  "is_complete_request",
  "inspect_request",
  "complete_request",
  "comm_info_request",
  "shutdown_request",
]);

class Server extends ZmqServer {
  #runner;
  #last = Promise.resolve();
  #generation = 0;
  #skip = false;
  #Message;

  constructor(handler, configPath, runner) {
    super(handler, configPath);
    this.#runner = runner;
    exitWithParent();
  }

  bindSocket(socket, port) {
    socket.sendHighWaterMark = 0; // a burst of output is kept, not dropped
    return super.bindSocket(socket, port);
  }

  handleShellMessage(socket, ...frames) {
    const type = typeOf(frames);
    if (type === "history_request") return Promise.resolve(this.#answerHistory(socket, frames));
    if (!ANSWERED.has(type)) return Promise.resolve(); // widgets and debuggers ask; tslab would write a warning into the cell
    if (type !== "execute_request") return super.handleShellMessage(socket, ...frames);
    const generation = this.#generation;
    this.#last = this.#last
      .then(() => {
        this.#skip = generation < this.#generation;
        return super.handleShellMessage(socket, ...frames);
      })
      .catch((error) => this.#runner.report("the kernel failed", error));
    return this.#last;
  }

  async handleExecute(socket, message) {
    const publish = (type, content) => this.#send(this.iopub, message, type, content);
    const { code, stop_on_error = true } = message.content;
    if (this.#skip) return this.#send(socket, message, "execute_reply", { status: "aborted" });
    const { count, value, failure } = await this.#runner.run(code, publish);
    if (value) publish("execute_result", { execution_count: count, data: value, metadata: {} });
    if (failure) {
      publish("error", failure);
      if (stop_on_error) await this.#giveUpWaiting();
    }
    const content = failure ? { status: "error", ...failure } : { status: "ok", payload: [], user_expressions: {} };
    this.#send(socket, message, "execute_reply", { ...content, execution_count: count });
  }

  handleCommInfoRequest(socket, message) {
    this.#send(socket, message, "comm_info_reply", { status: "ok", comms: {} });
  }

  publishStatus(status, message) {
    this.#Message = message.constructor; // tslab does not export it, and the first message comes this way
    super.publishStatus(status, message);
  }

  /** tslab knows no history, but JupyterLab waits for one before it calls the kernel idle. */
  #answerHistory(socket, frames) {
    const message = this.#Message?.fromRaw(this.connInfo.key, frames);
    if (!message) return;
    this.publishStatus("busy", message);
    this.#send(socket, message, "history_reply", { status: "ok", history: [] });
    this.publishStatus("idle", message);
  }

  /** The cells that were sent before the failure was known do not run: those here, and those still in the socket. */
  async #giveUpWaiting() {
    await new Promise((resolve) => setTimeout(resolve, 30));
    this.#generation++;
  }

  #send(socket, message, type, content) {
    const reply = message.createReply();
    reply.header.msg_type = type;
    reply.content = content;
    reply.signAndSend(this.connInfo.key, socket);
  }

  close() {
    super.close();
    // Threads and timers of cells must not keep a kernel alive that was shut down; the reply needs a moment to leave.
    setTimeout(() => process.exit(0), 100);
  }
}

/** The type of a message, read without checking its signature (that is done by who answers it). */
function typeOf(frames) {
  const start = frames.findIndex((frame) => frame.toString("latin1") === "<IDS|MSG>");
  try {
    return JSON.parse(frames[start + 2].toString()).msg_type;
  } catch {
    return undefined;
  }
}

/** A kernel whose Jupyter was killed ends too. */
function exitWithParent() {
  if (!process.env.JPY_PARENT_PID) return;
  const parent = process.ppid;
  setInterval(() => process.ppid !== parent && process.exit(1), 2000).unref();
}

module.exports = { Server };
