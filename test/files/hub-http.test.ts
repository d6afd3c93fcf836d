/** Downloads under faults: whatever the connection, the server or the disk does, only the published bytes are ever published here. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { mock, test } from "node:test";
import { messageOf } from "./helpers";
import { gitSha1, sha256 } from "./hub-server";
import { blobs, expectComplete, get, gets, home, hub, partials, published, repo, weights } from "./hub-setup";

test("resolveModel() refuses a body of the right size with wrong bytes: nothing stays", async () => {
  hub.faults.set("model.safetensors", [{ kind: "wrong" }]);
  const text = await messageOf(get());
  assert.match(
    text,
    /org\/m, file model\.safetensors: what arrived is not what was published \(sha256 [0-9a-f]{64}, expected [0-9a-f]{64}\); it was deleted/,
  );
  assert.deepEqual([published(), partials()], [false, []]);
  assert.equal(fs.existsSync(path.join(repo(), "snapshots", hub.commit, "model.safetensors")), false);
  assert.equal(fs.existsSync(path.join(repo(), "refs", "main")), false);
  expectComplete(await get());
});

test("resolveModel() checks small files by git's hash", async () => {
  hub.faults.set("config.json", [{ kind: "wrong" }]);
  assert.match(await messageOf(get()), /file config\.json: what arrived is not what was published \(git-sha1/);
});

for (const kind of ["cut", "short"] as const)
  test(`resolveModel() after a connection ${kind} at 5,000 bytes: not published, the second call continues there`, async () => {
    hub.faults.set("model.safetensors", [{ kind, after: 5000 }]);
    assert.match(
      await messageOf(get()),
      kind === "cut" ? /the connection broke after 5000 of 100000 bytes/ : /cut off after 5000 of 100000 bytes/,
    );
    assert.equal(published(), false);
    assert.equal(partials().filter((name) => !name.endsWith(".etag")).length, 1);
    expectComplete(await get());
    const [first, second] = gets("model.safetensors");
    assert.deepEqual([first.range, second.range, second.ifRange], [undefined, "bytes=5000-", `"${gitSha1(weights)}"`]);
  });

test("resolveModel() tries again by itself when the connection breaks or the server is busy", async () => {
  hub.faults.set("model.safetensors", [{ kind: "cut", after: 7 }, { kind: "busy" }]);
  expectComplete(await get({ retries: 2 })); // after 1 and 2 seconds
  assert.deepEqual(
    gets("model.safetensors").map(({ range }) => range),
    [undefined, "bytes=7-", "bytes=7-"],
  );
});

test("resolveModel() starts again when the server does not continue: Range ignored, 416, another place", async () => {
  for (const kind of ["ignore-range", "416", "shifted"] as const) {
    fs.rmSync(home, { recursive: true });
    hub.faults.set("model.safetensors", [{ kind: "cut", after: 5000 }, { kind }]);
    await messageOf(get());
    expectComplete(await get());
  }
});

test("resolveModel() never mixes: a part of other content, with or without a changed ETag, is dropped", async () => {
  for (const keepEtag of [true, false]) {
    fs.rmSync(home, { recursive: true, force: true });
    hub.faults.set("model.safetensors", [{ kind: "cut", after: 5000 }]);
    await messageOf(get());
    const partial = path.join(repo(), "blobs", partials().find((name) => !name.endsWith(".etag")) ?? "");
    fs.writeFileSync(partial, Buffer.alloc(6000));
    if (!keepEtag) fs.writeFileSync(`${partial}.etag`, '"of-before"');
    hub.log.length = 0;
    expectComplete(await get());
    assert.deepEqual(
      gets("model.safetensors").map(({ range }) => range),
      keepEtag ? ["bytes=6000-", undefined] : ["bytes=6000-"],
    );
  }
});

test("resolveModel() on a full disk says so, keeps what is there, and goes on later", async () => {
  const open = fs.promises.open;
  let written = 0;
  const mocked = mock.method(fs.promises, "open", async (...args: Parameters<typeof open>) => {
    const handle = await open(...args);
    const write = handle.write.bind(handle) as (...rest: unknown[]) => Promise<{ bytesWritten: number }>;
    const limited = async (chunk: Uint8Array, offset: number, length: number, position: number) => {
      const allowed = Math.min(length, 30_000 - written);
      if (allowed <= 0) throw Object.assign(new Error("ENOSPC: no space left on device, write"), { code: "ENOSPC", syscall: "write" });
      written += allowed;
      return write(chunk, offset, allowed, position);
    };
    if (String(args[0]).includes(sha256(weights))) handle.write = limited as never;
    return handle;
  });
  const text = await messageOf(get());
  assert.match(
    text,
    /org\/m, file model\.safetensors: the disk is full \(ENOSPC\) at 30000 of 100000 bytes in .*set HF_HOME to a larger disk/,
  );
  assert.equal(published(), false);
  mocked.mock.restore();
  expectComplete(await get());
  assert.equal(gets("model.safetensors")[1].range, "bytes=30000-");
});

test("resolveModel() sees before the first byte that the disk is too small", async () => {
  mock.method(fs, "statfsSync", () => ({ bavail: 10, bsize: 1000 }));
  assert.match(await messageOf(get()), /org\/m needs 0\.00 GB in .*, where 0\.00 GB are free.*HF_HOME/);
  assert.deepEqual(gets("model.safetensors"), []);
});

test("resolveModel() stops at once when its signal is aborted, and goes on from there later", async () => {
  hub.faults.set("model.safetensors", [{ kind: "slow", bytesPerSecond: 20_000 }]);
  const stop = new AbortController();
  setTimeout(() => stop.abort(new Error("stopped by the test")), 500);
  const begin = performance.now();
  assert.equal(await messageOf(get({ signal: stop.signal })), "stopped by the test");
  assert.ok(performance.now() - begin < 1500);
  assert.deepEqual(fs.readdirSync(path.join(home, "hub", ".locks", "models--org--m")), []);
  expectComplete(await get());
  assert.match(gets("model.safetensors")[1].range ?? "", /^bytes=[1-9]\d*-$/);
});

/** Another process that resolves the model. */
function other(): { child: ChildProcess; done: Promise<string> } {
  const script = `require("vitrine/files/hub").resolveModel("org/m").then((f) => console.log("FOLDER " + f))`;
  const child = spawn(process.execPath, ["-e", script], { cwd: __dirname, env: process.env, stdio: ["ignore", "pipe", "inherit"] });
  let output = "";
  child.stdout?.on("data", (text) => (output += text));
  return { child, done: new Promise((resolve) => child.on("close", () => resolve(output))) };
}

