// Errors as a person wants them: the message first and whole, then the lines of the cell and of Vitrine, the causes, and nothing of
// Node's or tslab's insides.
const fs = require("node:fs");
const { SourceMap } = require("node:module");
const { join } = require("node:path");
const { inspect } = require("node:util");
const { modules } = require("./environment.cjs");
const { Interrupted } = require("./interrupt.cjs");

const LIBRARY = modules ? fs.realpathSync(join(modules, "vitrine")) : undefined;
const red = (text) => `\u001b[1;31m${text}\u001b[0m`;

/** What was thrown -> Jupyter's { ename, evalue, traceback }. `cells` finds the lines of cells. */
function describeError(thrown, cells) {
  if (thrown?.code === "ERR_SCRIPT_EXECUTION_INTERRUPTED") thrown = interrupted("the cell was stopped in the middle of a computation");
  if (!isError(thrown)) thrown = { name: "Thrown", message: typeof thrown === "string" ? thrown : inspect(thrown), stack: "" };
  const traceback = [];
  let indent = "";
  for (const [error, depth] of chain(thrown)) {
    indent = depth === 0 ? "" : "  ";
    if (depth > 0) traceback.push("caused by");
    const name = error.name || "Error";
    traceback.push(indentLines(`${depth === 0 ? red(name) : name}: ${error.message}`, indent));
    if (!(error instanceof Interrupted)) traceback.push(...frames(error, cells).map((line) => `${indent}    ${line}`));
  }
  return { ename: thrown.name || "Error", evalue: String(thrown.message), traceback };
}

const isError = (value) => value instanceof Error || (typeof value?.message === "string" && typeof value?.stack === "string");
const indentLines = (text, indent) =>
  text
    .split("\n")
    .map((line) => indent + line)
    .join("\n");

/** An error that says what an interrupt does. */
function interrupted(what) {
  return new Interrupted(`${what}. Variables that this cell declares are lost; those of earlier cells are kept.`);
}

/** The error, its causes and the errors gathered in it, at most six. */
function chain(error) {
  const found = [];
  const add = (one, depth) => {
    if (!isError(one) || found.length >= 6 || found.some(([seen]) => seen === one)) return;
    found.push([one, depth]);
    for (const part of Array.isArray(one.errors) ? one.errors : []) add(part, depth + 1);
    add(one.cause, depth + 1);
  };
  add(error, 0);
  return found;
}

/** The frames that help: of cells and of ours. Where an error comes out of a library, one line names the library. */
function frames(error, cells) {
  const shown = [];
  let library;
  for (const [, called, file, line, column] of String(error.stack).matchAll(
    /^\s+at (?:async )?(?:(.+?) \()?(?:file:\/\/)?([^\s()]+?):(\d+):(\d+)\)?$/gm,
  )) {
    const place = placeOf(file, Number(line), Number(column), cells);
    const from = /.*\/node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(file)?.[1];
    const name = called?.replace(/^(?:Proxy|Object|Module|Function)\.|^new (?=Proxy)/, "");
    const named = name && !/^(?:eval|<anonymous>|cell-)/.test(name) ? `  in ${name}` : "";
    if (place) shown.push(`at ${place}${named}`);
    else if (shown.length === 0 && from && !from.includes("tslab") && !file.startsWith(__dirname)) library ??= from;
  }
  if (library) shown.push(`thrown inside the package ${library}`);
  // The wrapper around a cell is a frame of its own, of no line.
  return shown.filter((line) => !/^at cell \d+$/.test(line) || shown.length === 1).slice(0, 12);
}

function placeOf(file, line, column, cells) {
  if (/^cell-\d+$/.test(file)) {
    const found = cells.where(file, line);
    const cell = file.replace("-", " ");
    return found ? `${cell}, line ${found.line}: ${found.text}` : cell;
  }
  if (!LIBRARY || !file.startsWith(`${LIBRARY}/`) || file.startsWith(__dirname) || file.includes("/node_modules/")) return undefined;
  const original = originalOf(file, line, column);
  return original ?? `vitrine${file.slice(LIBRARY.length)}:${line}`;
}

/** `src/models/clip.ts:88` for a line of a compiled file; undefined where there is no source map. */
function originalOf(file, line, column) {
  try {
    const entry = new SourceMap(JSON.parse(fs.readFileSync(`${file}.map`, "utf8"))).findEntry(line - 1, column - 1);
    return `${entry.originalSource.replace(/^.*?(?=src\/)/, "")}:${entry.originalLine + 1}`;
  } catch {
    return undefined;
  }
}

/** What does not compile -> { ename, evalue, traceback }: each message under its line of the cell. */
function describeDiagnostics(diagnostics, code) {
  const lines = code.split("\n");
  const traceback = [];
  let last;
  for (const { file, line, column, text } of diagnostics) {
    const here = `${file}${line}:${column}`;
    if (here === last) {
      traceback.push(`    ${text}`); // the compiler's explanation of the message before
      continue;
    }
    last = here;
    traceback.push(`${red("TypeScript")}: ${text}`);
    if (file) traceback.push(`    at ${file}:${line}`);
    else if (lines[line - 1] !== undefined)
      traceback.push(`    line ${line}: ${lines[line - 1]}`, `${" ".repeat(`    line ${line}: `.length + column - 1)}^`);
  }
  return { ename: "TypeScript", evalue: diagnostics[0]?.text ?? "the cell does not compile", traceback };
}

module.exports = { describeError, describeDiagnostics, interrupted };
