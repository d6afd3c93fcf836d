/** HTML out of data: whatever is not our own markup is escaped. */

/** Text as HTML: what looks like markup in it is shown, not obeyed. */
export const escapeHtml = (text: string): string => text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);

const HTML = Symbol.for("vitrine.html");

/** Markup made by `html`; anything else is data and gets escaped. */
export type Html = { markup: string; [HTML]: true };

export const isHtml = (value: unknown): value is Html => (value as Partial<Html> | null)?.[HTML] === true;

/**
 * Markup with values in it: html`<b>${name}</b>`. The values are escaped, unless they are `html` themselves; an array is joined.
 */
export function html(parts: TemplateStringsArray, ...values: unknown[]): Html {
  const one = (value: unknown): string =>
    isHtml(value) ? value.markup : Array.isArray(value) ? value.map(one).join("") : escapeHtml(String(value));
  return { markup: parts.reduce((markup, part, i) => markup + one(values[i - 1]) + part), [HTML]: true };
}

/** The same as text: tags out, entities back. For "text/plain" beside "text/html". */
export const textOfHtml = ({ markup }: Html): string =>
  markup
    .replace(/<[^>]*>/g, " ")
    .replace(/&#(\d+);/g, (_, code) => String.fromCharCode(Number(code)))
    .replace(/\s+/g, " ")
    .trim();
