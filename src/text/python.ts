/** What chat templates expect of Python: how values are printed, and functions that JavaScript has otherwise. */
import { BLANKS } from "./blanks";

/** A value inside the interpreter. */
export type Value = { type: string; value: unknown };

/** What a template prints: Python's str(). */
export function print(value: Value): string {
  return value.type === "StringValue" ? String(value.value) : value.type === "UndefinedValue" ? "" : repr(value);
}

/** Python's repr(). */
function repr({ type, value }: Value): string {
  switch (type) {
    case "StringValue":
      return quoted(String(value));
    case "BooleanValue":
      return value ? "True" : "False";
    case "NullValue":
      return "None";
    case "UndefinedValue":
      return "Undefined";
    case "FloatValue":
      return Number.isInteger(value) ? `${value}.0` : String(value);
    case "ArrayValue":
      return `[${(value as Value[]).map(repr).join(", ")}]`;
    case "TupleValue":
      return (value as Value[]).length === 1 ? `(${repr((value as Value[])[0])},)` : `(${(value as Value[]).map(repr).join(", ")})`;
    case "ObjectValue":
      return `{${Array.from(value as Map<string, Value>, ([key, one]) => `${quoted(key)}: ${repr(one)}`).join(", ")}}`;
    case "IntegerValue":
      return String(value);
    default:
      throw new Error(`a template cannot print a ${type}`);
  }
}

const ESCAPES: Record<string, string> = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" };
const quoted = (value: string): string => {
  const quote = value.includes("'") && !value.includes('"') ? '"' : "'";
  return quote + value.replace(/[\\\n\r\t]/g, (one) => ESCAPES[one]).replaceAll(quote, `\\${quote}`) + quote;
};

const BLANK = new RegExp(BLANKS);

/** Python's strip, lstrip and rstrip: characters of `set`, or blanks. */
export function strip(side: string, value: unknown, set?: unknown): string {
  if (typeof value !== "string") throw new Error(`.${side}() of what is no text`);
  const drops = typeof set === "string" ? (one: string) => set.includes(one) : (one: string) => BLANK.test(one);
  const characters = Array.from(value);
  let [from, to] = [0, characters.length];
  if (side !== "rstrip") while (from < to && drops(characters[from])) from++;
  if (side !== "lstrip") while (to > from && drops(characters[to - 1])) to--;
  return characters.slice(from, to).join("");
}

/** Python's capitalize: the first letter upper case, all others lower case. */
export function capitalize(value: unknown): string {
  if (typeof value !== "string") throw new Error(".capitalize() of what is no text");
  const [first = "", ...rest] = Array.from(value);
  return first.toUpperCase() + rest.join("").toLowerCase();
}

/** Python's remainder, which has the sign of the divisor. */
export function modulo(left: unknown, right: unknown): number {
  if (typeof left !== "number" || typeof right !== "number")
    throw new Error(`"%" of a ${typeof left} and a ${typeof right}: only numbers are divided here`);
  if (right === 0) throw new Error("division by zero");
  return ((left % right) + right) % right;
}

const DAYS = "Sunday Monday Tuesday Wednesday Thursday Friday Saturday".split(" ");
const MONTHS = "January February March April May June July August September October November December".split(" ");

/** Today's date in a format of Python's strftime. */
export function strftimeNow(format: unknown): string {
  const now = new Date();
  const two = (number: number) => String(number).padStart(2, "0");
  const parts: Record<string, string> = {
    ...{
      Y: String(now.getFullYear()),
      m: two(now.getMonth() + 1),
      d: two(now.getDate()),
      H: two(now.getHours()),
      M: two(now.getMinutes()),
    },
    ...{ S: two(now.getSeconds()), y: two(now.getFullYear() % 100), "%": "%", A: DAYS[now.getDay()], a: DAYS[now.getDay()].slice(0, 3) },
    ...{ B: MONTHS[now.getMonth()], b: MONTHS[now.getMonth()].slice(0, 3), e: String(now.getDate()).padStart(2, " ") },
  };
  return String(format).replace(/%(.)/g, (whole, key) => {
    if (!Object.hasOwn(parts, key)) throw new Error(`strftime_now: ${whole} is not known`);
    return parts[key];
  });
}

/** Members of a range, at most: a prompt needs no more, and the list is made before the loop begins. */
const LONGEST_RANGE = 100_000;

export function range(...bounds: number[]): number[] {
  const [start, stop, step] = bounds.length === 1 ? [0, bounds[0], 1] : [bounds[0], bounds[1], bounds[2] ?? 1];
  if (![start, stop, step].every(Number.isInteger) || step === 0)
    throw new Error(`range(${bounds.join(", ")}): expected whole numbers, and a step that is not 0`);
  const count = Math.max(0, Math.ceil((stop - start) / step));
  if (count > LONGEST_RANGE) throw new RangeError(`range(${bounds.join(", ")}) has ${count} members, at most ${LONGEST_RANGE} are allowed`);
  return Array.from({ length: count }, (_, i) => start + i * step);
}
