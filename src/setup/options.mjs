// Command lines of the npm scripts.
import { SetupError } from "./say.mjs";

/** The known word nearest to `word` (fewest letters changed), or undefined where none is near. */
export function nearest(word, known) {
  const ranked = known.map((name) => ({ name, steps: distance(word, name) })).sort((a, b) => a.steps - b.steps);
  return ranked[0] && ranked[0].steps <= Math.max(2, word.length / 2) ? ranked[0].name : undefined;
}

function distance(a, b) {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) next.push(Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1)));
    row = next;
  }
  return row[b.length];
}

/**
 * Reads `args` after `known`: { "--port": "number", "--headless": "flag" }. Gives { port: 8888, headless: true }.
 * Throws SetupError that names the argument, and the nearest known one.
 */
export function readOptions(args, known, usage) {
  const found = {};
  const rest = [...args];
  while (rest.length) {
    const [name, inline] = rest.shift().split(/=(.*)/s);
    const kind = known[name];
    if (!kind) throw unknown(name, Object.keys(known), usage);
    if (kind === "flag" && inline !== undefined) throw new SetupError(`${name} takes no value, got "${inline}"`, { advice: usage });
    found[camel(name)] = kind === "flag" ? true : number(name, inline ?? rest.shift(), usage);
  }
  return found;
}

function unknown(name, names, usage) {
  const near = nearest(name, names);
  const hint = near ? `; did you mean ${near}?` : `; known are ${names.join(", ")}`;
  return new SetupError(`Unknown option "${name}"${hint}`, { advice: usage });
}

function number(name, text, usage) {
  const value = Number(text);
  if (text === undefined || text === "" || !Number.isInteger(value) || value < 1 || value > 65535)
    throw new SetupError(`${name} takes a whole number from 1 to 65535, got ${text === undefined ? "nothing" : `"${text}"`}`, {
      advice: usage,
    });
  return value;
}

const camel = (name) => name.replace(/^--/, "").replace(/-([a-z])/g, (_, letter) => letter.toUpperCase());
