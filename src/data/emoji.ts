/** The emoji as texts: names and tags of emojibase-data in two languages, groups, base emoji and split. Pictures: pixels.ts. */
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { baseIds, type Split, splitOf } from "./kin";

export type Language = "en" | "zh";

/** id: code points as emojibase writes them; base: id of the emoji it is a variant of (or its own); caption: the plain name. */
export type EmojiEntry = {
  id: string;
  base: string;
  emoji: string;
  group: string;
  subgroup: string;
  caption: string;
  tags: string[];
  toned: boolean;
  split: Split;
  language: Language;
};

/**
 * Emoji left out -> the emoji whose picture they share in Twemoji or Noto: flags of territories that fly their country's,
 * a blond woman drawn as any woman, snowboarders with no skin to see. Without them every picture has one right caption.
 */
export const SAME_PICTURE: ReadonlyMap<string, string> = new Map([
  ["1F1E7-1F1FB", "1F1F3-1F1F4"], // Bouvet Island: Norway
  ["1F1F8-1F1EF", "1F1F3-1F1F4"], // Svalbard & Jan Mayen: Norway
  ["1F1E8-1F1F5", "1F1EB-1F1F7"], // Clipperton Island: France
  ["1F1F2-1F1EB", "1F1EB-1F1F7"], // St. Martin: France
  ["1F1E9-1F1EC", "1F1EE-1F1F4"], // Diego Garcia: British Indian Ocean Territory
  ["1F1EA-1F1E6", "1F1EA-1F1F8"], // Ceuta & Melilla: Spain
  ["1F1ED-1F1F2", "1F1E6-1F1FA"], // Heard & McDonald Islands: Australia
  ["1F1FA-1F1F2", "1F1FA-1F1F8"], // U.S. Outlying Islands: United States
  ["1F471-1F3FC-200D-2640-FE0F", "1F469-1F3FC"], // woman: medium-light skin tone, blond hair (Twemoji)
  ...["1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"].map((tone) => [`1F3C2-${tone}`, "1F3C2"] as const), // snowboarder (Noto)
]);

/** The 26 letters that flags are spelt with have no group in emojibase; this is theirs here. */
const LETTERS = { group: "component", subgroup: { en: "regional indicators", zh: "区域指示符" } };

type Form = { hexcode: string; label: string; emoji: string };
type Row = Form & { tags?: string[]; group?: number; subgroup?: number; skins?: Form[] };
type Message = { key: string; message: string };

const folder = (): string => dirname(require.resolve("emojibase-data/package.json"));
const read = async <T>(...path: string[]): Promise<T> => JSON.parse(await readFile(join(folder(), ...path), "utf8"));

/** Group and subgroup of a row in words. The messages' own `order` numbers two subgroups alike, so keys are the way. */
async function groupNames(language: Language): Promise<(row: Row) => { group: string; subgroup: string }> {
  const keys = await read<{ groups: Record<string, string>; subgroups: Record<string, string> }>("meta", "groups.json");
  const messages = await read<{ groups: Message[]; subgroups: Message[] }>(language, "messages.json");
  const words = (list: Message[], key: string) => {
    const found = list.find((message) => message.key === key);
    if (!found) throw new Error(`emojibase-data: ${language}/messages.json has no name of the group ${key}`);
    return found.message;
  };
  return ({ group, subgroup }) =>
    group === undefined || subgroup === undefined
      ? { group: words(messages.groups, LETTERS.group), subgroup: LETTERS.subgroup[language] }
      : { group: words(messages.groups, keys.groups[group]), subgroup: words(messages.subgroups, keys.subgroups[subgroup]) };
}

/**
 * All emoji of emojibase, those of each skin tone included, in Unicode's order, whether or not a style has their picture.
 * The base and the split do not depend on the language.
 */
export async function emojiEntries(language: Language): Promise<EmojiEntry[]> {
  const rows = await read<Row[]>(language, "data.json");
  const names = await groupNames(language);
  const forms = rows.map((row) => [row, ...(row.skins ?? [])]);
  const bases = baseIds(
    forms.map((family) => family.map((form) => form.hexcode)),
    SAME_PICTURE,
  );
  return rows.flatMap((row, i) => {
    const shared = { tags: row.tags ?? [], ...names(row), language };
    return forms[i].map(({ hexcode, emoji, label }) => {
      const base = bases.get(hexcode) as string;
      return { id: hexcode, base, emoji, caption: label, toned: hexcode !== row.hexcode, split: splitOf(base), ...shared };
    });
  });
}
