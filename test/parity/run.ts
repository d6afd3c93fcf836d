/**
 * npm run oracle -- DIR: every check of an oracle folder (the layout of ../shared/oracle/README.md: one folder a family with cases.json,
 * arrays.safetensors and model/) for the families there are; one row a check; exit code 1 if any fails.
 */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { type Check, Checks, openOracle } from "./check";
import { table } from "../support/table";
import { checkAlbef } from "./albef";
import { checkBlipAnswerer, checkBlipCaptioner, checkBlipRetrieval } from "./blip";
import { checkBlip2Generation } from "./blip2-generation";
import { checkBlip2Retrieval } from "./blip2";
import { checkClip } from "./clip";
import { checkDualEncoder, checkFlava } from "./dual-encoder";
import { checkFlavaPretraining } from "./flava-pretraining";
import { checkInternVL, checkInternVLChat } from "./internvl";
import { checkLlava } from "./llava";
import { checkMiniGpt4 } from "./minigpt4";
import { checkOvis2 } from "./ovis2";
import { checkOvis25 } from "./ovis25";
import { checkSiglip } from "./siglip";
import { checkTemplates } from "./templates";

/** A new family's checks are one file beside this and one row here; its chat templates are checked with no more than that. */
const families: { [family: string]: (oracle: ReturnType<typeof openOracle>) => Promise<Check[]> } = {
  clip: checkClip,
  siglip: checkSiglip,
  vision_text_dual_encoder: checkDualEncoder,
  flava: checkFlava,
  flava_pretraining: checkFlavaPretraining,
  albef: checkAlbef,
  blip_itm: checkBlipRetrieval,
  blip_caption: checkBlipCaptioner,
  blip_vqa: checkBlipAnswerer,
  blip2_itm: checkBlip2Retrieval,
  internvl_hf: checkInternVL,
  internvl_chat_qwen2: checkInternVLChat,
  internvl_chat_internlm2: checkInternVLChat,
  internvl_chat_phi3: checkInternVLChat,
  llava: checkLlava,
  llava_hd: checkLlava,
  llava_next: checkLlava,
  llava_onevision: checkLlava,
  ovis2: checkOvis2,
  ovis2_5: checkOvis25,
  blip2_opt: checkBlip2Generation,
  blip2_t5: checkBlip2Generation,
  instructblip: checkBlip2Generation,
  instructblip_t5: checkBlip2Generation,
  minigpt4: checkMiniGpt4,
  templates: async () => [], // prompts alone
};

/** Runs all checks in a folder, or those of some families. `unknown` names the families there that nothing here checks. */
export async function runOracle(root: string, only?: readonly string[]): Promise<{ checks: Check[]; unknown: string[] }> {
  const found = readdirSync(root).filter((name) => existsSync(join(root, name, "cases.json")) && (only?.includes(name) ?? true));
  if (found.length === 0)
    throw new Error(`${root} holds no family (a folder with cases.json); expected the layout that the oracle's generator writes`);
  const checks: Check[] = [];
  for (const family of found.filter((f) => Object.hasOwn(families, f))) {
    const oracle = openOracle(root, family);
    const templates = new Checks(family);
    await checkTemplates(oracle, templates);
    checks.push(...(await families[family](oracle)), ...templates.rows);
  }
  return { checks, unknown: found.filter((f) => !Object.hasOwn(families, f)) };
}

/** A table for a terminal. */
export function oracleTable(checks: Check[]): string {
  const number = (x: number) => (x === 0 ? "0" : x.toExponential(1));
  const rows = checks.map((c) => [c.family, c.check, number(c.worst), number(c.tolerance), c.ok ? "ok" : "FAIL", c.note ?? ""]);
  return table([["family", "check", "worst error", "tolerance", "verdict", ""], ...rows]);
}

async function main(root: string | undefined): Promise<void> {
  if (!root) throw new Error("name the oracle's folder: npm run oracle -- DIR");
  const { checks, unknown } = await runOracle(root);
  console.log(oracleTable(checks));
  const failed = checks.filter((c) => !c.ok).length;
  console.log(
    `\n${checks.length - failed} of ${checks.length} checks hold${unknown.length ? `; families not known here: ${unknown.join(", ")}` : ""}`,
  );
  process.exitCode = failed || checks.length === 0 ? 1 : 0;
}

if (require.main === module)
  main(process.argv[2]).catch((error) => {
    console.error((error as Error).message);
    process.exitCode = 1;
  });
