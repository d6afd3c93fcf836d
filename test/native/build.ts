/** Builds a C++ check with a sanitizer and runs it. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findCompiler } from "../../src/setup/binding.mjs";

const NATIVE = join(__dirname, "..", "..", "src", "native");

/** A source of src/native by its name. */
export const native = (file: string): string => join(NATIVE, file);

/** Sources of src/native that are needed by every kernel. */
export const GENERAL = ["kernel.cc", "pool.cc", "processor.cc"].map(native);

/** Kernels' sources, all but the binding. */
export const kernelSources = (): string[] =>
  readdirSync(NATIVE)
    .filter((file) => file.endsWith(".cc") && file !== "binding.cc")
    .map(native);

export type Check = { sources: string[]; sanitize: string; flags?: string[]; environments: NodeJS.ProcessEnv[] };

/**
 * Compiles `sources` with `-fsanitize=<sanitize>` and runs the program once in each environment. Gives what each run printed, with its exit
 * code; or { skip } where there is no C++ compiler that has the sanitizer.
 */
export async function runCheck({ sources, sanitize, flags = [], environments }: Check): Promise<{ skip?: string; runs: string[] }> {
  const compiler = await findCompiler("python3");
  const folder = mkdtempSync(join(tmpdir(), "vitrine-check-"));
  try {
    const program = join(folder, "check");
    const compile = (args: string[]) =>
      spawnSync(compiler.command, [...compiler.first, ...args, "-o", program, "-pthread"], { encoding: "utf8" });
    const empty = spawnSync(compiler.command, [...compiler.first, "-x", "c++", "-", `-fsanitize=${sanitize}`, "-o", program], {
      input: "int main() {}",
      encoding: "utf8",
    });
    if (empty.status !== 0) return { skip: `${compiler.command} cannot build with -fsanitize=${sanitize}`, runs: [] };
    const built = compile(["-std=c++17", "-O1", "-w", `-fsanitize=${sanitize}`, "-fno-sanitize-recover=all", ...flags, ...sources]);
    if (built.status !== 0) throw new Error(`${sources.join(" ")} does not compile:\n${built.stderr.slice(0, 4000)}`);
    const runs = environments.map((env) => {
      const { status, signal, stdout, stderr } = spawnSync(program, [], { env: { ...process.env, ...env }, encoding: "utf8" });
      return `${stdout.trim()} (${signal ?? status})${stderr ? `\n${stderr.slice(0, 4000)}` : ""}`;
    });
    return { runs };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
