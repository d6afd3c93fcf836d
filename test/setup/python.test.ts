import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { chooseDevice, findPython, listGpus, lockFile, pythonMisfits } from "../../src/setup/python.mjs";
import type { SetupError } from "../../src/setup/say.mjs";
import { oddFolder, programs } from "./support";

const python = (version: string, venv = true) => `echo ${version}; ${venv ? "echo venv" : "echo ModuleNotFoundError; exit 1"}`;

test("findPython() takes the first that fits and has the venv module", async (t) => {
  const folder = oddFolder(t);
  const env = programs(folder, { python3: python("3.14.1"), "python3.12": python("3.12.4", false), "python3.11": python("3.11.9") });
  assert.deepEqual(await findPython(env), { command: "python3.11", version: "3.11.9" });
  const wish = { ...env, VITRINE_PYTHON: join(folder, "bin", "python3.11") };
  assert.equal((await findPython(wish)).command, wish.VITRINE_PYTHON);
});

test("findPython() says what was found and what to install", async (t) => {
  const said = async (scripts: Record<string, string>, more = {}) => {
    const error: SetupError = await findPython({ ...programs(oddFolder(t), scripts), ...more }).catch((e) => e);
    return `${error.message} | ${error.advice}`;
  };
  assert.match(
    await said({ python3: python("3.11.2", false) }),
    /python3 is Python 3\.11\.2, but its "venv" module is missing.*apt install python3-venv/,
  );
  assert.match(
    await said({ python3: python("3.9.18"), "python3.13": "exit 1" }),
    /needs Python 3\.10 to 3\.13.*python3 is 3\.9\.18 \| install one/,
  );
  assert.match(await said({}), /none was found/);
  assert.match(await said({ python3: python("3.11.2") }, { VITRINE_PYTHON: "/no/python" }), /\/no\/python does not run/);
});

test("chooseDevice() follows VITRINE_DEVICE, else nvidia-smi, and waits for it at most two seconds", async (t) => {
  const folder = oddFolder(t);
  const gpu = programs(join(folder, "gpu"), { "nvidia-smi": "echo 'NVIDIA A10, 23028 MiB'" });
  assert.deepEqual(await listGpus(gpu), ["NVIDIA A10, 23028 MiB"]);
  assert.equal(await chooseDevice(gpu), "gpu");
  assert.equal(await chooseDevice({ ...gpu, VITRINE_DEVICE: "cpu" }), "cpu");
  assert.equal(await chooseDevice({ ...programs(join(folder, "none"), {}), VITRINE_DEVICE: "gpu" }), "gpu");
  const broken = programs(join(folder, "broken"), { "nvidia-smi": "echo 'NVIDIA-SMI has failed because it could not talk to the driver'" });
  assert.equal(await chooseDevice(broken), "cpu");
  const hanging = programs(join(folder, "hanging"), { "nvidia-smi": "while true; do :; done" });
  const started = Date.now();
  assert.equal(await chooseDevice(hanging), "cpu");
  assert.ok(Date.now() - started < 5000);
  await assert.rejects(chooseDevice({ VITRINE_DEVICE: "cuda" }), /VITRINE_DEVICE is "cuda"/);
});

test("the locked requirements hold a hash for every package, exact versions and no address of a registry", () => {
  for (const name of ["uv", "cpu", "gpu", "zig", "peer"]) {
    const text = readFileSync(lockFile(name), "utf8");
    const packages = text.replaceAll("\\\n", "").trim().split("\n");
    assert.ok(packages.length >= 1);
    for (const line of packages) assert.match(line, /^[a-z0-9-]+==[^ ]+ .*--hash=sha256:[0-9a-f]{64}/, `${name}: ${line}`);
    assert.doesNotMatch(text, /:\/\/|--(extra-)?index-url|--find-links/);
  }
  assert.match(readFileSync(lockFile("cpu"), "utf8"), /^tensorflow-cpu==2\.21\.0 ; platform_machine == 'x86_64'/m);
  assert.match(readFileSync(lockFile("gpu"), "utf8"), /^nvidia-cudnn-cu12==/m);
});

test("pythonMisfits() names a wheel of the wrong version and what is missing", (t) => {
  const venv = oddFolder(t);
  const site = join(venv, "lib", "python3.11", "site-packages");
  const install = (...names: string[]) => names.map((name) => mkdirSync(join(site, `${name}.dist-info`), { recursive: true }));
  install("tensorflow_cpu-2.16.1", "jupyterlab_server-2.28.1", "nbclient-0.11.0", "plotly-7.1.0");
  const misfits = pythonMisfits(venv, "cpu", "x64");
  assert.deepEqual(misfits, [
    "tensorflow-cpu 2.16.1, wanted 2.21.0",
    `jupyterlab is missing, wanted ${/^jupyterlab==(\S+)/m.exec(readFileSync(lockFile("cpu"), "utf8"))?.[1]}`,
    `nbconvert is missing, wanted ${/^nbconvert==(\S+)/m.exec(readFileSync(lockFile("cpu"), "utf8"))?.[1]}`,
  ]);
  assert.match(pythonMisfits(venv, "cpu", "arm64")[0], /^tensorflow is missing, wanted 2\.21\.0/);
});
