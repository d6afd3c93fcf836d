// Rewrites the locked requirements beside this file:  node src/setup/lock.mjs
// Run it to move a version, on a machine with a set-up environment; commit what it writes.
import { writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { places, ROOT } from "./places.mjs";
import { tool } from "./tool.mjs";

const HERE = dirname(fileURLToPath(import.meta.url));
const LAB = ["jupyterlab>=4.6.6,<5", "nbclient", "nbconvert", "plotly==7.1.0"];
const CPU = [
  "tensorflow-cpu==2.21.0 ; platform_machine == 'x86_64'", // its wheels exist for x86-64 alone
  "tensorflow==2.21.0 ; platform_machine != 'x86_64'", // elsewhere the plain wheel has no CUDA anyway
];
const PEER =
  "torch==2.11.0 torchvision==0.26.0 transformers==5.23.0 peft==0.21.2 tokenizers==0.23.3 safetensors==0.8.0 sentencepiece==0.2.3 pillow==13.0.0 numpy==2.4.6";

const LOCKS = {
  uv: { python: "3.10", packages: ["uv"] },
  cpu: { python: "3.10", packages: [...LAB, ...CPU] },
  gpu: { python: "3.10", packages: [...LAB, "tensorflow[and-cuda]==2.21.0"] },
  zig: { python: "3.10", packages: ["ziglang==0.17.1"] },
  peer: { python: "3.11", packages: PEER.split(" ") }, // numpy 2.4 asks for 3.11
};

const uv = process.env.UV ?? join(places(ROOT).venv, "bin", "uv");
for (const [name, { python, packages }] of Object.entries(LOCKS)) {
  const wanted = join(places(ROOT).cache, `${name}.in`);
  writeFileSync(wanted, `${packages.join("\n")}\n`);
  const quiet = ["--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate", "--quiet"];
  const out = join(HERE, `requirements-${name}.txt`);
  const args = ["pip", "compile", "--universal", "--python-version", python, "--generate-hashes", ...quiet, wanted, "-o", out];
  await tool(uv, args);
  console.log(`wrote ${out}`);
}
