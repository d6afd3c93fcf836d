/** A stand-in for the hub: the part of its HTTP API that a download uses, with faults on request. Runs in the test's process. */
import { createHash } from "node:crypto";
import http from "node:http";
import type { AddressInfo } from "node:net";

/** What goes wrong with the answers for one file. Each is used once, unless `always`. */
export type Fault =
  | { kind: "cut"; after: number } // the connection breaks after so many bytes
  | { kind: "short"; after: number } // a chunked answer that ends early, in order
  | { kind: "wrong" } // right size, wrong bytes
  | { kind: "ignore-range" }
  | { kind: "416" }
  | { kind: "shifted" } // 206 from another place than asked
  | { kind: "busy" } // 503
  | { kind: "slow"; bytesPerSecond: number };

export type FakeHub = {
  url: string;
  commit: string;
  files: Record<string, Buffer>;
  faults: Map<string, Fault[]>;
  /** Names that are stored as large files (sha256), behind a redirect to another host. */
  large: Set<string>;
  /** "METHOD path", with the range if there was one, and the token if one came. */
  log: { line: string; range?: string; ifRange?: string; token?: string; cdn: boolean }[];
  /** Whether the listing has sizes and hashes. */
  blobs: boolean;
  /** Whether answers carry the hash of their file. */
  etags: boolean;
  /** The token without which all is 401; undefined: public. */
  secret?: string;
  close(): Promise<void>;
};

export const sha256 = (data: Buffer): string => createHash("sha256").update(data).digest("hex");
export const gitSha1 = (data: Buffer): string => createHash("sha1").update(`blob ${data.length}\0`).update(data).digest("hex");

/** Starts the hub and, on another port (so another origin), the host that large files are on. */
export async function startHub(files: Record<string, Buffer>, options: Partial<Pick<FakeHub, "blobs" | "secret">> = {}): Promise<FakeHub> {
  const hub = {
    files,
    faults: new Map(),
    log: [],
    blobs: true,
    etags: true,
    commit: "1".repeat(40),
    ...options,
  } as Partial<FakeHub> as FakeHub;
  hub.large = new Set(Object.keys(files).filter((name) => /\.(safetensors|bin)$/.test(name)));
  const cdn = await listen((request, response) => {
    note(hub, request, true);
    send(hub, decodeURIComponent((request.url ?? "").slice(1).split("?")[0]), request, response);
  });
  const main = await listen((request, response) => {
    note(hub, request, false);
    answer(hub, cdn.url, request, response);
  });
  hub.url = main.url;
  hub.close = async () => {
    await Promise.all([main.close(), cdn.close()]);
  };
  return hub;
}

function listen(handler: http.RequestListener): Promise<{ url: string; close(): Promise<void> }> {
  const server = http.createServer(handler);
  return new Promise((resolve) =>
    server.listen(0, "127.0.0.1", () => {
      const close = async () => {
        const closed = new Promise((done) => server.close(done));
        server.closeAllConnections();
        await closed;
      };
      resolve({ url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, close });
    }),
  );
}

function note(hub: FakeHub, { method, url, headers }: http.IncomingMessage, cdn: boolean): void {
  hub.log.push({
    line: `${method} ${url}`,
    range: headers.range,
    ifRange: headers["if-range"] as string,
    token: headers.authorization,
    cdn,
  });
}

function answer(hub: FakeHub, cdn: string, request: http.IncomingMessage, response: http.ServerResponse): void {
  const { pathname } = new URL(request.url ?? "", "http://x");
  if (hub.secret && request.headers.authorization !== `Bearer ${hub.secret}`) {
    response.writeHead(401, { "x-error-code": "GatedRepo", "x-error-message": `Access denied for ${request.headers.authorization}` }).end();
    return;
  }
  const api = /^\/api\/models\/(org\/m)\/revision\/(.+)$/.exec(pathname);
  if (api) return void list(hub, decodeURIComponent(api[2]), response);
  const [, commit, name] = /^\/org\/m\/resolve\/([^/]+)\/(.+)$/.exec(pathname) ?? [];
  const data = hub.files[decodeURIComponent(name ?? "")];
  if (commit !== hub.commit || !data) return void response.writeHead(404, { "x-error-code": "EntryNotFound" }).end();
  const plain = decodeURIComponent(name);
  if (!hub.large.has(plain)) return void send(hub, plain, request, response);
  const headers = {
    location: `${cdn}/${name}?signature=secret`,
    "x-linked-etag": `"${sha256(data)}"`,
    "x-linked-size": data.length,
    etag: '"other"',
  };
  response.writeHead(302, headers).end();
}

function list(hub: FakeHub, revision: string, response: http.ServerResponse): void {
  if (!["main", "v1", hub.commit].includes(revision)) return void response.writeHead(404, { "x-error-message": "Invalid rev id" }).end();
  const siblings = Object.entries(hub.files).map(([rfilename, data]) => {
    if (!hub.blobs) return { rfilename };
    const lfs = hub.large.has(rfilename) ? { sha256: sha256(data), size: data.length } : undefined;
    return { rfilename, size: data.length, blobId: gitSha1(data), lfs };
  });
  response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify({ sha: hub.commit, siblings }));
}

function send(hub: FakeHub, name: string, request: http.IncomingMessage, response: http.ServerResponse): void {
  let data = hub.files[name];
  const etag = `"${gitSha1(data)}"`;
  if (request.method === "HEAD") return void response.writeHead(200, { ...(hub.etags && { etag }), "content-length": data.length }).end();
  const fault = hub.faults.get(name)?.shift();
  if (fault?.kind === "busy") return void response.writeHead(503).end();
  if (fault?.kind === "wrong") data = Buffer.alloc(data.length, 0x2a);
  let [start, status] = [0, 200];
  const range = /^bytes=(\d+)-$/.exec(request.headers.range ?? "");
  const same = (request.headers["if-range"] ?? etag) === etag;
  if (fault?.kind === "416") return void response.writeHead(416, { "content-range": `bytes */${data.length}` }).end();
  if (range && same && fault?.kind !== "ignore-range") [start, status] = [Number(range[1]), 206];
  if (fault?.kind === "shifted") start = Math.max(0, start - 1);
  const body = data.subarray(start);
  const headers: http.OutgoingHttpHeaders = {
    etag,
    ...(status === 206 && { "content-range": `bytes ${start}-${data.length - 1}/${data.length}` }),
  };
  if (fault?.kind !== "short") headers["content-length"] = body.length;
  response.writeHead(status, headers);
  if (fault?.kind === "short") return void response.end(body.subarray(0, fault.after));
  if (fault?.kind === "cut") return void response.write(body.subarray(0, fault.after), () => setTimeout(() => response.destroy(), 20));
  if (fault?.kind === "slow") return void trickle(response, body, fault.bytesPerSecond);
  response.end(body);
}

function trickle(response: http.ServerResponse, body: Buffer, bytesPerSecond: number): void {
  let at = 0;
  const timer = setInterval(() => {
    const part = body.subarray(at, at + bytesPerSecond / 20);
    at += part.length;
    response.write(part);
    if (at >= body.length) {
      clearInterval(timer);
      response.end();
    }
  }, 50);
  response.on("close", () => clearInterval(timer));
}
