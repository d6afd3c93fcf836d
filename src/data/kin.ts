/** Which emoji are variants of one another, so that a split never has a variant of a training picture in its test part. */
import { createHash } from "node:crypto";

export type Split = "train" | "validation" | "test";
export const SPLITS: readonly Split[] = ["train", "validation", "test"];

const JOINER = 0x200d;
/** "Draw the one before as a picture": never changes which emoji is meant, and the packages do not agree on writing it. */
const PICTURE_MARK = 0xfe0f;
const isSkinTone = (code: number) => code >= 0x1f3fb && code <= 0x1f3ff;
/** After a joiner: woman, man, facing right. */
const JOINED_MARKS = [0x2640, 0x2642, 0x27a1];
/** Code points that are one figure as a woman or a man -> the same figure as a person (Unicode's neutral one). */
const NEUTRAL = new Map([
  [0x1f468, 0x1f9d1], // man -> person
  [0x1f469, 0x1f9d1], // woman -> person
  [0x1f466, 0x1f9d2], // boy -> child
  [0x1f467, 0x1f9d2], // girl -> child
  [0x1f474, 0x1f9d3], // old man -> older person
  [0x1f475, 0x1f9d3], // old woman -> older person
  [0x1f930, 0x1fac4], // pregnant woman -> pregnant person
  [0x1fac3, 0x1fac4], // pregnant man -> pregnant person
  [0x1f934, 0x1fac5], // prince -> person with crown
  [0x1f478, 0x1fac5], // princess -> person with crown
  [0x1f936, 0x1f385], // Mrs. Claus -> Santa Claus
]);

const codes = (id: string): number[] => id.split("-").map((hex) => Number.parseInt(hex, 16));
const write = (points: number[]): string => points.map((code) => code.toString(16).toUpperCase().padStart(4, "0")).join("-");

/** The code points without U+FE0F ("2764-FE0F" -> "2764"): the name by which packages that write it differently are matched. */
export const plainId = (id: string): string => write(codes(id).filter((code) => code !== PICTURE_MARK));

/** The code points without skin tone, gender and direction ("1F469-1F3FD-200D-1F373", woman cook -> "1F9D1-200D-1F373", cook). */
export function neutralId(id: string): string {
  const points = codes(plainId(id));
  const marked = (i: number) => points[i] === JOINER && JOINED_MARKS.includes(points[i + 1]);
  const kept = points.filter((code, i) => !(i > 0 && (isSkinTone(code) || marked(i) || marked(i - 1))));
  return write(kept.map((code) => NEUTRAL.get(code) ?? code));
}

/**
 * Base emoji of each id. forms: one list an emoji: its own id first, then those of its skin tones; twins: pairs of ids that
 * have the same picture. Two emoji are kin when any of their forms agree but for skin tone, gender and direction
 * (so `kiss` joins `kiss: woman, man`, whose toned forms are written alike), or when they are twins; the base is the first of the kin.
 */
export function baseIds(forms: readonly (readonly string[])[], twins: Iterable<readonly [string, string]>): Map<string, string> {
  const parent = forms.map((_, i) => i);
  const root = (i: number): number => (parent[i] === i ? i : root(parent[i]));
  const join = (i: number, j: number) => {
    const [a, b] = [root(i), root(j)];
    parent[Math.max(a, b)] = Math.min(a, b);
  };
  const firstWith = new Map<string, number>();
  const owner = new Map<string, number>();
  forms.forEach((ids, i) => {
    for (const id of ids) {
      owner.set(id, i);
      const known = firstWith.get(neutralId(id));
      if (known === undefined) firstWith.set(neutralId(id), i);
      else join(known, i);
    }
  });
  for (const [a, b] of twins) {
    const [i, j] = [owner.get(a), owner.get(b)];
    if (i === undefined || j === undefined) throw new Error(`baseIds: the twins ${a} and ${b} are not both among the emoji`);
    join(i, j);
  }
  return new Map([...owner].map(([id, i]) => [id, forms[root(i)][0]]));
}

/** The side of a base emoji: the first 32 bits of the SHA-256 of its id as a fraction, below 0.8 train, below 0.9 validation. */
export function splitOf(base: string): Split {
  const fraction = createHash("sha256").update(base).digest().readUInt32BE(0) / 2 ** 32;
  return fraction < 0.8 ? "train" : fraction < 0.9 ? "validation" : "test";
}
