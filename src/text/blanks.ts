/** Python's blanks, which are others than JavaScript's: U+001C to U+001F and U+0085 are among them, U+FEFF is not. */

/** A regular expression's class of them. */
export const BLANKS = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";

const LEADING = new RegExp(`^${BLANKS}+`);
const BLANK = new RegExp(BLANKS);

/** Python's `str.strip()`. */
export function strip(text: string): string {
  const rest = text.replace(LEADING, "");
  let end = rest.length;
  while (end > 0 && BLANK.test(rest[end - 1])) end--;
  return rest.slice(0, end);
}
