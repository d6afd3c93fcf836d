/** Our scripts as plain JavaScript: the loader that runs TypeScript takes 35 MB, which are not Vitrine's. */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import ts from "typescript";

const TEST = join(__dirname, "..");
const FOLDERS = ["bench", "support"];

/** Compiles test/bench into a folder of its own below the repository, where `vitrine` is found. `script(name)`: a script's place there. */
export function compiledScripts(): { script(name: string): string; remove(): void } {
  const cache = join(TEST, "..", ".cache");
  mkdirSync(cache, { recursive: true });
  const out = mkdtempSync(join(cache, "bench-"));
  const compilerOptions = { module: ts.ModuleKind.CommonJS, target: ts.ScriptTarget.ES2022, esModuleInterop: true };
  for (const folder of FOLDERS) {
    mkdirSync(join(out, folder));
    for (const name of readdirSync(join(TEST, folder)).filter((file) => file.endsWith(".ts"))) {
      const { outputText } = ts.transpileModule(readFileSync(join(TEST, folder, name), "utf8"), { compilerOptions, fileName: name });
      writeFileSync(join(out, folder, name.replace(/ts$/, "js")), outputText);
    }
  }
  return { script: (name) => join(out, "bench", name.replace(/ts$/, "js")), remove: () => rmSync(out, { recursive: true, force: true }) };
}
