/** Captions of one picture for training: its name said in several ways. Evaluation uses the plain name. */
import type { EmojiEntry, Language } from "./emoji";
import type { Random } from "./random";
import { shuffle } from "./random";

/** What the captions are made of. */
export type Captioned = Pick<EmojiEntry, "caption" | "tags" | "subgroup" | "group" | "language">;

const FRAMES: Record<Language, ((name: string) => string)[]> = {
  en: [(name) => `a picture of ${name}`, (name) => `a drawing of ${name}`, (name) => `an emoji of ${name}`],
  zh: [(name) => `一张${name}的图片`, (name) => `一幅${name}的图画`, (name) => `${name}的表情符号`],
};
const COMMA: Record<Language, string> = { en: ", ", zh: "，" };

/** Names with a colon read badly inside a sentence: "a picture of the flag of Norway", "a picture of woman, red hair". */
const inSentence = (name: string): string => name.replace(/^flag: /, "the flag of ").replace(/: /g, ", ");

/**
 * Every fixed caption, the plain name first: the name, the name with all tags, three sentences ("a picture of NAME"),
 * the name with its subgroup, with its group. None twice.
 */
export function captionsOf({ caption, tags, subgroup, group, language }: Captioned): string[] {
  const list = (...words: string[]) => words.join(COMMA[language]);
  const sentences = FRAMES[language].map((frame) => frame(inSentence(caption)));
  const all = [caption, list(caption, ...tags), ...sentences, list(caption, subgroup), list(caption, group)];
  return [...new Set(all)];
}

/**
 * One caption drawn at random: the plain name in 40 % of draws (it is what evaluation asks for), the name with one to three
 * tags in 30 % (the plain name where there are none), a sentence in 20 %, the name with its subgroup in 10 %.
 */
export function trainingCaption({ caption, tags, subgroup, language }: Captioned, next: Random): string {
  const kind = next();
  if (kind < 0.4) return caption;
  if (kind < 0.7) return [caption, ...shuffle(tags, next).slice(0, 1 + Math.floor(next() * 3))].join(COMMA[language]);
  const frames = FRAMES[language];
  if (kind < 0.9) return frames[Math.floor(next() * frames.length)](inSentence(caption));
  return [caption, subgroup].join(COMMA[language]);
}
