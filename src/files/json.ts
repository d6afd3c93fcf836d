/**
 * Strict JSON (RFC 8259) read piece by piece. `JSON.parse` is no judge of a weight file's header: it rounds whole numbers above 2^53,
 * takes `2.0` for 2, and drops all but the last of two equal keys.
 */
import { readFileSync, statSync } from "node:fs";

/** Deepest nesting; serde_json, the reference reader's parser, has the same bound. */
const MAX_DEPTH = 127;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const LITERAL = /true|false|null/y;
const SPACE = /[ \t\r\n]*/y;

export class JsonScanner {
  private at = 0;
  /** What is being read, for error messages: `tensor "x"`. */
  context = "";

  /** source: how error messages call this text. */
  constructor(
    private readonly text: string,
    private readonly source: string,
  ) {}

  /** Throws `source:line:column: problem`. Columns count from 1, in characters. */
  fail(problem: string, at = this.at): never {
    const before = this.text.slice(0, at);
    const line = before.split("\n").length;
    const column = at - before.lastIndexOf("\n");
    throw new Error(`${this.source}:${line}:${column}: ${this.context ? `${this.context}: ` : ""}${problem}`);
  }

  private space(): void {
    SPACE.lastIndex = this.at;
    SPACE.test(this.text);
    this.at = SPACE.lastIndex;
  }

  /** The next character that is not white space ("" at the end); it is not consumed. */
  peek(): string {
    this.space();
    return this.text.charAt(this.at);
  }

  private take(character: string): boolean {
    if (this.peek() !== character) return false;
    this.at++;
    return true;
  }

  private expect(...characters: string[]): string {
    const got = this.peek();
    if (!characters.includes(got) || got === "") this.fail(`expected ${characters.map((c) => `"${c}"`).join(" or ")}, got ${name(got)}`);
    this.at++;
    return got;
  }

  /** Reads an object; `visit(key)` must consume that key's value. */
  object(visit: (key: string) => void): void {
    this.expect("{");
    if (this.take("}")) return;
    do {
      const key = this.string();
      this.expect(":");
      visit(key);
    } while (this.expect(",", "}") === ",");
  }

  /** Reads an array; `visit(index)` must consume one element. */
  array(visit: (index: number) => void): void {
    this.expect("[");
    if (this.take("]")) return;
    let index = 0;
    do visit(index++);
    while (this.expect(",", "]") === ",");
  }

  string(): string {
    if (this.peek() !== '"') this.fail(`expected a text in double quotes, got ${name(this.text.charAt(this.at))}`);
    const start = this.at;
    let escaped = false;
    for (let i = start + 1; i < this.text.length; i++) {
      const code = this.text.charCodeAt(i);
      if (code < 0x20) this.fail(`control character ${name(this.text.charAt(i))} inside a text; it must be escaped`, i);
      if (code === 0x5c) {
        escaped = true;
        i++;
      } else if (code === 0x22) {
        this.at = i + 1;
        return escaped ? this.unescape(start) : this.text.slice(start + 1, i);
      }
    }
    return this.fail("this text has no end", start);
  }

  private unescape(start: number): string {
    let value: string;
    try {
      value = JSON.parse(this.text.slice(start, this.at));
    } catch {
      this.fail("invalid escape in a text", start);
    }
    if (/\p{Cs}/u.test(value)) this.fail("half of a surrogate pair in a text", start);
    return value;
  }

  /** A whole number from 0 to 2^53 - 1, written with digits only. */
  integer(): number {
    this.space();
    const start = this.at;
    const raw = /[^\s,\]}]*/y;
    raw.lastIndex = start;
    const text = raw.exec(this.text)?.[0] ?? "";
    if (!/^(?:0|[1-9]\d*)$/.test(text))
      this.fail(`expected a whole number of 0 or more, got ${text.slice(0, 40) || name(this.peek())}`, start);
    this.at = start + text.length;
    const value = Number(text);
    if (!Number.isSafeInteger(value)) this.fail(`${text.slice(0, 40)} is larger than any size can be`, start);
    return value;
  }

  /** `null`, if that is what comes. */
  nothing(): boolean {
    if (this.peek() !== "n") return false;
    this.skip();
    return true;
  }

  /** Checks and drops any value. */
  skip(depth = 0): void {
    if (depth > MAX_DEPTH) this.fail(`nested deeper than ${MAX_DEPTH} levels`);
    const first = this.peek();
    if (first === "{") this.object(() => this.skip(depth + 1));
    else if (first === "[") this.array(() => this.skip(depth + 1));
    else if (first === '"') this.string();
    else this.skipToken(first);
  }

  private skipToken(first: string): void {
    const token = first >= "a" ? LITERAL : NUMBER;
    token.lastIndex = this.at;
    if (!token.test(this.text)) this.fail(`expected a value, got ${name(first)}`);
    this.at = token.lastIndex;
  }

  /** Nothing but white space may follow. */
  end(): void {
    if (this.peek() !== "") this.fail(`expected the end, got ${name(this.peek())}`);
  }
}

/** A character for a person to read. */
function name(character: string): string {
  if (character === "") return "the end of the text";
  const code = character.charCodeAt(0);
  const plain = code >= 0x20 && code < 0x7f;
  return plain ? `"${character}"` : `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
}

/** Larger than any tokenizer.json; a larger "configuration" is a mistake. */
const MAX_JSON_BYTES = 256 * 2 ** 20;

/**
 * Reads a JSON file that holds one object (config.json, an index, a vocabulary).
 *
 * @throws Error naming the file, and line and column of the first mistake.
 */
export function readJson(path: string): Record<string, unknown> {
  const text = readText(path);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    const scanner = new JsonScanner(text, path);
    scanner.skip(); // finds the place, which the message of JSON.parse does not reliably tell
    scanner.end();
    throw new Error(`${path}: ${(error as Error).message}`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new Error(
      `${path}: expected an object {…}, got ${Array.isArray(value) ? "an array" : value === null ? "null" : `a ${typeof value}`}`,
    );
  return value as Record<string, unknown>;
}

function readText(path: string): string {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (!stat) throw Object.assign(new Error(`${path} does not exist`), { code: "ENOENT" });
  if (!stat.isFile()) throw new Error(`${path} is not a file`);
  if (stat.size > MAX_JSON_BYTES) throw new Error(`${path} has ${stat.size} bytes; at most ${MAX_JSON_BYTES} are read as JSON`);
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(readFileSync(path));
  } catch (error) {
    if (error instanceof TypeError) throw new Error(`${path} is not UTF-8 text`, { cause: error });
    throw error;
  }
}

/** A value as the text of a file: indented by two blanks, with a line break at the end. */
export const jsonText = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`;
