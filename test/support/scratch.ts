/** Folders that are gone after the tests of a file. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after } from "node:test";

const folders: string[] = [];
after(() => folders.forEach((folder) => rmSync(folder, { recursive: true, force: true })));

/** A new empty folder. */
export function scratch(): string {
  folders.push(mkdtempSync(join(tmpdir(), "vitrine-test-")));
  return folders[folders.length - 1];
}
