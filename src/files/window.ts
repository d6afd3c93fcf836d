/** Reading parts of an open file: a weight file is larger than memory should hold, and must not change while it is being read. */
import fs from "node:fs";

export type OpenFile = {
  readonly path: string;
  /** Bytes. */
  readonly size: number;
  /** Exactly `length` bytes from `offset`, in an ArrayBuffer of their own. Throws when the file was changed since it was opened. */
  read(offset: number, length: number): Uint8Array;
  /** A part to be read later, also after `close()`. The file's descriptor stays open until every part is released. */
  hold(offset: number, length: number): HeldPart;
  close(): void;
};

/** A part of a file that somebody will read. Renaming or removing the file does no harm: the descriptor still stands for the old one. */
export type HeldPart = {
  /** Bytes from the file's start. */
  readonly offset: number;
  /** The open file. @throws when it was written to since it was opened. */
  descriptor(): number;
  /** Once, when the part will not be read again. */
  release(): void;
};

/** One system call reads at most 2 GiB; more than this in one call gains nothing. */
const WINDOW = 256 * 2 ** 20;

/** Opens a file for reading by parts. It stays open until `close()`. Throws when it is missing or no regular file. */
export function openFile(path: string): OpenFile {
  const fd = open(path);
  const opened = fs.fstatSync(fd, { bigint: true });
  if (!opened.isFile()) {
    fs.closeSync(fd);
    throw new Error(`${path} is not a file`);
  }
  const size = Number(opened.size);
  let closed = false;
  let holders = 0;

  function inside(offset: number, length: number): void {
    if (offset < 0 || length < 0 || offset + length > size)
      throw new RangeError(`${path}: bytes ${offset} to ${offset + length} were asked for, the file has ${size}`);
  }

  function closeIfUnused(): void {
    if (closed && holders === 0) fs.closeSync(fd);
  }

  function check(): void {
    if (closed) throw new Error(`${path} was closed; open it again to read from it`);
    const now = fs.statSync(path, { bigint: true, throwIfNoEntry: false });
    if (!now) throw new Error(`${path} was removed while it was open; load it again`);
    if (now.ino !== opened.ino || now.dev !== opened.dev || now.size !== opened.size || now.mtimeNs !== opened.mtimeNs)
      throw new Error(
        `${path} changed while it was open (${opened.size} bytes then, ${now.size} bytes now): ` +
          "what was read so far and what comes now would not belong together; load it again",
      );
  }

  return {
    path,
    size,
    read(offset, length) {
      check();
      inside(offset, length);
      return readFully(fd, path, offset, length);
    },
    hold(offset, length) {
      check();
      inside(offset, length);
      holders++;
      let held = true;
      return {
        offset,
        descriptor() {
          if (!held) throw new Error(`${path}: this part was released`);
          const now = fs.fstatSync(fd, { bigint: true });
          if (now.size !== opened.size || now.mtimeNs !== opened.mtimeNs)
            throw new Error(
              `${path} was written to (${opened.size} bytes before, ${now.size} bytes now) while a model still had weights to read from it; ` +
                "load the model again. Writing a new file and renaming it into place does no harm.",
            );
          return fd;
        },
        release() {
          if (held) holders--;
          if (held) closeIfUnused();
          held = false;
        },
      };
    },
    close() {
      if (closed) return;
      closed = true;
      closeIfUnused();
    },
  };
}

function open(path: string): number {
  try {
    return fs.openSync(path, "r");
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const reason = code === "ENOENT" ? "does not exist" : code === "EACCES" ? "may not be read by you" : `cannot be opened: ${message}`;
    throw Object.assign(new Error(`${path} ${reason}`, { cause: error }), { code });
  }
}

function readFully(fd: number, path: string, offset: number, length: number): Uint8Array {
  const bytes = allocate(path, length);
  for (let done = 0; done < length; ) {
    const n = fs.readSync(fd, bytes, done, Math.min(WINDOW, length - done), offset + done);
    if (n === 0) throw new Error(`${path} became shorter while it was read (end at byte ${offset + done}); load it again`);
    done += n;
  }
  return bytes;
}

/** Memory that is not zeroed first (it is about to be overwritten), never shared with other buffers. */
function allocate(path: string, length: number): Uint8Array {
  try {
    return new Uint8Array(Buffer.allocUnsafeSlow(length).buffer);
  } catch (error) {
    throw new RangeError(`${path}: ${length} bytes are more than one array can hold in this Node.js (${(error as Error).message})`);
  }
}
