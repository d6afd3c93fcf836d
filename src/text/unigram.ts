/** Unigram segmentation (Kudo 2018): the sequence of pieces with the highest sum of log probabilities. */

/** How far below the least likely piece an unknown character lies, in SentencePiece and in the tokenizers library. */
const UNKNOWN_PENALTY = 10;

type Node = { id: number; children?: Map<number, Node> };

export type UnigramOptions = {
  /** Id of the unknown piece. */
  unknown: number;
  /** Rounds each sum: Math.fround where SentencePiece itself computed, in float32. */
  round?: (sum: number) => number;
  /** Ids that no text may become: control pieces. */
  barred?: ReadonlySet<number>;
};

/**
 * Cuts texts into pieces; neighbouring unknown characters are one piece. Returns pieces as text: `cut("▁a中文") -> ["▁a", "中文"]`.
 * Among equally likely sequences the one whose last piece starts earliest wins, as in SentencePiece.
 */
export function unigram(
  pieces: readonly (readonly [string, number])[],
  { unknown, round = (sum) => sum, barred = new Set() }: UnigramOptions,
): (text: string) => string[] {
  const root: Node = { id: -1 };
  const scores = Float64Array.from(pieces, ([, score]) => score);
  const floor = scores.reduce((least, score, id) => (id === unknown ? least : Math.min(least, score)), Number.POSITIVE_INFINITY);
  pieces.forEach(([piece], id) => {
    if (!barred.has(id) && id !== unknown && piece !== "") insert(root, piece, id);
  });
  const penalty = round(floor - UNKNOWN_PENALTY);
  return (text) => {
    const n = text.length;
    const best = new Float64Array(n + 1).fill(Number.NEGATIVE_INFINITY);
    const from = new Int32Array(n + 1).fill(-1);
    const isUnknown = new Uint8Array(n + 1);
    best[0] = 0;
    const offer = (start: number, end: number, score: number, lost: 0 | 1) => {
      const sum = round(best[start] + score);
      if (from[end] !== -1 && sum <= best[end]) return;
      [best[end], from[end], isUnknown[end]] = [sum, start, lost];
    };
    for (let start = 0; start < n; ) {
      const width = text.codePointAt(start)! > 0xffff ? 2 : 1;
      let node: Node | undefined = root;
      let single = false;
      for (let i = start; i < n; i++) {
        node = node.children?.get(text.charCodeAt(i));
        if (node === undefined) break;
        if (node.id === -1) continue;
        offer(start, i + 1, scores[node.id], 0);
        if (i + 1 === start + width) single = true;
      }
      if (!single) offer(start, start + width, penalty, 1);
      start += width;
    }
    return trace(text, from, isUnknown);
  };
}

function insert(root: Node, piece: string, id: number): void {
  let node = root;
  for (let i = 0; i < piece.length; i++) {
    node.children ??= new Map();
    let next = node.children.get(piece.charCodeAt(i));
    if (!next) {
      next = { id: -1 };
      node.children.set(piece.charCodeAt(i), next);
    }
    node = next;
  }
  node.id = id;
}

/** The pieces of the best sequence, unknown neighbours joined. */
function trace(text: string, from: Int32Array, isUnknown: Uint8Array): string[] {
  const out: string[] = [];
  let end = text.length;
  while (end > 0) {
    let start = from[end];
    if (isUnknown[end]) while (start > 0 && isUnknown[start]) start = from[start];
    out.push(text.slice(start, end));
    end = start;
  }
  return out.reverse();
}
