/** Python's own readers and writers against ours. Runs where VITRINE_PEER_PYTHON names a Python with torch and safetensors. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { DTYPE_BYTES, type Dtype, fromFloat32, toFloat32, toInt32 } from "vitrine/files/dtype";
import { openSafetensors, saveSafetensors } from "vitrine/files/safetensors";
import { resolveModel } from "vitrine/files/hub";
import { openTorch } from "vitrine/files/torch";
import { accepted, rejected, rejectedByUsAlone } from "./headers";
import { message, scratch } from "./helpers";
import { startHub } from "./hub-server";

const python = process.env.VITRINE_PEER_PYTHON;
const skip = python ? false : "VITRINE_PEER_PYTHON is not set: no Python with torch and safetensors to compare with";

/** Runs a script in the scratch folder; it prints JSON. */
const run = (script: string): unknown => JSON.parse(execFileSync(python ?? "", ["-c", script], { cwd: scratch, encoding: "utf8" }));

test("openSafetensors() judges every header as the reference reader does", { skip }, () => {
  const all = [...rejected, ...accepted, ...rejectedByUsAlone];
  all.forEach(({ content }, i) => fs.writeFileSync(path.join(scratch, `header-${i}`), content));
  const verdicts = run(`
import json
from safetensors import safe_open
def ok(i):
    try:
        with safe_open(f"header-{i}", "np") as f: list(f.keys())
        return True
    except Exception: return False
print(json.dumps([ok(i) for i in range(${all.length})]))`) as boolean[];
  all.forEach(({ name }, i) => {
    const ours = message(() => openSafetensors(path.join(scratch, `header-${i}`)).close()) === "";
    const known = rejectedByUsAlone.some((c) => c.name === name);
    assert.equal(ours, known ? false : verdicts[i], name);
    if (known) assert.equal(verdicts[i], true, `${name}: the reference refuses it now; move it to the list of both`);
  });
});

test("saveSafetensors() writes what Python's safetensors reads, every dtype", { skip }, async () => {
  const values = new Float32Array([0, 1.5, -2.25, 1e-3, 70000, 1e-7]);
  const floats = (["F64", "F32", "F16", "BF16"] as const).map((dtype) => ({
    name: dtype,
    dtype: dtype as Dtype,
    shape: [2, 3],
    data: fromFloat32(values, dtype),
  }));
  const wholes = (["I64", "I32", "I16", "I8", "U8", "BOOL"] as const).map((dtype) => {
    const data = new Uint8Array(3 * DTYPE_BYTES[dtype]);
    for (let i = 0; i < 3; i++) data[i * DTYPE_BYTES[dtype]] = i % 2;
    return { name: dtype, dtype: dtype as Dtype, shape: [3], data };
  });
  await saveSafetensors(path.join(scratch, "ours.safetensors"), [
    ...floats,
    ...wholes,
    { name: "empty", dtype: "F32", shape: [0, 4], data: new Uint8Array(0) },
  ]);
  const got = run(`
import json, torch
from safetensors.torch import load_file
from safetensors import safe_open
t = load_file("ours.safetensors")
v = torch.tensor([0, 1.5, -2.25, 1e-3, 70000, 1e-7], dtype=torch.float32).reshape(2, 3)
kinds = dict(F64=torch.float64, F32=torch.float32, F16=torch.float16, BF16=torch.bfloat16)
whole = dict(I64=torch.int64, I32=torch.int32, I16=torch.int16, I8=torch.int8, U8=torch.uint8, BOOL=torch.bool)
same = {k: bool(t[k].dtype == d and torch.equal(t[k], v.to(d))) for k, d in kinds.items()}
same |= {k: bool(t[k].dtype == d and t[k].tolist() == torch.tensor([0, 1, 0]).to(d).tolist()) for k, d in whole.items()}
same["empty"] = list(t["empty"].shape) == [0, 4]
with safe_open("ours.safetensors", "pt") as f: same["metadata"] = f.metadata() == {"format": "pt"}
print(json.dumps(same))`) as Record<string, boolean>;
  for (const [name, same] of Object.entries(got)) assert.equal(same, true, name);
  assert.equal(Object.keys(got).length, 12);
});

test("fromFloat32() and toFloat32() round and widen as torch does, on random bits", { skip }, () => {
  run(`
import json, torch
bits = torch.randint(-2**31, 2**31, (200000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
x = bits.view(torch.float32)
small = torch.randn(100000, generator=torch.Generator().manual_seed(1)) * 1e-5
x = torch.cat([x[~x.isnan()], small])
from safetensors.torch import save_file
save_file(dict(x=x, f16=x.half(), bf16=x.bfloat16()), "round.safetensors")
print("null")`);
  const { tensors, close } = openSafetensors(path.join(scratch, "round.safetensors"));
  const source = (name: string) => tensors.get(name) ?? assert.fail(name);
  const x = toFloat32(source("x"));
  for (const [name, dtype] of [
    ["f16", "F16"],
    ["bf16", "BF16"],
  ] as const) {
    assert.deepEqual(Buffer.from(fromFloat32(x, dtype)), Buffer.from(source(name).read()), dtype);
    assert.deepEqual(Buffer.from(fromFloat32(toFloat32(source(name)), dtype)), Buffer.from(source(name).read()), dtype);
  }
  close();
});

