/** The nearest known word, for errors that say "did you mean". */

/** Edit distance (Levenshtein), insertions, deletions and substitutions at cost 1. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) next[j] = Math.min(next[j - 1] + 1, row[j] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1));
    row = next;
  }
  return row[b.length];
}

/** The known word with the smallest edit distance, or undefined when none is closer than half the word. */
export function nearest(word: string, known: Iterable<string>): string | undefined {
  let [best, least] = [undefined as string | undefined, Math.max(2, word.length / 2)];
  for (const candidate of known) {
    const d = distance(word.toLowerCase(), candidate.toLowerCase());
    if (d <= least && (best === undefined || d < least)) [best, least] = [candidate, d];
  }
  return best;
}
