import assert from "node:assert/strict";
import fs from "node:fs";
import net from "node:net";
import path from "node:path";
import { mock, test } from "node:test";
import { neededFiles, resolveModel, shippedModels } from "vitrine/files/hub";
import { hubCache } from "vitrine/files/hub-cache";
import { messageOf, scratch } from "./helpers";
import { gitSha1, sha256 } from "./hub-server";
import { blobs, config, expectComplete, get, home, hub, model, repo, start, weights } from "./hub-setup";

test("resolveModel() downloads what a model needs into Python's cache layout, once", async () => {
  const folder = await get();
  assert.equal(folder, path.join(repo(), "snapshots", hub.commit));
  assert.deepEqual(fs.readdirSync(folder).sort(), ["config.json", "model.safetensors", "tokenizer.json"]);
  assert.equal(fs.readlinkSync(path.join(folder, "model.safetensors")), `../../blobs/${sha256(weights)}`);
  assert.equal(fs.readlinkSync(path.join(folder, "config.json")), `../../blobs/${gitSha1(config)}`);
  assert.deepEqual(blobs(), [sha256(weights), gitSha1(config), gitSha1(Buffer.from("{}"))].sort());
  assert.deepEqual(fs.readdirSync(path.join(home, "hub", ".locks", "models--org--m")), []);
  expectComplete(folder);
  hub.log.length = 0;
  assert.equal(await get(), folder);
  assert.equal(hub.log.length, 1, "one question for the commit, no file again");
});

test("resolveModel() asks file by file where the listing has no hashes, and refuses what cannot be checked", async () => {
  await start(model(), { blobs: false });
  expectComplete(await get());
  await start({ ...model(), "config.json": Buffer.from("{} ") }, { blobs: false });
  hub.etags = false;
  assert.match(await messageOf(get()), /file config\.json: the hub tells neither its hash nor its size.*not downloaded/);
});

test("resolveModel() refuses file names that lead out, before anything is written", async () => {
  for (const name of [
    "../../x.json",
    "C:\\x.json",
    "a\\..\\b.json",
    "/etc/x.json",
    "a/../b.json",
    "a//b.json",
    "a\u0000.json",
    "./x.json",
  ]) {
    await start({ ...model(), [name]: config });
    assert.match(await messageOf(get()), /org\/m holds file names that lead out of its folder: .*; nothing was downloaded/, name);
  }
  assert.equal(fs.existsSync(path.join(home, "hub")), false);
});

test("resolveModel() refuses links that lead out of the cache, in a snapshot and as a snapshot", async () => {
  const folder = await get();
  const outside = path.join(scratch, "outside.json");
  fs.writeFileSync(outside, "{}");
  fs.rmSync(path.join(folder, "config.json"));
  fs.symlinkSync(outside, path.join(folder, "config.json"));
  assert.match(await messageOf(get({ offline: true })), /config\.json leads out of the cache, to .*outside\.json/);
  await get();
  assert.equal(fs.readlinkSync(path.join(folder, "config.json")), `../../blobs/${gitSha1(config)}`, "online it is put right");
  assert.equal(fs.readFileSync(outside, "utf8"), "{}");
  fs.rmSync(folder, { recursive: true });
  const elsewhere = fs.mkdtempSync(path.join(scratch, "elsewhere-"));
  fs.symlinkSync(elsewhere, folder);
  assert.match(await messageOf(get()), /leads out of the cache/);
  assert.deepEqual(fs.readdirSync(elsewhere), []);
});

