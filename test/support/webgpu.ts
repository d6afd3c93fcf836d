/** Processes that compute on WebGPU: on this machine's GPU, or on SwiftShader, the processor that plays one and comes with Chromium. */
import { spawn, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";

const ROOT = resolve(__dirname, "..", "..");
const CHROMIUM = ["/usr/lib/chromium", "/usr/lib/chromium-browser", "/opt/google/chrome"];

/** What lets Dawn find SwiftShader, and a Vulkan loader where the system has none; nothing where the user names a driver or Chromium is not there. */
function swiftShader(): NodeJS.ProcessEnv {
  const folder = CHROMIUM.find((place) => existsSync(join(place, "vk_swiftshader_icd.json")));
  if (!folder || process.env.VK_DRIVER_FILES || process.env.VK_ICD_FILENAMES) return {};
  const libraries = [process.env.LD_LIBRARY_PATH, folder].filter(Boolean).join(":"); // Chromium's own libvulkan.so.1 comes last
  return { VK_DRIVER_FILES: join(folder, "vk_swiftshader_icd.json"), LD_LIBRARY_PATH: libraries };
}

/** The variables under which such a process starts. */
export const environment = { ...process.env, ...swiftShader(), VITRINE_BACKEND: "webgpu" };

const QUESTION = 'require("webgpu").create([]).requestAdapter().then((adapter) => console.log(adapter ? "adapter" : "none"))';

/** Why the tests on WebGPU cannot run here; false where they can. */
export const noWebgpu = (() => {
  const { stdout, stderr } = spawnSync(process.execPath, ["-e", QUESTION], {
    cwd: ROOT,
    env: environment,
    encoding: "utf8",
    timeout: 30_000,
  });
  if (stdout?.includes("adapter")) return false;
  return `no adapter for WebGPU: install Chromium, whose SwiftShader serves (\`sudo apt install chromium\`), or a GPU's Vulkan driver. ${stderr?.split("\n")[0]}`;
})();

/** Runs the body of an async function in a process of its own, in the root of the checkout; gives what it returns, or `{ error }`. */
// biome-ignore lint/suspicious/noExplicitAny: each program has an answer of its own
export function onWebgpu(program: string, env: NodeJS.ProcessEnv = {}): Promise<any> {
  const wrapped = `(async () => { ${program} })().then((x) => x, (e) => ({ error: e.message })).then((x) => console.log("\\n" + JSON.stringify(x ?? null)))`;
  const child = spawn(process.execPath, ["--import", "tsx", "-e", wrapped], { cwd: ROOT, env: { ...environment, ...env } });
  let [stdout, stderr] = ["", ""];
  child.stdout.on("data", (text) => {
    stdout += text;
  });
  child.stderr.on("data", (text) => {
    stderr += text;
  });
  return new Promise((done, fail) =>
    child.once("close", (code) => {
      const last = stdout.trim().split("\n").pop();
      if (code === 0 && last) done(JSON.parse(last));
      else fail(new Error(`the process ended with ${code}:\n${stderr.slice(-2000)}`));
    }),
  );
}
