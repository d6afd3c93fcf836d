/** Folders and pretended programs for the set-up's tests. */
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import type { TestContext } from "node:test";

export const ROOT = resolve(__dirname, "..", "..");

/** A fresh folder whose name holds what breaks careless quoting: spaces, a comma, a quote, a dollar sign. Removed after the test. */
export function oddFolder(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), "vitrine set-up, it's $HOME "));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Writes files below `folder`, making folders on the way. */
export function write(folder: string, files: Record<string, string>): void {
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(join(folder, path, ".."), { recursive: true });
    writeFileSync(join(folder, path), text);
  }
}

/** A folder of shell scripts to stand as PATH; beside them only /bin's basics are found. */
export function programs(folder: string, scripts: Record<string, string>): { PATH: string } {
  const bin = join(folder, "bin");
  mkdirSync(bin, { recursive: true });
  for (const [name, body] of Object.entries(scripts)) {
    writeFileSync(join(bin, name), `#!/bin/sh\n${body}\n`);
    chmodSync(join(bin, name), 0o755);
  }
  return { PATH: bin };
}

/** Where the steps' lines go in a test: kept as text. */
export function sink(): { text: string; isTTY: boolean; columns: number; write(text: string): boolean } {
  return {
    text: "",
    isTTY: false,
    columns: 80,
    write(text) {
      this.text += text;
      return true;
    },
  };
}
