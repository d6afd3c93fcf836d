/** Lists and objects of tensors taken apart and put together again. */
import { tf } from "./tf";

/** The tensors of a container in order, its form as a text, and how to put other tensors in their places. */
export type Parts = { tensors: tf.Tensor[]; form: string; rebuild(tensors: readonly tf.Tensor[]): unknown };

/**
 * Takes a container apart. Its form names every shape and dtype, and the values that are no tensors: two containers of one form differ in tensors' numbers only.
 * @param where names the container in an error
 * @throws TypeError on what is neither a tensor, a plain list or object, nor a number, text, truth value or nothing
 */
export function takeApart(container: unknown, where: string): Parts {
  const tensors: tf.Tensor[] = [];
  const visit = (value: unknown, path: string): { form: string; rebuild(from: readonly tf.Tensor[]): unknown } => {
    if (value instanceof tf.Tensor) {
      const i = tensors.push(value) - 1;
      return { form: `${value.dtype}[${value.shape}]`, rebuild: (from) => from[i] };
    }
    if (Array.isArray(value)) {
      const items = value.map((item, i) => visit(item, `${path}[${i}]`));
      return { form: `[${items.map((item) => item.form)}]`, rebuild: (from) => items.map((item) => item.rebuild(from)) };
    }
    if (isPlain(value)) {
      const items = Object.entries(value).map(([key, item]) => [key, visit(item, `${path}.${key}`)] as const);
      const form = `{${items.map(([key, item]) => `${JSON.stringify(key)}:${item.form}`)}}`;
      return { form, rebuild: (from) => Object.fromEntries(items.map(([key, item]) => [key, item.rebuild(from)])) };
    }
    if (value === null || ["undefined", "number", "string", "boolean"].includes(typeof value))
      return { form: typeof value === "string" ? JSON.stringify(value) : String(value), rebuild: () => value };
    const what = typeof value === "object" ? (value as object).constructor.name : `a ${typeof value}`;
    throw new TypeError(`${path} is ${what}; expected tensors, plain lists and objects of them, numbers, texts, or nothing`);
  };
  const { form, rebuild } = visit(container, where);
  return { tensors, form, rebuild };
}

function isPlain(value: unknown): value is object {
  if (typeof value !== "object" || value === null) return false;
  const prototype = Object.getPrototypeOf(value);
  return prototype === null || Object.getPrototypeOf(prototype) === null; // an object of another realm too
}