const until = async (condition: () => boolean): Promise<void> => {
  for (const limit = Date.now() + 15_000; !condition(); ) {
    assert.ok(Date.now() < limit, "waited in vain");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};

test("two processes download one model: one of them is killed, the other takes over lock and part; one blob, right hash", async () => {
  hub.faults.set("model.safetensors", [{ kind: "slow", bytesPerSecond: 20_000 }]);
  const first = other();
  const part = () => partials().find((name) => !name.endsWith(".etag") && name.includes(`-${first.child.pid}.`));
  await until(() => part() !== undefined && fs.statSync(path.join(repo(), "blobs", part() ?? "")).size > 4000);
  const second = get();
  await new Promise((resolve) => setTimeout(resolve, 300));
  assert.equal(gets("model.safetensors").length, 1, "the second waits for the first");
  first.child.kill("SIGKILL");
  assert.equal(await first.done, "");
  expectComplete(await second);
  const [, resumed] = gets("model.safetensors");
  assert.ok(Number(/\d+/.exec(resumed.range ?? "")?.[0]) >= 4000, "it went on from the part of the dead process");
  assert.deepEqual(
    blobs().filter((name) => name.startsWith(sha256(weights))),
    [sha256(weights)],
  );
  assert.deepEqual(fs.readdirSync(path.join(home, "hub", ".locks", "models--org--m")), []);
});

test("two processes download one model: both get it, each byte travels once", async () => {
  hub.faults.set("model.safetensors", [{ kind: "slow", bytesPerSecond: 200_000 }]);
  const [child, folder] = await Promise.all([other().done, get()]);
  assert.equal(child.trim(), `FOLDER ${folder}`);
  assert.equal(gets("model.safetensors").length, 1);
  expectComplete(folder);
});
