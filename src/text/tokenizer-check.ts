/** Refuses vocabularies that contradict themselves, when a checkpoint is opened and not in the middle of its use. */

/** A parsed `tokenizer.json` (huggingface/tokenizers). */
export type TokenizerJson = Record<string, unknown> & { model: Record<string, unknown>; added_tokens: AddedEntry[] };
export type AddedEntry = { id: number; content: string; special?: boolean; lstrip?: boolean; rstrip?: boolean; single_word?: boolean };

/** Misfits named in one error. */
const SHOWN = 10;
const MODELS = ["BPE", "WordPiece", "Unigram"];
const MAX_ID = 2 ** 31 - 1;

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null && !Array.isArray(value);
const isId = (value: unknown): value is number => Number.isInteger(value) && (value as number) >= 0 && (value as number) <= MAX_ID;
const show = (value: unknown): string => JSON.stringify(value)?.slice(0, 60) ?? String(value);

/** Throws one error that lists misfits of a file. */
export function refuse(path: string, misfits: string[]): void {
  if (misfits.length === 0) return;
  const more = misfits.length > SHOWN ? [`… and ${misfits.length - SHOWN} more`] : [];
  throw new Error(`${path} is not a usable tokenizer:\n${[...misfits.slice(0, SHOWN), ...more].map((line) => `  ${line}`).join("\n")}`);
}

/** What is wrong with token -> id, which must use every id from 0 on exactly once. */
export function vocabMisfits(where: string, vocab: Iterable<[string, unknown]>, added: AddedEntry[] = []): string[] {
  const misfits: string[] = [];
  const owner = new Map<number, string>();
  const idOf = new Map<string, number>();
  const note = (place: string, token: string, id: unknown) => {
    if (!isId(id)) return misfits.push(`${place}: ${show(token)} has id ${show(id)}, expected a whole number of 0 to ${MAX_ID}`);
    const known = idOf.get(token);
    if (known !== undefined && known !== id) misfits.push(`${place}: ${show(token)} has id ${id}, but elsewhere id ${known}`);
    const other = owner.get(id);
    if (other !== undefined && other !== token) misfits.push(`${place}: ${show(token)} and ${show(other)} both have id ${id}`);
    owner.set(id, token);
    return idOf.set(token, id);
  };
  for (const [token, id] of vocab) note(where, token, id);
  added.forEach(({ content, id }, i) => note(`added_tokens[${i}]`, content, id));
  if (misfits.length === 0) misfits.push(...holes(where, owner));
  return misfits;
}

function holes(where: string, owner: Map<number, string>): string[] {
  let missing = 0;
  let first = -1;
  const largest = [...owner.keys()].reduce((a, b) => Math.max(a, b), -1);
  if (largest + 1 === owner.size) return [];
  for (let id = 0; id <= largest && missing < 1000; id++) if (!owner.has(id) && missing++ === 0) first = id;
  return [`${where}: no token has id ${first} (${largest + 1 - owner.size} ids up to the largest, ${largest}, are free)`];
}

/** What is wrong with the merges of a BPE vocabulary. `where(i)` names an entry. */
export function mergeMisfits(where: (i: number) => string, merges: unknown[], vocab: ReadonlySet<string>, prefix = ""): string[] {
  const misfits: string[] = [];
  merges.forEach((merge, i) => {
    const pair = typeof merge === "string" ? merge.split(" ") : merge;
    if (!Array.isArray(pair) || pair.length !== 2 || !pair.every((part) => typeof part === "string" && part !== "")) {
      misfits.push(`${where(i)}: ${show(merge)}, expected two tokens`);
      return;
    }
    const [left, right] = pair as [string, string];
    const joined = left + (prefix && right.startsWith(prefix) ? right.slice(prefix.length) : right);
    const unknown = [left, right, joined].filter((token) => !vocab.has(token));
    if (unknown.length > 0)
      misfits.push(`${where(i)}: ${show(left)} + ${show(right)}: not in the vocabulary: ${unknown.map(show).join(", ")}`);
  });
  return misfits;
}

