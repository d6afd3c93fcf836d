/** A figure is data: plotly traces and a layout, nothing drawn. `show()` draws it in a notebook, `toPng()` without a browser. */
export type Figure = { data: object[]; layout: object };

/** Numbers in a row: an array or a typed array. */
export type Vector = ArrayLike<number>;

/** A matrix as rows of equal length: what `await tensor.array()` gives, or an array of Float32Array. */
export type Rows = ArrayLike<Vector>;

/** Attention of one layer, `[heads][queries][keys]`. For a batch of one, pass `(await pattern.array())[0]`. */
export type Heads = ArrayLike<Rows>;

/** `[rows, columns]` of a patch grid; ViT-B/32 at 224 pixels has `[7, 7]`. */
export type Grid = readonly [number, number];
