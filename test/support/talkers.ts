/** The families that answer questions, one of each as the oracle has it. */
import { join } from "node:path";
import { ORACLE } from "./clip";

/** Folders of test/oracle. A new family that talks gets a row here; test/talkers.test.ts asks each of them everything. */
export const TALKERS = [
  "internvl_hf",
  "internvl_chat_qwen2",
  "internvl_chat_internlm2",
  "internvl_chat_phi3",
  "llava",
  "llava_hd",
  "llava_next",
  "llava_onevision",
  "ovis2",
  "ovis2_5",
  "blip2_opt",
  "blip2_t5",
  "instructblip",
  "instructblip_t5",
  "minigpt4",
] as const;

/** Families that talk about one picture and nothing else: it is not in the prompt but in their layers. */
export const PICTURE_BOUND = ["blip_caption", "blip_vqa"] as const;

export type Talker = (typeof TALKERS)[number] | (typeof PICTURE_BOUND)[number];

export const isPictureBound = (family: Talker): boolean => (PICTURE_BOUND as readonly Talker[]).includes(family);

export const folderOf = (family: Talker): string => join(ORACLE, family, "model");

/** Of a family whose positions end before its own template's system text does: a template that says nothing but what was said. */
export const SHORT_CONTEXT: readonly Talker[] = ["internvl_chat_internlm2"];