/** Checks a parsed `tokenizer.json`. @throws Error naming the file and each wrong entry. */
export function checkTokenizerJson(path: string, json: Record<string, unknown>): TokenizerJson {
  const { model, added_tokens: added = [] } = json;
  if (!isObject(model)) refuse(path, [`model: ${show(model)}, expected an object`]);
  const { type, vocab } = model as Record<string, unknown>;
  if (!MODELS.includes(type as string)) refuse(path, [`model.type: ${show(type)}, expected ${MODELS.join(", ")}`]);
  const misfits: string[] = [];
  const entries = Array.isArray(added) ? (added as unknown[]) : [null];
  entries.forEach((entry, i) => {
    if (!isObject(entry) || typeof entry.content !== "string" || entry.content === "")
      misfits.push(`added_tokens[${i}]: ${show(entry)}, expected { id, content }`);
  });
  refuse(path, misfits);
  const extra = entries as AddedEntry[];
  if (type === "Unigram") misfits.push(...unigramMisfits(model as Record<string, unknown>, extra));
  else if (!isObject(vocab)) misfits.push(`model.vocab: ${show(vocab)}, expected an object`);
  else misfits.push(...vocabMisfits("model.vocab", Object.entries(vocab), extra), ...bpeMisfits(model as Record<string, unknown>, vocab));
  refuse(path, [...misfits, ...unknownSpecials(json, extra)]);
  return json as TokenizerJson;
}

function unigramMisfits({ vocab, unk_id: unknown }: Record<string, unknown>, added: AddedEntry[]): string[] {
  if (!Array.isArray(vocab)) return [`model.vocab: ${show(vocab)}, expected a list of [piece, score]`];
  const wrong = vocab.findIndex((entry) => !Array.isArray(entry) || typeof entry[0] !== "string" || typeof entry[1] !== "number");
  if (wrong !== -1) return [`model.vocab[${wrong}]: ${show(vocab[wrong])}, expected [piece, score]`];
  if (unknown !== undefined && unknown !== null && !(isId(unknown) && unknown < vocab.length))
    return [`model.unk_id: ${show(unknown)}, expected null or the place of a piece, 0 to ${vocab.length - 1}`];
  return vocabMisfits(
    "model.vocab",
    vocab.map(([piece], id): [string, number] => [piece, id]),
    added,
  );
}

function bpeMisfits(model: Record<string, unknown>, vocab: Record<string, unknown>): string[] {
  const tokens = new Set(Object.keys(vocab));
  const misfits: string[] = [];
  if (typeof model.unk_token === "string" && !tokens.has(model.unk_token))
    misfits.push(`model.unk_token: ${show(model.unk_token)} is not in the vocabulary`);
  if (model.type !== "BPE") return misfits;
  if (!Array.isArray(model.merges)) return [...misfits, `model.merges: ${show(model.merges)}, expected a list`];
  const prefix = typeof model.continuing_subword_prefix === "string" ? model.continuing_subword_prefix : "";
  return [...misfits, ...mergeMisfits((i) => `model.merges[${i}]`, model.merges, tokens, prefix)];
}

/** The tokens that the post-processor puts around a text must have the ids that it says. */
function unknownSpecials(json: Record<string, unknown>, added: AddedEntry[]): string[] {
  const post = json.post_processor;
  if (!isObject(post) || !["RobertaProcessing", "BertProcessing"].includes(post.type as string)) return [];
  const { vocab } = json.model as { vocab: Record<string, number> };
  return ["cls", "sep"].flatMap((role) => {
    const entry = post[role];
    const token = Array.isArray(entry) ? entry[0] : entry;
    const id =
      added.find(({ content }) => content === token)?.id ?? (Object.hasOwn(vocab, String(token)) ? vocab[String(token)] : undefined);
    if (Array.isArray(entry) && id !== undefined && id === entry[1]) return [];
    return [`post_processor.${role}: ${show(entry)}, but that token's id is ${show(id)}`];
  });
}
