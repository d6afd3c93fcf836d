/** What two lists share in order, and what each has alone (longest common subsequence). */
export type Change<T> = { side: "both" | "left" | "right"; items: T[] };

/** Cells of the table, at most; beyond that what differs is told as a whole. */
const MOST_CELLS = 4_000_000;

/** Runs of items in both lists, only in `left`, only in `right`; a difference tells the left part first. */
export function changes<T>(left: readonly T[], right: readonly T[], same: (a: T, b: T) => boolean): Change<T>[] {
  let start = 0;
  while (start < left.length && start < right.length && same(left[start], right[start])) start++;
  let end = 0;
  while (end < left.length - start && end < right.length - start && same(left[left.length - 1 - end], right[right.length - 1 - end])) end++;
  const out: Change<T>[] = [];
  const add = (side: Change<T>["side"], items: readonly T[]) => {
    const last = out.at(-1);
    if (items.length > 0 && last?.side === side) last.items.push(...items);
    else if (items.length > 0) out.push({ side, items: [...items] });
  };
  add("both", left.slice(0, start));
  middle(left.slice(start, left.length - end), right.slice(start, right.length - end), same, add);
  add("both", left.slice(left.length - end));
  return out;
}

function middle<T>(left: T[], right: T[], same: (a: T, b: T) => boolean, add: (side: Change<T>["side"], items: T[]) => void): void {
  const [n, m] = [left.length, right.length];
  if (n === 0 || m === 0 || n * m > MOST_CELLS) {
    add("left", left);
    add("right", right);
    return;
  }
  const width = m + 1;
  const longest = new Uint32Array((n + 1) * width); // [i][j]: of left from i on and right from j on
  for (let i = n - 1; i >= 0; i--)
    for (let j = m - 1; j >= 0; j--)
      longest[i * width + j] = same(left[i], right[j])
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
  let [i, j] = [0, 0];
  while (i < n || j < m) {
    if (i < n && j < m && same(left[i], right[j])) {
      add("both", [left[i++]]);
      j++;
    } else if (j === m || (i < n && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) add("left", [left[i++]]);
    else add("right", [right[j++]]);
  }
}
