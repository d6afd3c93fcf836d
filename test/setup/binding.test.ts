import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { bindingStep } from "../../src/setup/binding-step.mjs";
import { bindingPlan, compileBinding, findCompiler, linkArguments, tensorflowLibraries, tryBinding } from "../../src/setup/binding.mjs";
import { places } from "../../src/setup/places.mjs";
import type { ToolError } from "../../src/setup/tool.mjs";
import { oddFolder, programs, ROOT, write } from "./support";

test("findCompiler() prefers CXX, then g++, then clang++, and decides for zig where there is none", async (t) => {
  const folder = oddFolder(t);
  const both = programs(join(folder, "both"), { "g++": "echo g++ 12", "clang++": "echo clang 17", "my-cc": "echo mine 1 $1" });
  assert.equal((await findCompiler("python", both)).version, "g++ 12");
  assert.deepEqual(await findCompiler("python", { ...both, CXX: "my-cc -m64" }), {
    command: "my-cc",
    first: ["-m64"],
    kind: "CXX",
    version: "mine 1 -m64",
  });
  const clang = programs(join(folder, "clang"), { "g++": "exit 1", "clang++": "echo clang 17" });
  assert.equal((await findCompiler("python", clang)).command, "clang++");
  const none = programs(join(folder, "none"), {});
  const zig = await findCompiler(join(folder, "no", "python"), none); // decided, not executed: this Python does not exist
  assert.deepEqual([zig.kind, zig.command, ...zig.first], ["zig", join(folder, "no", "python"), "-m", "ziglang", "c++"]);
  await assert.rejects(findCompiler("python", { ...both, CXX: "icpx" }), /CXX is set to "icpx", which does not run/);
});

test("bindingPlan() and linkArguments() use the names of each system", () => {
  assert.deepEqual(tensorflowLibraries("/tf", "linux"), ["/tf/libtensorflow_cc.so.2", "/tf/libtensorflow_framework.so.2"]);
  assert.deepEqual(tensorflowLibraries("/tf", "darwin"), ["/tf/libtensorflow_cc.2.dylib", "/tf/libtensorflow_framework.2.dylib"]);
  const plan = bindingPlan("/a b", "/t,f", "linux");
  const args = linkArguments(plan, ["x.o"], "out.node", "linux");
  assert.ok(args.includes("-shared") && args.includes("/t,f"));
  assert.ok(!args.some((arg: string) => arg.startsWith("-Wl")), "-Wl would split a path at its comma");
  assert.ok(linkArguments(plan, ["x.o"], "out.node", "darwin").includes("-bundle"));
});

test("bindingPlan() compiles kernels for each level of the architecture, the baseline first, and all else once", () => {
  const units = (machine: string) => bindingPlan("/a b", "/t,f", "linux", machine).units;
  const objects = units("x64").map(({ object }) => object);
  for (const general of ["binding.cc", "kernel.cc", "pool.cc", "processor.cc"])
    assert.deepEqual(objects.filter((object) => object.startsWith(general)), [`${general}.base.o`]); // biome-ignore format: short
  const levels = objects.filter((object) => object.startsWith("linear.cc"));
  assert.deepEqual(levels, ["linear.cc.base.o", "linear.cc.avx2.o", "linear.cc.avx512bf16.o"]);
  const firstOfLevel = objects.findIndex((object) => !object.endsWith(".base.o"));
  assert.ok(
    objects.slice(firstOfLevel).every((object) => !object.endsWith(".base.o")),
    "the linker must meet baseline code first",
  );
  for (const { object, flags } of units("x64")) assert.equal(flags.some((flag: string) => flag.startsWith("-mavx")), !object.endsWith(".base.o"), object); // biome-ignore format: short
  for (const { object, flags } of units("arm64"))
    assert.ok(object.endsWith(".base.o") && !flags.some((flag: string) => flag.startsWith("-m")), object);
  assert.ok(!units("x64").some(({ flags }) => flags.some((flag: string) => /fast-math|finite-math/.test(flag))));
});

test("compileBinding() works in a folder with spaces, a comma, a quote and a dollar sign, and replaces the old file whole", async (t) => {
  const root = oddFolder(t);
  write(root, {
    "include dir/answer.h": "#define ANSWER 42\n",
    "one.cc": '#include "answer.h"\nextern "C" int one() { return ANSWER; }\n',
    "two.cc": 'extern "C" int one();\nextern "C" int two() { return one() + EXTRA; }\n',
    "lib/out.node": "old",
  });
  const plan = {
    units: ["one", "two"].map((name) => ({
      source: join(root, `${name}.cc`),
      object: `${name}.o`,
      flags: name === "two" ? ["-DEXTRA=1"] : [],
    })),
    includes: [join(root, "include dir")],
    defines: [],
    flags: ["-fPIC"],
    libraries: [],
    rpath: root,
    output: join(root, "lib", "out.node"),
  };
  const compiler = await findCompiler(places(ROOT).python);
  const work = join(root, "work");
  const bytes = await compileBinding(plan, compiler, { work });
  assert.equal(bytes, readFileSync(plan.output).length);
  if (process.platform === "linux") assert.equal(readFileSync(plan.output).subarray(1, 4).toString(), "ELF");
  assert.equal(existsSync(work), false);

  const lines: string[] = [];
  const more = { source: join(root, "missing.cc"), object: "more.o", flags: ["-mno-such-instructions"], optional: true };
  await compileBinding({ ...plan, units: [...plan.units, more] }, compiler, { work, onLine: (line: string) => lines.push(line) });
  assert.ok(lines.includes("the compiler does not know -mno-such-instructions: going without"), lines.join("\n"));

  const before = readFileSync(plan.output);
  write(root, { "two.cc": "this is not C++\n" });
  await assert.rejects(compileBinding(plan, compiler, { work }), (error: ToolError) => {
    assert.match(error.message, /ended with code 1/);
    assert.ok(
      error.lines.some((line: string) => line.includes("two.cc:1")),
      error.lines.join("\n"),
    );
    return true;
  });
  assert.ok(readFileSync(plan.output).equals(before), "a failed compile leaves the old binding");
});

test("bindingStep() without TensorFlow fails softly and says what would change it", async (t) => {
  const step = bindingStep(oddFolder(t));
  assert.equal(step.soft, true);
  await assert.rejects(
    step.run(() => {}, undefined),
    (error: Error & { advice: string }) => {
      assert.match(error.message, /no TensorFlow in \.venv/);
      assert.match(error.advice, /goes on with tfjs `wasm`.*apt install g\+\+/s);
      return true;
    },
  );
});

test("tryBinding() multiplies in a child process and shows why a broken binding does not load", async (t) => {
  assert.match(await tryBinding(ROOT), /^ok 4\.22\.0 tensorflow$/m);
  const root = oddFolder(t);
  write(places(root).tfjs, { "index.js": 'require("./lib/napi-v8/tfjs_binding.node")', "lib/napi-v8/tfjs_binding.node": "not a library" });
  await assert.rejects(tryBinding(root), (error: ToolError) =>
    error.lines.some((line: string) => /Error: .*tfjs_binding\.node/.test(line)),
  );
});