test("openTorch() reads what this Python's torch.save writes, zip and old format, protocols 2 to 5", { skip }, () => {
  run(`
import json, torch
from collections import OrderedDict
base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
state = dict(state_dict=OrderedDict(t=base.transpose(0, 2), s=base[:, 1:, ::2], half=base.half(), bf16=base.bfloat16(), i64=torch.tensor([-1, 2**40]),
  i=torch.tensor([5, -6], dtype=torch.int32), b=torch.tensor([True, False]), e=torch.empty(0, 3), **model.state_dict()), step=3, device=torch.device("cuda", 0), dtype=torch.bfloat16, c=1j)
for p in (2, 3, 4, 5): torch.save(state, f"new{p}.pt", pickle_protocol=p)
torch.save(state, "old.pt", _use_new_zipfile_serialization=False)
print("null")`);
  for (const name of ["new2.pt", "new3.pt", "new4.pt", "new5.pt", "old.pt"]) {
    const { tensors, value, close } = openTorch(path.join(scratch, name));
    const read = (key: string) => [...toFloat32(tensors.get(key) ?? assert.fail(`${name}: ${key}`))];
    const at = (i: number, j: number, k: number) => i * 12 + j * 4 + k;
    assert.deepEqual(
      read("t"),
      [0, 1, 2, 3].flatMap((k) => [0, 1, 2].flatMap((j) => [0, 1].map((i) => at(i, j, k)))),
      name,
    );
    assert.deepEqual(
      read("s"),
      [0, 1].flatMap((i) => [1, 2].flatMap((j) => [0, 2].map((k) => at(i, j, k)))),
    );
    for (const key of ["half", "bf16"])
      assert.deepEqual(
        read(key),
        Array.from({ length: 24 }, (_, i) => i),
        key,
      );
    assert.deepEqual(read("i64"), [-1, 2 ** 40]);
    assert.deepEqual([...toInt32(tensors.get("i") ?? assert.fail())], [5, -6]);
    assert.deepEqual(read("b"), [1, 0]);
    assert.deepEqual(tensors.get("e")?.shape, [0, 3]);
    assert.deepEqual(tensors.get("1.num_batches_tracked")?.shape, []);
    const top = value as Map<string, unknown>;
    assert.deepEqual([top.get("step"), top.get("device"), top.get("dtype"), top.get("c")], [3, "cuda:0", "torch.bfloat16", [0, 1]]);
    close();
  }
});

test("openTorch() refuses what torch.load(weights_only=True) refuses", { skip }, () => {
  run(`
import json, os, torch
class Evil:
    def __reduce__(self): return (os.system, ("touch canary",))
torch.save(dict(w=torch.ones(2), x=Evil()), "evil.pt")
torch.save(torch.nn.Linear(2, 2), "module.pt")
torch.save(dict(w=torch.ones(2), x=Evil()), "evil_old.pt", _use_new_zipfile_serialization=False)
print("null")`);
  assert.match(
    message(() => openTorch(path.join(scratch, "evil.pt"))),
    /evil\.pt wants global posix\.system, which is not allowed/,
  );
  assert.match(
    message(() => openTorch(path.join(scratch, "evil_old.pt"))),
    /global posix\.system/,
  );
  assert.match(
    message(() => openTorch(path.join(scratch, "module.pt"))),
    /global torch\.nn\.modules\.linear\.Linear/,
  );
  assert.equal(fs.existsSync(path.join(scratch, "canary")), false);
});

test("resolveModel() leaves a cache in which Python's huggingface_hub finds everything, without a connection", { skip }, async () => {
  const home = fs.mkdtempSync(path.join(scratch, "home-"));
  const hub = await startHub({ "config.json": Buffer.from("{}"), "model.safetensors": Buffer.alloc(100) });
  const before = { HF_HOME: process.env.HF_HOME, HF_ENDPOINT: process.env.HF_ENDPOINT };
  Object.assign(process.env, { HF_HOME: home, HF_ENDPOINT: hub.url });
  try {
    const folder = await resolveModel("org/m", { retries: 0 });
    const got = run(`
import json, os
os.environ["HF_HUB_OFFLINE"] = "1"
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
info = scan_cache_dir()
print(json.dumps([snapshot_download("org/m"), hf_hub_download("org/m", "model.safetensors"), [str(w) for w in info.warnings], [r.repo_id for r in info.repos]]))`);
    assert.deepEqual(got, [folder, path.join(folder, "model.safetensors"), [], ["org/m"]]);
  } finally {
    for (const [name, value] of Object.entries(before)) value === undefined ? delete process.env[name] : (process.env[name] = value);
    await hub.close();
  }
});
