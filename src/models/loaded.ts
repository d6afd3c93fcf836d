/** The contract between a model family and the rest. */
import type { Dtype } from "../nn/spec";

/** What every loaded model has, whatever its family. */
export type Loaded<P> = {
  /** `model_type` of config.json. */
  modelType: string;
  /** Where its files are. */
  folder: string;
  dtype: Dtype;
  /** The tree of weight names that `params` follows. */
  spec: unknown;
  params: P;
  /** Frees the weights. The model must not be used afterwards. */
  dispose(): void;
};