test("resolveModel() offline serves branch, tag and commit from the cache, and opens no connection", async () => {
  const folder = await get();
  await get({ revision: "v1" });
  const connect = mock.method(net.Socket.prototype, "connect");
  process.env.HF_HUB_OFFLINE = "1";
  for (const revision of [undefined, "main", "v1", hub.commit]) assert.equal(await get({ revision }), folder, String(revision));
  assert.match(
    await messageOf(get({ revision: "v2" })),
    /org\/m: offline \(HF_HUB_OFFLINE\), and the cache .* does not have revision "v2"\. Load it once with a connection/,
  );
  assert.match(await messageOf(resolveModel("org/other")), /org\/other: offline .* does not have revision "main"/);
  fs.rmSync(path.join(folder, "model.safetensors"));
  assert.match(await messageOf(get()), /offline .* lacks model\.safetensors or model\.safetensors\.index\.json/);
  assert.equal(connect.mock.callCount(), 0);
});

test("resolveModel() offline names the missing shards of an index", async () => {
  const index = (map: object) => Buffer.from(JSON.stringify({ weight_map: map }));
  const [a, b] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
  await start({ "config.json": config, "model.safetensors.index.json": index({ x: a, y: b }), [a]: weights });
  await get();
  assert.match(await messageOf(get({ offline: true })), /lacks model-00002-of-00002\.safetensors/);
});

test("resolveModel() uses the cached copy when the hub cannot be reached, and says so", async () => {
  const folder = await get();
  await hub.close();
  const warned = mock.method(console, "warn", () => {});
  assert.equal(await get(), folder);
  assert.match(String(warned.mock.calls[0]?.arguments[0]), /cannot be reached: .+\nUsing the copy of org\/m that was downloaded before/);
  assert.match(await messageOf(resolveModel("org/other", { retries: 0 })), /cannot be reached: .*ECONNREFUSED/);
});

const TOKEN = "hf_abcdefSECRET";

test("resolveModel() sends the token to the hub only, never after a redirect to another host", async () => {
  await start(model(), { secret: TOKEN });
  process.env.HF_TOKEN = TOKEN;
  await get();
  const [own, other] = [hub.log.filter(({ cdn }) => !cdn), hub.log.filter(({ cdn }) => cdn)];
  assert.ok(own.length > 2 && own.every(({ token }) => token === `Bearer ${TOKEN}`));
  assert.ok(other.length > 0 && other.every(({ token }) => token === undefined));
});

test("resolveModel() takes the token from its options, HF_TOKEN, or the file that the login writes", async () => {
  await start(model(), { secret: TOKEN });
  fs.writeFileSync(path.join(home, "token"), `${TOKEN}\n`);
  await get();
  fs.writeFileSync(path.join(home, "token"), "hf_wrong");
  assert.match(await messageOf(get()), /answered 401/);
  process.env.HF_TOKEN = TOKEN;
  await get();
  process.env.HF_TOKEN = "hf_wrong";
  await get({ token: TOKEN });
});

test("resolveModel() never shows a token: refused, echoed by the server, malformed, or with a signed address", async () => {
  await start(model(), { secret: "hf_other" });
  process.env.HF_TOKEN = TOKEN;
  const refused = await messageOf(get());
  assert.match(refused, /answered 401 \(Access denied for Bearer \*\*\*\)\. It is private, gated or misspelt\. The token was not accepted/);
  process.env.HF_TOKEN = `${TOKEN}\nX-Injected: 1`;
  const malformed = await messageOf(get());
  assert.match(malformed, /the hub token holds characters that no token has/);
  await start();
  process.env.HF_TOKEN = TOKEN;
  hub.faults.set("model.safetensors", [{ kind: "busy" }]);
  const busy = await messageOf(get());
  assert.match(busy, /answered 503/);
  process.env.HF_ENDPOINT = `http://user:${TOKEN}@127.0.0.1:1`;
  const endpoint = await messageOf(get());
  assert.match(endpoint, /HF_ENDPOINT is not the address of a hub/);
  for (const text of [refused, malformed, busy, endpoint]) assert.doesNotMatch(text, /SECRET|signature/);
});

