// npm run doctor: every part, found or not, what it means, how to fix it. Looks only; changes nothing.
import { inspect } from "./inspect.mjs";
import { readOptions } from "./options.mjs";
import { ROOT } from "./places.mjs";

export async function main(args) {
  const { json } = readOptions(args, { "--json": "flag" }, "npm run doctor -- [--json]");
  const rows = await inspect(ROOT);
  console.log(json ? JSON.stringify(rows, null, 2) : `${table(rows, process.stdout.columns)}\n\n${verdict(rows)}`);
  return works(rows) ? 0 : 1;
}

/** Whether the main job can run: notebooks in JupyterLab, on whichever engine there is. */
export const works = (rows) => rows.every(({ found, needed }) => found || !needed);

/** One paragraph under the table: what to do first, or that all is well. */
export function verdict(rows) {
  const missing = rows.filter(({ found, needed }) => needed && !found);
  const optional = rows.filter(({ found, needed }) => !needed && !found);
  if (missing.length)
    return `The notebooks cannot run yet: ${missing.map(({ part }) => part).join(", ")} missing. What to do first: ${missing[0].fix}`;
  const rest = optional.length
    ? ` Without ${optional.map(({ part }) => part).join(", ")} some things are slower or left out; see above.`
    : "";
  return `The notebooks can run.${rest}`;
}

const HEADS = ["part", "", "version", "what it means"];

/** The rows as aligned text; a missing part has its fix on the next line. width: columns of the terminal, 120 without one. */
export function table(rows, width = 120) {
  const mark = ({ found, needed }) => (found ? "found" : needed ? "MISSING" : "not found");
  const lines = rows.map((row) => [row.part, mark(row), row.version || "-", row.meaning]);
  const widths = HEADS.map((head, i) => Math.min(40, Math.max(head.length, ...lines.map((line) => line[i].length))));
  const put = (cells) =>
    cells
      .map((cell, i) => (i < 3 ? cell.slice(0, 40).padEnd(widths[i]) : cell))
      .join("  ")
      .trimEnd();
  const indent = " ".repeat(widths[0] + 2);
  const body = rows.flatMap((row, i) => [
    ...wrap(put(lines[i]), width, " ".repeat(widths[0] + widths[1] + widths[2] + 6)),
    ...(row.found && !row.warn ? [] : wrap(`${indent}-> ${row.fix}`, width, `${indent}   `)),
  ]);
  return [put(HEADS), ...body].join("\n");
}

function wrap(text, width, indent) {
  const limit = Math.max(width, indent.length + 40);
  const lines = [];
  let rest = text;
  while (rest.length > limit) {
    const cut = rest.lastIndexOf(" ", limit);
    const at = cut > indent.length ? cut : limit;
    lines.push(rest.slice(0, at).trimEnd());
    rest = indent + rest.slice(at).trimStart();
  }
  return [...lines, rest];
}
