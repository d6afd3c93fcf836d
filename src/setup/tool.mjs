// Starting other programs: always an argument list, never a shell, so that a path with spaces or quotes is one argument.
import { spawn } from "node:child_process";

/** A program that could not be started or ended badly; `lines` are the last lines it printed itself. */
export class ToolError extends Error {
  constructor(command, outcome, lines) {
    super(`${command} ${outcome}`);
    this.name = "ToolError";
    this.lines = lines;
  }
}

const KEPT = 400; // lines of output kept in memory: enough for a compiler's list of errors

/**
 * Runs `file` with `args` and gives its output (both streams, as text).
 * options: cwd, env (added to ours), timeout in ms, signal, show (true: output goes to the terminal as it comes),
 * onLine(line). Throws ToolError when it cannot start, ends with another code than 0, or runs past the timeout.
 *
 * @param {string} file
 * @param {string[]} args
 * @param {{ cwd?: string, env?: object, timeout?: number, signal?: AbortSignal, show?: boolean, onLine?: (line: string) => void }} [options]
 * @returns {Promise<string>}
 */
export function tool(file, args, { cwd, env = {}, timeout, signal, show = false, onLine } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(file, args, {
      cwd,
      env: { ...process.env, ...env },
      signal,
      stdio: ["ignore", show ? "inherit" : "pipe", show ? "inherit" : "pipe"],
    });
    const lines = [];
    const take = lineReader((line) => {
      lines.push(line);
      if (lines.length > KEPT) lines.shift();
      onLine?.(line);
    });
    child.stdout?.on("data", take.data);
    child.stderr?.on("data", take.data);
    let late = false;
    const expire = () => {
      late = true;
      child.kill("SIGKILL");
    };
    const timer = timeout ? setTimeout(expire, timeout) : undefined;
    const fail = (outcome) => reject(new ToolError(file, outcome, lines));
    child.on("error", (error) => {
      clearTimeout(timer);
      fail(error.code === "ENOENT" ? "was not found" : `could not be started: ${error.message}`);
    });
    child.on("close", (code, killedBy) => {
      clearTimeout(timer);
      take.end();
      if (code === 0) resolve(lines.join("\n"));
      else if (late) fail(`did not end within ${timeout / 1000} s`);
      else fail(killedBy ? `was ended by ${killedBy}` : `ended with code ${code}`);
    });
  });
}

/** Like tool(), but gives undefined instead of an error: for questions such as "which version are you?". */
export async function ask(file, args, options = {}) {
  try {
    return (await tool(file, args, { timeout: 20_000, ...options })).trim();
  } catch {
    return undefined;
  }
}

function lineReader(onLine) {
  let rest = "";
  const clean = (text) => text.replace(/\x1b\[[0-9;?]*[A-Za-z]/g, "").trimEnd(); // no colour codes in a report
  return {
    data(chunk) {
      const parts = (rest + chunk).split(/[\r\n]+/);
      rest = parts.pop();
      for (const part of parts) if (clean(part)) onLine(clean(part));
    },
    end() {
      if (clean(rest)) onLine(clean(rest));
    },
  };
}