test("resolveModel() explains a missing model, revision and configuration, and an answer that is no hub's", async () => {
  assert.match(
    await messageOf(get({ revision: "nope" })),
    /org\/m, revision nope: http:.* answered 404 \(Invalid rev id\)\. There is no such model, revision or file/,
  );
  assert.match(await messageOf(resolveModel("org/none", { retries: 0 })), /org\/none, revision main: .* answered 404/);
  for (const revision of ["../x", "a//b", "", "a\\b"])
    assert.match(await messageOf(get({ revision })), /is no name of a branch, tag or commit/);
  await start({ "data.csv": config });
  assert.match(await messageOf(get()), /org\/m is no model that can be loaded: it has no config\.json\. It holds data\.csv/);
  hub.commit = "not-a-commit";
  assert.match(await messageOf(get()), /did not name a commit and files; is it a hub\?/);
});

test("neededFiles() takes configuration, tokenizer and the best weights, and leaves the rest", () => {
  const small = ["config.json", "vocab.txt", "spiece.model", "chat_template.jinja"];
  const rest = ["README.md", "modeling.py", "onnx/model.onnx", "tf_model.h5", "flax_model.msgpack", ".gitattributes", "runs/x.json"];
  const of = (...weights: string[]) => neededFiles([...small, ...rest, ...weights]).filter((name) => !small.includes(name));
  assert.deepEqual(of("model.safetensors", "pytorch_model.bin", "consolidated.safetensors", "model.fp16.safetensors"), [
    "model.safetensors",
  ]);
  assert.deepEqual(of("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"), [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
  ]);
  assert.deepEqual(of("pytorch_model.bin", "training_args.bin"), ["pytorch_model.bin"]);
  assert.deepEqual(of("adapter_model.safetensors", "adapter_config.json"), ["adapter_config.json", "adapter_model.safetensors"]);
  assert.deepEqual(of("additional_chat_templates/tool.jinja", "other.safetensors"), [
    "additional_chat_templates/tool.jinja",
    "other.safetensors",
  ]);
});

test("resolveModel() takes folders as they are and explains names that are neither folder nor id", async () => {
  const folder = fs.mkdtempSync(path.join(scratch, "model-"));
  assert.equal(await resolveModel(folder), folder);
  assert.match(await messageOf(resolveModel(path.join(folder, "none"))), /there is no folder .*none\. Models that come with this package/);
  for (const name of ["./none", "a/b/c", "~/none", "../none/x", "a\\b", "org/..x", "-x/y", "a--b/c", "a\0b", "x".repeat(5000), "org/m?x=1"])
    assert.match(await messageOf(resolveModel(name)), /there is no folder/, name.slice(0, 20));
  assert.match(await messageOf(resolveModel("")), /a model's name is empty/);
  fs.writeFileSync(path.join(folder, "x.safetensors"), "");
  assert.match(await messageOf(resolveModel(path.join(folder, "x.safetensors"))), /is a file; expected the folder that holds config\.json/);
  assert.equal(hub.log.length, 0);
});

test("resolveModel() knows the models of the package by name, and a slip of the pen", async (t) => {
  const [name] = shippedModels();
  if (!name) return t.skip("this build ships no model");
  assert.ok(fs.existsSync(path.join(await resolveModel(name), "config.json")));
  assert.match(await messageOf(resolveModel(`${name.slice(0, -1)}`)), new RegExp(`did you mean "${name}"`));
});

test("hubCache() follows HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME and XDG_CACHE_HOME, in this order", () => {
  assert.equal(hubCache({ HF_HUB_CACHE: "/a", HUGGINGFACE_HUB_CACHE: "/b", HF_HOME: "/c" }), "/a");
  assert.equal(hubCache({ HUGGINGFACE_HUB_CACHE: "/b", HF_HOME: "/c" }), "/b");
  assert.equal(hubCache({ HF_HOME: "/c", XDG_CACHE_HOME: "/d" }), "/c/hub");
  assert.equal(hubCache({ XDG_CACHE_HOME: "/d" }), "/d/huggingface/hub");
  assert.match(hubCache({}), /\.cache\/huggingface\/hub$/);
});
