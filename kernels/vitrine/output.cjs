// What a cell writes. Text is gathered for some milliseconds, since Jupyter drops output above a thousand messages a second.
const jupyter = require("tslab/dist/jupyter");

const GATHER = 30; // ms
const FULL = 16_384; // characters

/** Directs stdout, stderr and displays to `publish(messageType, content)`, that of the cell that runs or ran last. */
function createOutput() {
  let publish = () => {};
  let text = "";
  let stream = "stdout";
  let since = 0;
  let timer;
  const flush = () => {
    clearTimeout(timer);
    timer = undefined;
    if (text) publish("stream", { name: stream, text });
    text = "";
  };
  const write = (name, chunk) => {
    if (name !== stream) flush();
    if (!text) since = performance.now();
    stream = name;
    text += chunk;
    if (text.length > FULL || performance.now() - since > GATHER) flush();
    else timer ??= setTimeout(flush, GATHER);
  };
  const redirect = (name) => (chunk, encoding, callback) => {
    write(name, typeof chunk === "string" ? chunk : Buffer.from(chunk).toString("utf8"));
    const done = typeof encoding === "function" ? encoding : callback;
    if (done) process.nextTick(done);
    return true;
  };
  const display = (bundle, { id, update = false, metadata = {} } = {}) => {
    flush();
    publish(update ? "update_display_data" : "display_data", { data: bundle, metadata, transient: id ? { display_id: id } : {} });
  };
  return {
    flush,
    write,
    display,
    /** Starts the output of a cell. */
    direct(next) {
      flush();
      publish = next;
      process.stdout.write = redirect("stdout");
      process.stderr.write = redirect("stderr");
      // tslab's own `display` goes through this.
      jupyter.lastWriteDisplayData = (content, update) => {
        flush();
        next(update ? "update_display_data" : "display_data", content);
      };
    },
  };
}

module.exports = { createOutput };
