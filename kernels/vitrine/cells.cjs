// Remembers the source of each cell, so that an error can point at a line of the cell and not at a line of the JavaScript made from it.

const ts = require("@tslab/typescript-for-tslab");

// tslab finds out that a cell awaits from an `await name`. `for await (…)` and `await (…)` alone it takes for something else, so
// those cells are given a plain one to begin with.
const MISREAD_AWAIT = /\bfor\s+await\b|\bawait\s*[([{`"'/+-]/;
const PLAIN_AWAIT = "await null; ";

// tslab writes `exports.x` for a variable of an earlier cell, but misses it in `{ x }`; spelled out as `{ x: x }` it is found.
function spellOut(source) {
  if (!source.includes("{")) return source;
  const names = [];
  const visit = (node) => {
    if (ts.isShorthandPropertyAssignment(node)) names.push(node.name);
    ts.forEachChild(node, visit);
  };
  visit(ts.createSourceFile("cell.ts", source, ts.ScriptTarget.ES2022));
  return names.reduceRight((text, { end, text: name }) => `${text.slice(0, end)}: ${name}${text.slice(end)}`, source);
}

/** Wraps tslab's converter; `cells.next()` starts a cell, `cells.where("cell-3", 7)` finds the source of a compiled line. */
function createCells(converter) {
  const sources = new Map(); // "cell-3" -> { source: lines, compiled: lines }
  let count = 0;
  const convert = (declarations, source) => {
    const prefix = MISREAD_AWAIT.test(source) ? PLAIN_AWAIT : "";
    const result = converter.convert(declarations, prefix + spellOut(source));
    for (const { start } of result.diagnostics) if (start.line === 0) start.character -= prefix.length;
    if (!result.output) return result;
    const name = `cell-${count}`;
    sources.set(name, { source: source.split("\n"), compiled: result.output.split("\n") });
    return { ...result, output: `${result.output}\n//# sourceURL=${name}` };
  };
  return {
    converter: { ...converter, convert },
    next: () => ++count,
    get count() {
      return count;
    },
    where(name, line) {
      const cell = sources.get(name);
      const compiled = cell?.compiled[line - 1];
      if (compiled === undefined) return undefined;
      const found = closest(plain(compiled), cell.source);
      return found < 0 ? undefined : { line: found + 1, text: cell.source[found].trim() };
    },
  };
}

/** A compiled line with what the compiler wrote into it taken out: `(0, embed_1.encode)(exports.x)` is `encode(x)`. */
const plain = (line) =>
  line
    .replace(/\(0, (?:\w+_\d+\.)?(\w+)\)/g, "$1")
    .replace(/\b\w+_\d+\.(?:default\b\.?)?/g, "")
    .replace(/\bexports\.(?:tsLastExpr\d* = )?/g, "");

/** Index of the line with the most words in common; -1 where less than half agree. Types and layout differ, words hardly. */
function closest(line, lines) {
  const words = wordsOf(line);
  let [best, score] = [-1, 0.5];
  lines.forEach((candidate, i) => {
    const other = wordsOf(candidate);
    const common = [...words].filter((word) => other.has(word)).length;
    const agreement = common / Math.max(1, Math.min(words.size, other.size)) - 0.01 * Math.abs(words.size - other.size);
    if (other.size > 0 && agreement > score) [best, score] = [i, agreement];
  });
  return best;
}

const wordsOf = (line) => new Set(line.match(/[\p{L}\p{N}_$]+/gu) ?? []);

module.exports = { createCells };
