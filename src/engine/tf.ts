/** The one import of TensorFlow.js: `import { tf } from "../engine/tf"`. Importing it starts no backend; `engine()` does. */
import "./polyfill";
import * as tf from "@tensorflow/tfjs";

export { tf };
