import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { engine } from "vitrine/engine";
import { nativeProcessor } from "vitrine/engine/native";
import { bindingPlan } from "../../src/setup/binding.mjs";
import { GENERAL, native, runCheck } from "./build";

/** Programs by what they check, with the kernels' sources that they need. */
const PROGRAMS = {
  "norms, activations, attention and AdamW": {
    program: "kernels.cc",
    kernels: ["norm.cc", "activation.cc", "attention.cc", "attention_gradient.cc", "optimiser.cc"],
  },
  "RoPE, cross-entropies, patches and pixel shuffle": {
    program: "decoder.cc",
    kernels: ["rope.cc", "cross_entropy.cc", "cross_entropy_head.cc", "patches.cc", "linear.cc"],
  },
  "float32 products, layer scale, fused columns and the cache": {
    program: "layers.cc",
    kernels: ["linear_float.cc", "scale.cc", "columns.cc", "cache.cc"],
  },
};
const ROOT = join(__dirname, "..", "..");

/** The compiler's flags of each level that the binding is built for, by the level's name. */
function levels(): Map<string, string[]> {
  const units = bindingPlan(ROOT, ROOT).units.filter(({ source }) => source === native("norm.cc"));
  return new Map(units.map(({ object, flags }) => [object.split(".").at(-2)!, flags.filter((flag: string) => flag.startsWith("-m"))]));
}

// The shortest and the longest vectors; those between differ from them by a number.
for (const [what, { program, kernels }] of Object.entries(PROGRAMS))
  for (const end of ["lowest", "highest"] as const)
    test(`${what} are right within their memory, at the ${end} level (address and undefined-behaviour sanitizers)`, async (t) => {
      await engine();
      const best = nativeProcessor()?.level;
      if (!best) return t.skip("our binding, which knows the processor's level, is not in use");
      const level = end === "lowest" ? "base" : best;
      const flags = levels().get(level)!;
      const threads = ["1", "3", "8"];
      const { skip, runs } = await runCheck({
        sources: [join(__dirname, program), ...kernels.map(native), ...GENERAL],
        sanitize: "address,undefined",
        flags: [...flags, "-g1", "-fno-omit-frame-pointer"],
        environments: threads.map((VITRINE_THREADS) => ({ VITRINE_THREADS, VITRINE_LEVEL: level })),
      });
      if (skip) return t.skip(skip);
      assert.deepEqual(
        runs,
        threads.map(() => "all close (0)"),
      );
    });

test("parts of files are read, mapped, cut off and cast within their memory (address and undefined-behaviour sanitizers)", async (t) => {
  const threads = ["1", "3"];
  const { skip, runs } = await runCheck({
    sources: [join(__dirname, "files.cc"), ...["cast.cc", "file.cc", "pages.cc"].map(native), ...GENERAL],
    sanitize: "address,undefined",
    flags: ["-g1", "-fno-omit-frame-pointer"],
    environments: threads.map((VITRINE_THREADS) => ({ VITRINE_THREADS, VITRINE_LEVEL: "base" })),
  });
  if (skip) return t.skip(skip);
  assert.deepEqual(
    runs,
    threads.map(() => "all close (0)"),
  );
});
