/** The notebooks as their reader runs them: from a clean kernel, from top to bottom, without a screen. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { jupyterEnvironment, noJupyter, PYTHON, ROOT } from "./support/kernel";

type Output = {
  output_type: string;
  name?: string;
  text?: string | string[];
  data?: Record<string, unknown>;
  ename?: string;
  evalue?: string;
};
type Notebook = {
  metadata: { kernelspec?: { name: string } };
  cells: { cell_type: string; source: string | string[]; outputs?: Output[] }[];
};

const FOLDER = join(ROOT, "notebooks");
const MOST_BYTES = 2_000_000;
/** Why notebooks run once only; .ci/run runs them twice. */
const REPEAT = process.env.VITRINE_REPEAT === "1" ? false : "set VITRINE_REPEAT=1 to run every notebook twice and compare the numbers";

const names = readdirSync(FOLDER).filter((name) => name.endsWith(".ipynb"));
const read = (path: string): Notebook => JSON.parse(readFileSync(path, "utf8"));
const joined = (text: string | string[] | undefined): string => (Array.isArray(text) ? text.join("") : (text ?? ""));

/** Runs a notebook from a clean kernel; the error names the cell's failure. */
function execute(name: string, target: string): Promise<Notebook> {
  return new Promise((resolve, reject) => {
    const child = spawn(PYTHON, [join(__dirname, "support", "notebook.py"), join(FOLDER, name), target], {
      env: jupyterEnvironment(),
      stdio: ["ignore", "ignore", "pipe"],
    });
    let log = "";
    child.stderr.on("data", (chunk) => (log += chunk));
    child.on("error", reject);
    child.on("close", (code) => (code === 0 ? resolve(read(target)) : reject(new Error(log.trim().split("\n").slice(-12).join("\n")))));
  });
}

/** The text that each cell shows, without times and rates and without what comes and goes with them: bars. How a kernel cuts its prints is chance. */
function textsOf({ cells }: Notebook): string[] {
  return cells.map(({ outputs = [] }) =>
    outputs
      .filter(({ data }) => !joined(data?.["text/html"] as string).includes("<progress"))
      .map(({ text, data }) => withoutTimes(joined(text) || `${joined(data?.["text/plain"] as string)}\n`))
      .join(""),
  );
}

const withoutTimes = (text: string): string =>
  text.replace(/\d+(?:[.,]\d+)*\s*(?:ms|s|seconds?|min|minutes?|MB|GB|[\w ]+\/s|[\w ]+ (?:a|per) second)(?![\w/])/g, "TIME");

describe("notebooks", { skip: noJupyter }, () => {
  const folder = mkdtempSync(join(tmpdir(), "vitrine-notebooks-"));
  after(() => rmSync(folder, { recursive: true, force: true }));

  test("there are some", () => assert.ok(names.length > 0, `no .ipynb in ${FOLDER}`));

  for (const name of names) {
    test(`${name} names our kernel, says what it shows, and is small`, () => {
      const { metadata, cells } = read(join(FOLDER, name));
      assert.equal(metadata.kernelspec?.name, "vitrine");
      assert.equal(cells[0]?.cell_type, "markdown", "begins with a text");
      assert.ok(statSync(join(FOLDER, name)).size < MOST_BYTES, `${statSync(join(FOLDER, name)).size} bytes, at most ${MOST_BYTES}`);
      const paths = cells
        .map(({ source }) => joined(source))
        .filter((source) => /["'`](?:\/(?:home|root|tmp|Users|work)\/|[A-Z]:\\\\)/.test(source));
      assert.deepEqual(paths, [], "no path of one machine");
    });

    let first: Notebook | undefined;
    test(`${name} runs from a clean kernel`, { timeout: 1_500_000 }, async () => {
      first = await execute(name, join(folder, name));
      const codes = first.cells.filter(({ cell_type }) => cell_type === "code");
      assert.ok(
        codes.some(({ outputs }) => outputs!.length > 0),
        "something is shown",
      );
      assert.deepEqual(
        codes.flatMap(({ outputs }) => outputs!.filter(({ output_type }) => output_type === "error")),
        [],
      );
      assert.ok(textsOf(first).filter((text) => /\d/.test(text)).length >= 3, "there are numbers to compare");
    });

    test(`${name} run again gives the same numbers`, { timeout: 1_500_000, skip: REPEAT }, async () => {
      assert.deepEqual(textsOf(await execute(name, join(folder, `again-${name}`))), textsOf(first!));
    });
  }
});
