// What a person sees: one line a step, one paragraph a failure.
import { ToolError } from "./tool.mjs";

/** A failure with what to do about it. lines: the tool's own last lines. */
export class SetupError extends Error {
  /**
   * @param {string} message
   * @param {{ lines?: string[], advice?: string }} [details]
   */
  constructor(message, { lines = [], advice = "" } = {}) {
    super(message);
    this.name = "SetupError";
    this.lines = lines;
    this.advice = advice;
  }
}

/** What of a terminal (or of a pipe, or a test's sink) is used here. @typedef {{ write(text: string): unknown, isTTY?: boolean, columns?: number }} Out */

const SHOWN = 12;

/** One paragraph: what failed, the tool's own last lines, what to do. No stack trace. step: the name of the step, if any. */
export function failureParagraph(error, { step, advice } = {}) {
  const lines = (error.lines ?? []).slice(-(error.keep ?? SHOWN));
  const said = lines.length ? [" It said:", ...lines.map((line) => `  ${line}`)] : [];
  const todo = error.advice || advice;
  const head = `${step ? `Set-up stopped at "${step}": ` : ""}${sentence(error.message)}`;
  return [head + (said.shift() ?? ""), ...said, ...(todo ? [`What to do: ${todo}`] : [])].join("\n");
}

function sentence(text) {
  return /[.!?:]$/.test(text) ? text : `${text}.`;
}

/** Wraps an error of a tool with advice of the caller; other errors pass unchanged. */
export function withAdvice(error, advice) {
  if (!(error instanceof ToolError)) return error;
  return new SetupError(error.message, { lines: error.lines, advice });
}

/** 1234567 -> "1.2 MB" (decimal, as disks and downloads are sold). */
export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) [bytes, unit] = [bytes / 1000, unit + 1];
  return `${unit && bytes < 10 ? bytes.toFixed(1) : Math.round(bytes)} ${units[unit]}`;
}

/** Milliseconds -> "0.4 s", "12 s", "2 min 5 s". */
export function duration(ms) {
  const seconds = ms / 1000;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  return seconds < 60 ? `${Math.round(seconds)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/**
 * A line that follows one step: on a terminal it is redrawn each half second with the time and the tool's latest words,
 * elsewhere it is one line at the start and one at the end.
 *
 * @param {string} label
 * @param {Out} out
 */
export function stepLine(label, out = process.stderr) {
  const started = Date.now();
  let word = "";
  const draw = () => {
    const text = `${label} … ${duration(Date.now() - started)}  ${word}`;
    out.write(`\r\x1b[K${text.slice(0, (out.columns || 80) - 1)}`);
  };
  const timer = out.isTTY ? setInterval(draw, 500) : undefined;
  timer?.unref();
  if (out.isTTY) draw();
  else out.write(`${label} …\n`);
  const close = (text) => {
    clearInterval(timer);
    out.write(`${out.isTTY ? "\r\x1b[K" : ""}${text}\n`);
  };
  return {
    word: (text) => (word = text),
    done: (note) => close(`${label}: done in ${duration(Date.now() - started)}${note ? `, ${note}` : ""}`),
    failed: (verb = "failed") => close(`${label}: ${verb} after ${duration(Date.now() - started)}`),
  };
}
