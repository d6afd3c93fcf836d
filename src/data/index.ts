/** The data sets that travel with the workbench, by name. What they are and what they cannot show: data/README.md. */
import type { Picture } from "../image/picture";
import { type EmojiEntry, emojiEntries, SAME_PICTURE } from "./emoji";
import { checkOptions, type DatasetName, type DatasetOptions } from "./options";
import { emojiPictures } from "./pixels";

/**
 * One picture with its text. id: code points ("1F600"), the same in every style and language; base: id of the emoji that it is
 * a variant of; caption: the plain name, unique within a language; group, subgroup and tags in that language;
 * `image()` reads the pixels when they are needed: a square of `size`, RGB on white.
 */
export type ImageText = EmojiEntry & { image(): Promise<Picture> };

/**
 * Rows of a data set, in Unicode's order: "emoji" is drawn in the Twemoji style, "emoji-noto" in the Noto style (fewer emoji, the
 * same ids, captions and splits). All variants of one emoji (skin tone, gender, direction) are in the same split.
 * The first call for a size up to 128 draws all pictures and keeps them (5 to 10 s). Unknown names and options are errors.
 */
export async function dataset(name: DatasetName, options: DatasetOptions): Promise<ImageText[]> {
  const { split, language, size, skinTones } = checkOptions(name, options);
  const pictures = await emojiPictures(name === "emoji" ? "twemoji" : "noto", size, options.signal);
  const entries = await emojiEntries(language);
  const wanted = (entry: EmojiEntry) =>
    (split === "all" || entry.split === split) && (skinTones || !entry.toned) && pictures.has(entry.id) && !SAME_PICTURE.has(entry.id);
  return entries.filter(wanted).map((entry) => ({ ...entry, image: () => pictures.read(entry.id) }));
}
