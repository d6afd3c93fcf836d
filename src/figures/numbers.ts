/** Checks and small sums over the rows that figures take. Every error names the figure (`where`). */
import type { Grid, Heads, Rows, Vector } from "./figure";

/** [rows, columns] of a matrix; an error if it is empty or its rows differ in length. */
export function shapeOf(where: string, what: string, rows: Rows): [number, number] {
  if (!(rows?.length > 0) || typeof rows[0] === "number" || !(rows[0]?.length > 0))
    throw new RangeError(`${where}: ${what} is ${describe(rows)}, expected rows of numbers, such as await tensor.array() gives`);
  const columns = rows[0].length;
  const odd = Array.from(rows).findIndex((row) => row.length !== columns);
  if (odd >= 0)
    throw new RangeError(`${where}: ${what}: row ${odd} has ${rows[odd].length} numbers, row 0 has ${columns}; expected equal lengths`);
  if (typeof rows[0][0] !== "number")
    throw new RangeError(`${where}: ${what} has one axis too many, expected rows of numbers; for a batch of one take [0]`);
  return [rows.length, columns];
}

/** [heads, queries, keys] of an attention pattern; an error that names the head if they differ. */
export function headsOf(where: string, pattern: Heads): [number, number, number] {
  const nested = pattern?.[0]?.[0] as Vector | undefined;
  if (typeof nested !== "object") throw new RangeError(`${where}: pattern is ${describe(pattern)}, expected [heads][queries][keys]`);
  if (typeof nested[0] !== "number")
    throw new RangeError(
      `${where}: pattern has 4 axes, expected [heads][queries][keys]; for a batch of one take (await pattern.array())[0]`,
    );
  const [queries, keys] = shapeOf(where, "head 0", pattern[0]);
  for (let head = 1; head < pattern.length; head++) {
    const [q, k] = shapeOf(where, `head ${head}`, pattern[head]);
    if (q !== queries || k !== keys) throw new RangeError(`${where}: head ${head} is ${q}x${k}, head 0 is ${queries}x${keys}`);
  }
  return [pattern.length, queries, keys];
}

/** Patches in a grid; an error unless both sides are whole and positive. */
export function patchesOf(where: string, [rows, columns]: Grid): number {
  if (![rows, columns].every((n) => Number.isInteger(n) && n > 0))
    throw new RangeError(`${where}: grid is [${rows}, ${columns}], expected [rows, columns], whole and positive, such as [7, 7]`);
  return rows * columns;
}

/** An error unless `count` is one row for each patch of the grid; says what to do where [CLS] is still in front. */
export function expectPatches(where: string, what: string, count: number, grid: Grid): void {
  const patches = patchesOf(where, grid);
  if (count === patches) return;
  const hint = count === patches + 1 ? "; leave out [CLS] with .slice(1)" : "";
  throw new RangeError(`${where}: ${count} ${what} for a ${grid[0]}x${grid[1]} grid, expected ${patches}${hint}`);
}

/** An error that names the first number that is NaN or infinite. */
export function expectFinite(where: string, what: string, rows: Rows): void {
  for (let i = 0; i < rows.length; i++)
    for (let j = 0; j < rows[i].length; j++)
      if (!Number.isFinite(rows[i][j])) throw new RangeError(`${where}: ${what}[${i}][${j}] is ${rows[i][j]}, expected finite numbers`);
}

/** An index that must name one of `count` things. */
export function expectIndex(where: string, what: string, index: number, count: number): void {
  if (!(Number.isInteger(index) && index >= 0 && index < count))
    throw new RangeError(`${where}: ${what} is ${index}, expected a whole number from 0 to ${count - 1}`);
}

/** x with `digits` significant digits, so that figures stay small; null (a gap) for NaN and infinities, which JSON lacks. */
export const round = (x: number, digits = 4): number | null => (Number.isFinite(x) ? Number(x.toPrecision(digits)) : null);

/** `values` as rows of a grid, rounded. */
export function toGrid(values: Vector, [rows, columns]: Grid, digits = 4): (number | null)[][] {
  return Array.from({ length: rows }, (_, r) => Array.from({ length: columns }, (_, c) => round(values[r * columns + c], digits)));
}

/** Rows scaled to length 1; a row of zeros stays zero. */
export function unitRows(rows: Rows): Float64Array[] {
  return Array.from(rows, (row) => {
    let square = 0;
    for (let i = 0; i < row.length; i++) square += row[i] * row[i];
    const scale = square > 0 ? 1 / Math.sqrt(square) : 0;
    return Float64Array.from(row, (x) => x * scale);
  });
}

/** Sum of products. */
export function dot(a: Vector, b: Vector): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** The mean of a matrix over blocks of `block` x `block` (smaller at the far edges). */
export function blockMean(rows: Rows, block: number): Float64Array[] {
  if (block === 1) return Array.from(rows, (row) => Float64Array.from(row));
  const [height, width] = [Math.ceil(rows.length / block), Math.ceil(rows[0].length / block)];
  return Array.from({ length: height }, (_, r) => {
    const sums = new Float64Array(width);
    const last = Math.min(rows.length, (r + 1) * block);
    for (let i = r * block; i < last; i++) for (let j = 0; j < rows[i].length; j++) sums[Math.floor(j / block)] += rows[i][j];
    return sums.map((sum, c) => sum / ((last - r * block) * (Math.min(rows[0].length, (c + 1) * block) - c * block)));
  });
}

/** Largest finite number in a matrix; 0 if there is none. */
export function largest(rows: Rows): number {
  let most = 0;
  for (let i = 0; i < rows.length; i++) for (let j = 0; j < rows[i].length; j++) if (rows[i][j] > most) most = rows[i][j];
  return most;
}

function describe(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  const length = (value as ArrayLike<unknown>).length;
  if (typeof value !== "object" || length === undefined) return `a ${typeof value}`;
  return length === 0 ? "empty" : typeof (value as ArrayLike<unknown>)[0] === "number" ? `one row of ${length} numbers` : `${length} rows`;
}
