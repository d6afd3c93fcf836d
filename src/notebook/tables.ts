/** Tables of data: Arquero's, as HTML and as text. */
import type { Picture } from "../image/picture";
import { type Html, html } from "./html";
import { isPicture, pngOfPicture } from "./pictures";

/** What we use of an Arquero table. */
export type Table = { columnNames(): string[]; numRows(): number; objects(options: { limit: number }): object[] };

export const isTable = (value: unknown): value is Table =>
  ["columnNames", "numRows", "objects"].every((name) => typeof (value as Record<string, unknown> | null)?.[name] === "function");

/** The first `limit` rows (in the table's order, filtered). Pictures in cells are drawn, within 48 pixels. Everything else is escaped. */
export async function htmlOfTable(table: Table, limit: number): Promise<Html> {
  const names = table.columnNames();
  const rows = table.objects({ limit }) as Record<string, unknown>[];
  const cells = await Promise.all(rows.map((row) => Promise.all(names.map((name) => htmlOfCell(row[name])))));
  const head = names.map((name) => html`<th style="text-align:left">${name}</th>`);
  const body = cells.map((row) => html`<tr>${row}</tr>`);
  return html`<table style="margin-left:0"><thead><tr>${head}</tr></thead><tbody>${body}</tbody></table>${restOf(table, rows.length, (text) => html`<p>${text}</p>`)}`;
}

async function htmlOfCell(value: unknown): Promise<Html> {
  if (isPicture(value)) return html`<td>${await imageTag(value)}</td>`;
  return html`<td style="text-align:${typeof value === "number" ? "right" : "left"}">${textOfCell(value)}</td>`;
}

/** An `<img>` with the picture in it, within `size` pixels. */
export async function imageTag(picture: Picture, size = 48): Promise<Html> {
  const shown = Math.min(1, size / Math.max(picture.width, picture.height));
  const [width, height] = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * shown)));
  return html`<img alt="" width="${width}" height="${height}" src="data:image/png;base64,${(await pngOfPicture(picture)).toString("base64")}">`;
}

/** Columns of text; numbers to 4 significant digits stand right. */
export function textOfTable(table: Table, limit: number): string {
  const names = table.columnNames();
  const rows = table.objects({ limit }) as Record<string, unknown>[];
  const cells = rows.map((row) => names.map((name) => textOfCell(row[name])));
  const widths = names.map((name, c) => Math.max(name.length, ...cells.map((row) => row[c]!.length)));
  const line = (row: string[], right: (c: number) => boolean) =>
    row
      .map((text, c) => (right(c) ? text.padStart(widths[c]!) : text.padEnd(widths[c]!)))
      .join("  ")
      .trimEnd();
  const lines = cells.map((row, r) => line(row, (c) => typeof rows[r]![names[c]!] === "number"));
  return [line(names, () => false), ...lines, ...restOf(table, rows.length, (text) => text)].join("\n");
}

/** One sentence where rows are left out. */
const restOf = <T>(table: Table, shown: number, make: (text: string) => T): T[] =>
  table.numRows() > shown
    ? [make(`${shown} of ${table.numRows().toLocaleString("en-US")} rows; show(table, { rows: … }) shows more.`)]
    : [];

function textOfCell(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (typeof value === "number")
    return Number.isInteger(value) || !Number.isFinite(value) ? String(value) : String(Number(value.toPrecision(4)));
  if (isPicture(value)) return `picture ${value.width} x ${value.height}`;
  const text = typeof value === "object" && !(value instanceof Date) ? JSON.stringify(value) : String(value);
  return text.length > 200 ? `${text.slice(0, 199)}…` : text;
}
