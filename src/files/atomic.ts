/** Writing a file so that a reader, or a crash, only ever meets the old file or the complete new one. */
import { randomBytes } from "node:crypto";
import fs from "node:fs";
import path from "node:path";

type Content = string | Uint8Array | ((handle: fs.promises.FileHandle) => Promise<void>);

/**
 * Writes `data` beside `file` under a temporary name, brings it to the disk (fsync), and renames it into place.
 * A function gets the open handle, for content that should not be in memory at once.
 * When anything fails the temporary file is removed and what stood at `file` before is untouched.
 *
 * @throws Error naming the file, with the reason (`code` and `cause` are those of the system's error).
 */
export async function writeFileAtomic(file: string, data: Content): Promise<void> {
  const temporary = `${file}.${process.pid}.${randomBytes(4).toString("hex")}.tmp`;
  try {
    const handle = await fs.promises.open(temporary, "wx");
    try {
      if (typeof data === "function") await data(handle);
      else await handle.writeFile(data);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await fs.promises.rename(temporary, file);
  } catch (error) {
    await fs.promises.rm(temporary, { force: true }).catch(() => {});
    throw explain(file, error as NodeJS.ErrnoException);
  }
  await syncFolder(path.dirname(file));
}

/** Brings a rename in this folder to the disk. Folders cannot be synced on every system; there the rename itself has to do. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await fs.promises.open(folder, "r").catch(() => undefined);
  await handle?.sync().catch(() => {});
  await handle?.close();
}

/** What a person can do about the usual reasons why a write fails. */
const ADVICE: Record<string, string> = {
  ENOSPC: "the disk is full; free some space or choose another folder",
  EDQUOT: "your disk quota is used up; free some space or choose another folder",
  EROFS: "the file system is read-only; choose another folder",
  EACCES: "you may not write there; choose another folder or change its permissions",
  EPERM: "you may not write there; choose another folder or change its permissions",
  ENOENT: "its folder does not exist; create it first",
  EISDIR: "there is a folder of that name",
};

/** The error for a failed write: file, reason, advice. Errors that are not the system's (of the function that writes) pass unchanged. */
function explain(file: string, error: NodeJS.ErrnoException): Error {
  if (!error.code || !error.syscall) return error;
  const advice = ADVICE[error.code] ?? error.message;
  const explained = new Error(`${file} was not written: ${advice} (${error.code}). What was there before is unchanged.`, { cause: error });
  return Object.assign(explained, { code: error.code });
}
