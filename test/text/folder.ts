/** Checkpoint folders made for a test. */
import { cpSync, writeFileSync } from "node:fs";

import { join } from "node:path";
import { scratch } from "../support/scratch";

/** A folder with copies of files (a path), and files of this text or JSON. */
export function folder(files: Record<string, string | object>): string {
  const path = scratch();
  for (const [name, from] of Object.entries(files)) {
    if (typeof from === "string" && from.startsWith("/")) cpSync(from, join(path, name));
    else writeFileSync(join(path, name), typeof from === "string" ? from : JSON.stringify(from));
  }
  return path;
}
