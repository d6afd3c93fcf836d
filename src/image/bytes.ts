/** The bytes of a picture from wherever it is, within limits that hold before anything large is read. */
import { open } from "node:fs/promises";
import { fileURLToPath } from "node:url";

/** Why a picture was refused. */
export type PictureErrorCode = "not-found" | "too-large" | "not-a-picture" | "unsupported" | "damaged" | "network";

/** An error about one picture: `code` for programs, `source` and the message for people. */
export const pictureError = (source: string, code: PictureErrorCode, text: string, cause?: unknown): Error =>
  Object.assign(new Error(`${source}: ${text}`, { cause }), { name: "PictureError", code, source });

/** Limits of one read. */
export type ByteLimits = { maxBytes: number; timeoutMs: number; signal: AbortSignal };

/** Redirects followed before giving up. */
const MAX_REDIRECTS = 3;

const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

function checkSize(source: string, bytes: number, maxBytes: number): void {
  if (bytes > maxBytes) throw pictureError(source, "too-large", `${megabytes(bytes)}, the limit is ${megabytes(maxBytes)} (maxBytes)`);
}

/** The bytes that a path, file URL, http(s) URL or data URL names, and what to call them in messages. */
export async function readBytes(where: string, limits: ByteLimits): Promise<{ bytes: Uint8Array; source: string }> {
  if (/^data:/i.test(where)) return readDataUrl(where, limits.maxBytes);
  if (/^https?:/i.test(where)) return download(new URL(where), limits);
  if (/^file:/i.test(where)) return readLocal(fileURLToPath(where), limits.maxBytes);
  const scheme = /^([a-z][a-z0-9+.-]+):\/\//i.exec(where)?.[1];
  if (scheme) throw pictureError(where, "unsupported", `scheme ${scheme}:; expected a path, file:, http:, https: or data:`);
  return readLocal(where, limits.maxBytes);
}

async function readLocal(path: string, maxBytes: number): Promise<{ bytes: Uint8Array; source: string }> {
  const handle = await open(path, "r").catch((error: NodeJS.ErrnoException) => {
    const text = error.code === "ENOENT" ? `no such file (looked from ${process.cwd()})` : error.message;
    throw pictureError(path, "not-found", text, error);
  });
  try {
    const stat = await handle.stat();
    if (!stat.isFile()) throw pictureError(path, "not-a-picture", "not a file");
    checkSize(path, stat.size, maxBytes);
    return { bytes: await handle.readFile(), source: path };
  } finally {
    await handle.close();
  }
}

function readDataUrl(url: string, maxBytes: number): { bytes: Uint8Array; source: string } {
  const comma = url.indexOf(",");
  const head = url.slice(5, comma === -1 ? 60 : Math.min(comma, 200));
  const source = `data URL (${head.slice(0, 60)})`;
  if (comma === -1) throw pictureError(source, "not-a-picture", "no comma after the media type");
  const isBase64 = /;\s*base64\s*$/i.test(head);
  checkSize(source, isBase64 ? Math.floor(((url.length - comma) * 3) / 4) : 0, maxBytes + 3); // before decoding it
  const body = url.slice(comma + 1);
  if (isBase64 && /[^A-Za-z0-9+/=_\-\s%]/.test(body)) throw pictureError(source, "damaged", "characters that are not base64");
  const bytes = isBase64 ? Buffer.from(decodePercent(body, source), "base64") : Buffer.from(decodePercent(body, source), "latin1");
  checkSize(source, bytes.length, maxBytes);
  return { bytes, source: `data URL (${head.split(";")[0] || "no media type"}, ${bytes.length} bytes)` };
}

/** %XX as the byte XX (one character a byte). */
const decodePercent = (text: string, source: string): string =>
  text.replace(/%(..?)?/g, (_, hex = "") => {
    if (!/^[0-9a-f]{2}$/i.test(hex)) throw pictureError(source, "damaged", `%${hex} is not a byte`);
    return String.fromCharCode(Number.parseInt(hex, 16));
  });

/** Where a URL points, without what may be secret in it. */
const shown = (url: URL): string => `${url.origin}${url.pathname}`;

async function download(start: URL, { maxBytes, timeoutMs, signal }: ByteLimits): Promise<{ bytes: Uint8Array; source: string }> {
  const timeout = AbortSignal.timeout(timeoutMs);
  let url = start;
  try {
    for (let hops = 0; hops <= MAX_REDIRECTS; hops++) {
      const response = await fetch(url, { redirect: "manual", signal: AbortSignal.any([signal, timeout]) });
      const target = response.headers.get("location");
      if (response.status < 300 || response.status > 399 || !target)
        return { bytes: await body(response, shown(start), maxBytes), source: shown(start) };
      await response.body?.cancel();
      url = new URL(target, url);
      if (!/^https?:$/.test(url.protocol))
        throw pictureError(shown(start), "network", `redirects to ${url.protocol}, only http: and https: are followed`);
    }
  } catch (error) {
    if ((error as Error).name === "PictureError") throw error;
    signal.throwIfAborted();
    const cause = (error as Error).cause as Error | undefined;
    const text = timeout.aborted ? `no complete answer within ${timeoutMs / 1000} s (timeoutMs)` : (cause?.message ?? String(error));
    throw pictureError(shown(start), "network", text, error);
  }
  throw pictureError(shown(start), "network", `more than ${MAX_REDIRECTS} redirects`);
}

/** Reads a response as far as the limit allows. */
async function body(response: Response, source: string, maxBytes: number): Promise<Uint8Array> {
  if (!response.ok) {
    await response.body?.cancel();
    throw pictureError(
      source,
      response.status === 404 ? "not-found" : "network",
      `the server answered ${response.status} ${response.statusText}`,
    );
  }
  const chunks: Uint8Array[] = [];
  let total = 0;
  try {
    checkSize(source, Number(response.headers.get("content-length") ?? 0), maxBytes);
    for await (const chunk of response.body ?? []) {
      total += chunk.length;
      checkSize(source, total, maxBytes);
      chunks.push(chunk);
    }
  } finally {
    if (response.body && !response.body.locked) await response.body.cancel();
  }
  return Buffer.concat(chunks);
}
