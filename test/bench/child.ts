/** Child processes that answer with one line of JSON. */
import { type ChildProcess, spawn } from "node:child_process";

/** How much of a child's stderr an error shows. */
const SHOWN = 2000;
/** Milliseconds between asking a child to end and ending it. */
const PATIENCE = 2000;

const running = new Set<ChildProcess>();
process.on("exit", () => running.forEach((child) => child.kill("SIGKILL")));

/**
 * Runs a command and parses the last line of its output. When `signal` aborts, the child (and only it) is ended.
 *
 * @param what how errors call it
 * @throws with the command's own last lines when it fails, or its answer is no JSON
 */
export function answer<T>(
  what: string,
  command: string,
  args: string[],
  options: { env?: NodeJS.ProcessEnv; signal: AbortSignal },
): Promise<T> {
  options.signal.throwIfAborted();
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, ...options.env } });
    running.add(child);
    let [out, err, timer] = ["", "", undefined as NodeJS.Timeout | undefined];
    child.stdout.setEncoding("utf8").on("data", (text) => (out += text));
    child.stderr.setEncoding("utf8").on("data", (text) => (err = (err + text).slice(-SHOWN)));
    const stop = () => {
      child.kill("SIGTERM");
      timer = setTimeout(() => child.kill("SIGKILL"), PATIENCE);
    };
    options.signal.addEventListener("abort", stop, { once: true });
    child.on("error", (error: NodeJS.ErrnoException) => {
      running.delete(child);
      reject(error.code === "ENOENT" ? new Error(`${what}: there is no command ${command}`) : error);
    });
    child.on("close", (code, name) => {
      running.delete(child);
      clearTimeout(timer);
      options.signal.removeEventListener("abort", stop);
      if (options.signal.aborted) return reject(options.signal.reason);
      if (code !== 0)
        return reject(
          new Error(`${what} failed (${name ?? `exit code ${code}`}):\n${err.trim() || out.trim().slice(-SHOWN)}${hint(name)}`),
        );
      try {
        resolve(JSON.parse(lastLine(out)) as T);
      } catch {
        reject(new Error(`${what} did not answer with a line of JSON, but with: ${out.trim().slice(-SHOWN) || "nothing"}`));
      }
    });
  });
}

const hint = (signal: NodeJS.Signals | null) =>
  signal === "SIGKILL" ? "\nThe system ended it: probably there was not enough memory." : "";

/** The last line that is not empty. */
export const lastLine = (text: string): string => text.trimEnd().split("\n").pop() ?? "";
