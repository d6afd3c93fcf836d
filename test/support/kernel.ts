/** Runs cells in the real kernel, through Jupyter's own client (kernel.py). */
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";

export const ROOT = resolve(__dirname, "..", "..");
export const PYTHON = join(ROOT, ".venv", "bin", "python");

/** Why the tests that need Jupyter cannot run here; undefined where they can. */
export const noJupyter = existsSync(PYTHON) ? undefined : "no .venv with Jupyter: run `npm run setup`";

/** The environment in which Jupyter finds our kernel (that of this checkout, or of a package elsewhere) and none of the user's settings. */
export const jupyterEnvironment = (path = ROOT): NodeJS.ProcessEnv => ({
  ...process.env,
  JUPYTER_PATH: path,
  JUPYTER_NO_CONFIG: "1",
  NODE_OPTIONS: "", // the loader of the tests is not for the kernel
});

export type Output = {
  type: "stream" | "display_data" | "update_display_data" | "execute_result" | "error";
  seconds: number;
  name?: string;
  text?: string;
  data?: Record<string, unknown>;
  transient?: { display_id?: string };
  ename?: string;
  evalue?: string;
  traceback?: string[];
};
export type Run = { status: "ok" | "error" | "aborted"; outputs: Output[]; seconds: number; reply: Record<string, unknown> };

export type Kernel = {
  /** Seconds from the start of the process until it answers. */
  ready: number;
  /** Runs a cell; `interrupt`: seconds after which it is interrupted. */
  run(code: string, options?: { interrupt?: number }): Promise<Run>;
  /** Sends cells at once, as "run all" does; the statuses of their replies. */
  several(codes: string[]): Promise<string[]>;
  /** `position` counts characters; the end of the code where it is left out. */
  complete(code: string, position?: number): Promise<{ matches: string[]; cursor_start: number; cursor_end: number }>;
  inspect(code: string, position?: number): Promise<{ found: boolean; data: Record<string, string> }>;
  info(): Promise<Record<string, unknown>>;
  close(): Promise<void>;
};

/** Starts the kernel as a notebook in `folder` does. `path`: the folder whose `kernels/` holds it. */
export async function startKernel(folder = join(ROOT, "notebooks"), path = ROOT): Promise<Kernel> {
  const child = spawn(PYTHON, [join(__dirname, "kernel.py"), folder], {
    env: jupyterEnvironment(path),
    stdio: ["pipe", "pipe", "inherit"],
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error("kernel.py ended");
    return JSON.parse(value);
  };
  const { ready } = await next();
  const ask = async (request: object) => {
    child.stdin.write(`${JSON.stringify(request)}\n`);
    const { ok, error } = await next();
    if (error) throw new Error(error);
    return ok;
  };
  const end = (code: string) => [...code].length;
  return {
    ready,
    run: (code, { interrupt } = {}) => ask({ kind: "run", code, interrupt_after: interrupt ?? null }),
    several: (codes) => ask({ kind: "several", codes }),
    complete: (code, position = end(code)) => ask({ kind: "complete", code, position }),
    inspect: (code, position = end(code)) => ask({ kind: "inspect", code, position }),
    info: () => ask({ kind: "info" }),
    close: () =>
      new Promise((resolve) => {
        child.once("close", () => resolve());
        child.stdin.end();
      }),
  };
}

/** All text of a cell: streams, plain values and error messages. */
export const textOf = ({ outputs }: Run): string =>
  outputs.map((output) => output.text ?? output.data?.["text/plain"] ?? output.traceback?.join("\n") ?? "").join("");
