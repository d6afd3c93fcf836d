/**
 * Chat templates in Jinja as transformers renders them, by @huggingface/jinja with its differences mended in the syntax tree: what is printed
 * is Python's spelling (`True`, `None`, `['a']`), `strip` heeds its argument, and constructs that it has not, or has otherwise, are refused by name.
 */
import { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";
import { capitalize, modulo, print, range, strftimeNow, strip, type Value } from "./python";

/** A node of the library's syntax tree, as plain data. */
type Node = { type: string; [key: string]: unknown };

/** Names that a template cannot spell: functions of ours. */
const PRINT = "\u0001print";
const STRIP = "\u0001strip";
const CAPITALIZE = "\u0001capitalize";
const MODULO = "\u0001modulo";
const START = "\u0001start";
const END = "\u0001end";

const FILTERS = new Set(
  (
    "abs capitalize default dictsort first float indent int items join last length list lower map rejectattr replace reverse safe " +
    "selectattr sort string title tojson trim unique upper"
  ).split(" "),
);
const METHODS = new Set(
  "capitalize endswith get items keys lower lstrip replace rstrip split startswith strip title upper values".split(" "),
);
const TESTS = new Set(
  "boolean callable defined eq equalto even false integer iterable lower mapping none number odd sequence string true undefined upper".split(
    " ",
  ),
);
const STRIPPING = new Set(["strip", "lstrip", "rstrip"]);

/** A template ready to be filled. `spans` are the ranges that `{% generation %}` encloses. */
export type Compiled = (variables: Record<string, unknown>) => { text: string; spans: [number, number][] };

/** @throws Error naming each construct that would not give what transformers gives. */
export function compileTemplate(source: string): Compiled {
  const marked = source.replace(
    GENERATION,
    (_, left, end, right) => `{%${left} if true %}{{ ${end ? "generation__end" : "generation__start"} }}{% endif ${right}%}`,
  );
  const program = parse(tokenize(marked, { lstrip_blocks: true, trim_blocks: true })) as unknown as Node;
  const refused = new Set<string>();
  const tree = mend(program, refused) as Node;
  if (refused.size > 0)
    throw new Error(`this template uses what is not read here as transformers reads it: ${[...refused].join(", ")}; write it otherwise`);
  return (variables) => {
    const environment = new Environment();
    for (const [name, value] of Object.entries(GLOBALS)) environment.set(name, value);
    // a mark that no text can hold by chance, and nobody can know beforehand
    const nonce = Array.from({ length: 16 }, () => Math.floor(Math.random() * 16).toString(16)).join("");
    const [start, end] = [`\u0002${nonce}\u0003`, `\u0002${nonce}\u0004`];
    environment.set(START, start);
    environment.set(END, end);
    for (const [name, value] of Object.entries(variables)) if (!Object.hasOwn(GLOBALS, name)) environment.set(name, value);
    const output = new Interpreter(environment).run(tree as never) as { value: string };
    return takeMarks(output.value, start, end);
  };
}

const GENERATION = /\{%(-?)\s*(end)?generation\s*(-?)%\}/g;

/** Removes the marks from a text, and says where they stood. */
function takeMarks(marked: string, start: string, end: string): { text: string; spans: [number, number][] } {
  const spans: [number, number][] = [];
  let text = "";
  let from = 0;
  for (const part of marked.split(start).flatMap((piece, i) => (i === 0 ? [piece] : [start, piece]))) {
    if (part === start) {
      from = text.length;
      continue;
    }
    const [inside, ...rest] = part.split(end);
    text += inside;
    if (rest.length > 0) spans.push([from, text.length]);
    text += rest.join("");
  }
  return { text, spans };
}

/** The library looks at its nodes' classes, which it does not export: ours are made like those of a small template. */
const [sampleCall, sampleText] = parse(tokenize("{{ f([]) }}{{ '' }}")).body as unknown as Node[];
const like = (sample: Node, parts: Record<string, unknown>): Node =>
  Object.assign(Object.create(Object.getPrototypeOf(sample)), sample, parts);
const identifier = (value: string): Node => like(sampleCall.callee as Node, { value });
const call = (name: string, args: Node[]): Node => like(sampleCall, { callee: identifier(name), args });
const text = (value: string): Node => like(sampleText, { value });
/** A list keeps its members' kinds (1 or 1.0, none or undefined), which a function's arguments lose. */
const printed = (node: Node): Node =>
  node.type === "StringLiteral" ? node : call(PRINT, [like((sampleCall.args as Node[])[0], { value: [node] })]);

const STATEMENTS = new Set("Program If For Break Continue Set Macro Comment CallStatement FilterStatement".split(" "));
const BODIES = new Set(["body", "defaultBlock", "alternate"]);

/** The tree with our functions in it. `refused` collects the names of constructs. */
function mend(value: unknown, refused: Set<string>): unknown {
  if (Array.isArray(value)) return value.map((one) => mend(one, refused));
  if (value instanceof Map) return new Map(Array.from(value, ([key, one]) => [mend(key, refused), mend(one, refused)]));
  if (typeof value !== "object" || value === null) return value;
  const node: Node = like(value as Node, {});
  for (const [key, part] of Object.entries(value)) {
    const inner = mend(part, refused);
    node[key] = BODIES.has(key) ? (inner as Node[]).map((one) => (STATEMENTS.has(one.type) ? one : printed(one))) : inner;
  }
  return mendNode(node, refused);
}

function mendNode(node: Node, refused: Set<string>): Node {
  if (node.type === "Identifier" && node.value === "generation__start") return identifier(START);
  if (node.type === "Identifier" && node.value === "generation__end") return identifier(END);
  if (node.type === "For" && losesText(node.body as Node[])) refused.add("text before a break or continue in the same turn of a loop");
  const operator = node.type === "BinaryExpression" ? (node.operator as { value: string }).value : "";
  if (operator === "%") return call(MODULO, [node.left as Node, node.right as Node]);
  if (operator === "~") return like(node, { left: printed(node.left as Node), right: printed(node.right as Node) });
  if (node.type === "TestExpression") {
    const test = (node.test as { value: string }).value;
    if (!TESTS.has(test)) refused.add(`the test "is ${test}"`);
  }
  if (node.type === "FilterExpression") return mendFilter(node, refused);
  if (node.type === "FilterStatement") mendFilter(node, refused);
  if (node.type === "CallExpression") return mendCall(node, refused);
  return node;
}

/** Whether a turn of a loop may end after it has printed something; the library drops that. */
function losesText(body: Node[]): boolean {
  let hasPrinted = false;
  const lose = (list: Node[]): boolean =>
    list.some((one) => {
      if (one.type === "Break" || one.type === "Continue") return hasPrinted;
      if (one.type === "If") return lose(one.body as Node[]) || lose((one.alternate as Node[] | undefined) ?? []);
      if (["Set", "Macro", "Comment"].includes(one.type) || isRaise(one)) return false;
      hasPrinted = hasPrinted || !(one.type === "StringLiteral" && one.value === "");
      return false;
    });
  return lose(body);
}

/** A printed `raise_exception(…)` prints nothing. */
function isRaise(node: Node): boolean {
  const list = node.type === "CallExpression" && (node.callee as Node).value === PRINT ? (node.args as Node[])[0] : undefined;
  const inner = list ? (list.value as Node[])[0] : node;
  return inner.type === "CallExpression" && (inner.callee as Node).value === "raise_exception";
}

function mendFilter(node: Node, refused: Set<string>): Node {
  const filter = node.filter as Node;
  const args = filter.type === "CallExpression" ? (filter.args as Node[]) : [];
  const given = String((filter.type === "CallExpression" ? (filter.callee as Node) : filter).value);
  const name = given === "count" ? "length" : given === "d" ? "default" : given;
  if (!FILTERS.has(name)) refused.add(`the filter "${given}"`);
  const isKeyword = (key: string) => args.some((arg) => arg.type === "KeywordArgumentExpression" && (arg.key as Node).value === key);
  if (name === "map" && !isKeyword("attribute")) refused.add('the filter "map" without attribute=');
  if ((name === "selectattr" || name === "rejectattr") && args[1]?.type === "StringLiteral" && !TESTS.has(String(args[1].value)))
    refused.add(`the test "${args[1].value}" in ${name}`);
  const operand = node.operand as Node | undefined;
  if (operand && name === "string") return printed(operand);
  if (operand && name === "trim") return call(STRIP, [text("strip"), printed(operand), ...positional(args, "trim", refused)]);
  if (operand && name === "capitalize") return call(CAPITALIZE, [printed(operand)]);
  if (name === "default" && filter.type === "Identifier") return like(node, { filter: call("default", []) });
  if (given === name) return node;
  return like(node, { filter: filter.type === "CallExpression" ? like(filter, { callee: identifier(name) }) : identifier(name) });
}

function mendCall(node: Node, refused: Set<string>): Node {
  const callee = node.callee as Node;
  if (callee.type !== "MemberExpression") return node;
  const property = callee.property as Node;
  if (callee.computed || property.type !== "Identifier") {
    refused.add("a method chosen by an expression");
    return node;
  }
  const name = String(property.value);
  if (!METHODS.has(name)) refused.add(`the method ".${name}()"`);
  if (name === "capitalize") return call(CAPITALIZE, [callee.object as Node]);
  if (!STRIPPING.has(name)) return node;
  return call(STRIP, [text(name), callee.object as Node, ...positional(node.args as Node[], name, refused)]);
}

function positional(args: Node[], name: string, refused: Set<string>): Node[] {
  if (args.some((arg) => /^(Keyword|Spread)/.test(arg.type))) refused.add(`arguments of "${name}" by name`);
  return args;
}

/** Raised by the template itself. */
export class TemplateRefusal extends Error {}

const GLOBALS: Record<string, unknown> = {
  ...{ true: true, false: false, none: null, True: true, False: false, None: null },
  range,
  strftime_now: strftimeNow,
  raise_exception: (message: unknown) => {
    throw new TemplateRefusal(String(message));
  },
  [PRINT]: ([value]: Value[]) => print(value),
  [STRIP]: strip,
  [CAPITALIZE]: capitalize,
  [MODULO]: modulo,
};
