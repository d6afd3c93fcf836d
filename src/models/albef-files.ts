/**
 * The files of ALBEF (Li et al. 2021) as its authors publish them: a pickle of weights, `config_bert.json` for the text encoder, the training's settings in
 * `config.json` or in the pickle itself, and BERT's vocabulary, in the folder or in `bert-base-uncased` below it.
 */
import { existsSync, readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { readJson } from "../files/json";
import type { TensorSource } from "../files/safetensors";
import { openTorch } from "../files/torch";

const SETTINGS = "config.json";
const BERT = "config_bert.json";
const VOCABULARY = "bert-base-uncased";

export type AlbefFiles = {
  folder: string;
  /** Of the weights, for errors. */
  file: string;
  /** Settings of the training, and the text encoder's config. */
  settings: { [key: string]: unknown };
  bert: { [key: string]: unknown };
  /** Where the tokenizer's files are. */
  vocabulary: string;
  /** By the names of fine-tuned files, without momentum copies, queues and the head for masked words. */
  tensors: Map<string, TensorSource>;
  close(): void;
};

/** Whether a folder is one of ALBEF. */
export function isAlbef(folder: string): boolean {
  const settings = join(folder, SETTINGS);
  return existsSync(settings) ? "bert_config" in readJson(settings) : existsSync(join(folder, BERT));
}

/** @throws naming the file that is missing, or those among which one must be chosen */
export function openAlbef(folder: string, given?: string): AlbefFiles {
  const file = join(folder, given ?? weightFile(folder));
  const opened = openTorch(file);
  try {
    const settings = existsSync(join(folder, SETTINGS)) ? readJson(join(folder, SETTINGS)) : settingsIn(opened.value, file);
    const bert = join(folder, typeof settings.bert_config === "string" ? basename(settings.bert_config) : BERT);
    if (!existsSync(bert))
      throw new Error(`${bert} is missing; ALBEF's text encoder is described there (configs/config_bert.json of its repository)`);
    const tensors = new Map(albefNames(opened.tensors));
    return { folder, file, settings, bert: readJson(bert), vocabulary: vocabularyIn(folder), tensors, close: opened.close };
  } catch (error) {
    opened.close();
    throw error;
  }
}

/** The only one, or of several the one that fine-tuning has written. */
function weightFile(folder: string): string {
  const all = readdirSync(folder)
    .filter((name) => name.endsWith(".pth"))
    .sort();
  const tuned = all.filter((name) => name.startsWith("checkpoint"));
  const found = all.length === 1 ? all : tuned;
  if (found.length === 1) return found[0];
  throw new Error(
    all.length
      ? `${folder} holds ${all.join(", ")}; name one of them: load("${join(folder, all[0])}")`
      : `${folder} has no weights: expected a .pth file, such as ALBEF.pth`,
  );
}

/** The authors' training keeps its settings with the weights. */
function settingsIn(value: unknown, file: string): { [key: string]: unknown } {
  const settings = value instanceof Map ? value.get("config") : undefined;
  if (settings instanceof Map) return Object.fromEntries(settings);
  throw new Error(
    `${file} holds no settings (config), and ${SETTINGS} is missing beside it; write one with image_res, vision_width and embed_dim`,
  );
}

function vocabularyIn(folder: string): string {
  const places = [join(folder, VOCABULARY), folder];
  const found = places.find((place) => ["tokenizer.json", "vocab.txt"].some((name) => existsSync(join(place, name))));
  if (found) return found;
  throw new Error(`${folder} has no tokenizer; put that of ${VOCABULARY} (tokenizer.json or vocab.txt) into ${places[0]}`);
}

/** What training alone needs: momentum copies, queues, the head for masked words; and a buffer of old versions. */
const LEFT_OUT = /^\w+_m\.|^(image_queue|text_queue|idx_queue|queue_ptr)$|^text_encoder\.cls\.|position_ids$/;

/** Pre-training files say `text_encoder.bert.` where fine-tuned ones say `text_encoder.`. */
function* albefNames(tensors: Map<string, TensorSource>): Iterable<[string, TensorSource]> {
  for (const [name, source] of tensors) if (!LEFT_OUT.test(name)) yield [name.replace(/^text_encoder\.bert\./, "text_encoder."), source];
}
