/** Attention as rows of numbers, made readable: averaged over layers and heads, folded where a picture's tokens stand, shared out by what was looked at. */

/** Patterns of several layers, as recorded: [layers][heads][queries][keys]. */
export type Layers = ArrayLike<ArrayLike<ArrayLike<ArrayLike<number>>>>;

/** Tokens that are shown as one: [start, end). */
export type Span = { start: number; end: number };

const all = (count: number): number[] => Array.from({ length: count }, (_, i) => i);

function checkChosen(what: string, chosen: readonly number[], count: number): void {
  const odd = chosen.find((one) => !(Number.isInteger(one) && one >= 0 && one < count));
  if (chosen.length === 0 || odd !== undefined)
    throw new RangeError(`meanPattern: ${what} ${chosen.length ? odd : "are none"}, expected whole numbers from 0 to ${count - 1}`);
}

/** The mean over layers and heads, or over those chosen: [queries][keys]. Rows that sum to 1 still do. */
export function meanPattern(
  layers: Layers,
  { layers: chosenLayers, heads }: { layers?: readonly number[]; heads?: readonly number[] } = {},
): Float64Array[] {
  if (!(layers?.length > 0)) throw new RangeError("meanPattern: no layers, expected [layers][heads][queries][keys]");
  const which = chosenLayers ?? all(layers.length);
  checkChosen("layers", which, layers.length);
  const parts = which.flatMap((layer) => {
    if (heads) checkChosen("heads", heads, layers[layer].length);
    return (heads ?? all(layers[layer].length)).map((head) => layers[layer][head]);
  });
  return all(parts[0].length).map((query) => {
    const row = new Float64Array(parts[0][query].length);
    for (const part of parts) for (let key = 0; key < row.length; key++) row[key] += part[query][key] / parts.length;
    return row;
  });
}

/**
 * Each span of tokens as one: what is looked at there is added up, what looks from there is averaged, so that rows still sum to 1. For head and model views
 * of a prompt whose picture has a thousand tokens. Patterns are square; spans do not overlap.
 *
 * @returns patterns and tokens of the same kind, shorter
 */
export function foldTokens(
  layers: Layers,
  tokens: readonly string[],
  spans: readonly (Span & { label?: string })[],
): { layers: Float64Array[][][]; tokens: string[] } {
  const groups: { label: string; members: number[] }[] = [];
  for (let i = 0; i < tokens.length; ) {
    const span = spans.find(({ start }) => start === i);
    const end = span ? span.end : i + 1;
    if (end <= i || end > tokens.length)
      throw new RangeError(`foldTokens: span ${span?.start} to ${span?.end} of ${tokens.length} tokens, expected start < end`);
    groups.push({ label: span ? (span.label ?? `⟨${end - i} tokens⟩`) : tokens[i], members: all(end - i).map((k) => i + k) });
    i = end;
  }
  const fold = (rows: ArrayLike<ArrayLike<number>>): Float64Array[] => {
    if (rows.length !== tokens.length || rows[0].length !== tokens.length)
      throw new RangeError(`foldTokens: ${tokens.length} tokens for a pattern of ${rows.length}x${rows[0].length}, expected one for each`);
    return groups.map(({ members }) =>
      Float64Array.from(groups, (group) => {
        let sum = 0;
        for (const query of members) for (const key of group.members) sum += rows[query][key];
        return sum / members.length;
      }),
    );
  };
  const folded = Array.from(layers, (heads) => Array.from(heads, fold));
  return { layers: folded, tokens: groups.map(({ label }) => label) };
}

/** What an answer looked at, summed: shares of 1 for each row. */
export type Shares = { pictures: number[]; sink: number; text: number; answer: number };

/**
 * How each row's attention divides among pictures, sinks, the prompt's other text, and the answer so far.
 *
 * @param rows [tokens][keys], of `meanPattern(await answerAttention(...))`
 * @param prompt how many keys are the prompt's, and where its pictures stand
 * @param sinks tokens that gather attention whatever they say, by default the first (Xiao et al. 2023)
 */
export function attentionShare(
  rows: ArrayLike<ArrayLike<number>>,
  prompt: { length: number; images: readonly Span[] },
  { sinks = [0] }: { sinks?: readonly number[] } = {},
): Shares[] {
  return Array.from(rows, (row) => {
    const shares: Shares = { pictures: prompt.images.map(() => 0), sink: 0, text: 0, answer: 0 };
    for (let key = 0; key < row.length; key++) {
      const picture = prompt.images.findIndex(({ start, end }) => key >= start && key < end);
      if (sinks.includes(key)) shares.sink += row[key];
      else if (picture >= 0) shares.pictures[picture] += row[key];
      else if (key < prompt.length) shares.text += row[key];
      else shares.answer += row[key];
    }
    return shares;
  });
}
