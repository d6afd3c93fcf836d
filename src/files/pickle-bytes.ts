/** The bytes of a pickle, read by parts: a pre-1.6 torch file begins with pickles whose length nothing tells. */

export type PickleSource = { path: string; size: number; read(offset: number, length: number): Uint8Array };

/** Longest pickle; the tensors' data is not in it. */
const MAX_BYTES = 100 * 2 ** 20;
const CHUNK = 2 ** 16;

export class PickleBytes {
  position: number;
  private chunk: Uint8Array = new Uint8Array(0);
  private chunkStart = 0;

  constructor(
    protected readonly source: PickleSource,
    protected readonly start: number,
  ) {
    this.position = start;
  }

  fail(problem: string): never {
    throw new Error(`${this.source.path}: damaged or unsafe pickle at byte ${this.position - this.start}: ${problem}`);
  }

  byte(): number {
    return this.bytes(1)[0];
  }

  /** The next bytes; valid until the next call. */
  bytes(length: number): Uint8Array {
    const { position, source } = this;
    if (length > source.size - position) this.fail(`it needs ${length} more bytes, ${source.size - position} are left; it is cut off`);
    if (position + length - this.start > MAX_BYTES) this.fail(`longer than ${MAX_BYTES} bytes`);
    this.position += length;
    if (position < this.chunkStart || position + length > this.chunkStart + this.chunk.length) {
      this.chunk = source.read(position, Math.min(Math.max(length, CHUNK), source.size - position));
      this.chunkStart = position;
    }
    return this.chunk.subarray(position - this.chunkStart, position - this.chunkStart + length);
  }

  view(length: number): DataView {
    const bytes = this.bytes(length);
    return new DataView(bytes.buffer, bytes.byteOffset, length);
  }

  /** A length field of 1, 4 or 8 bytes. */
  length(width: 1 | 4 | 8): number {
    if (width === 1) return this.byte();
    const length = width === 4 ? this.view(4).getUint32(0, true) : Number(this.view(8).getBigUint64(0, true));
    if (length > this.source.size - this.position) this.fail(`a value of ${length} bytes, ${this.source.size - this.position} are left`);
    return length;
  }

  text(length: number): string {
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(this.bytes(length));
    } catch (error) {
      if (error instanceof TypeError) this.fail("a text is not UTF-8");
      throw error;
    }
  }

  line(): string {
    const start = this.position;
    while (this.byte() !== 0x0a) if (this.position - start > 4096) this.fail("a name has no end");
    const length = this.position - start - 1;
    this.position = start;
    const text = this.text(length);
    this.position++;
    return text;
  }
}

/** Little-endian two's complement of any length. */
export function wholeNumber(bytes: Uint8Array): number | bigint {
  if (bytes.length === 0) return 0;
  const digits = Buffer.from(bytes).reverse().toString("hex");
  const value = BigInt.asIntN(8 * bytes.length, BigInt(`0x${digits}`));
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}
