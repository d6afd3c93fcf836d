/** Run by test/webgpu/webgpu.test.ts in a process on WebGPU: the oracle's forward pass, gradients, and LoRA and DoRA training. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Check } from "../parity/check";
import { runOracle } from "../parity/run";

/** Text and pictures are prepared alike on every backend, and `npm run oracle` has the other adapters: they would take as long again. */
export async function parity(oracle: string): Promise<Check[]> {
  const folder = mkdtempSync(join(tmpdir(), "vitrine-webgpu-"));
  try {
    cpSync(join(oracle, "clip"), join(folder, "clip"), { recursive: true });
    const { forward, gradients, lora } = JSON.parse(readFileSync(join(oracle, "clip", "cases.json"), "utf8"));
    const some = (lora as { name: string }[]).filter(({ name }) => ["lora", "dora"].includes(name));
    writeFileSync(join(folder, "clip", "cases.json"), JSON.stringify({ forward, gradients, lora: some }));
    return (await runOracle(folder)).checks;
  } finally {
    rmSync(folder, { recursive: true });
  }
}
