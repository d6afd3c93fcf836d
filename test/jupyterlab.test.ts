/** JupyterLab as a person meets it: a real server, a real Chromium, the menus; and the exported page without a server. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { pathToFileURL } from "node:url";
import type { Browser, Page } from "playwright-core";
import { jupyterEnvironment, noJupyter, PYTHON, ROOT } from "./support/kernel";
import { browserPath, kernelIsBusy, menu, NO_BROWSER, openBrowser, openNotebook, sleep, startLab, waitForCells } from "./support/lab.mjs";

const EVIL = "<img src=x onerror=\"document.title='taken'\">";

const code = (source: string) => ({
  cell_type: "code",
  id: Math.random().toString(36).slice(2),
  metadata: {},
  execution_count: null,
  outputs: [] as object[],
  source,
});
const markdown = (source: string) => ({ cell_type: "markdown", id: Math.random().toString(36).slice(2), metadata: {}, source });
const notebook = (cells: object[]) => ({
  nbformat: 4,
  nbformat_minor: 5,
  metadata: {
    kernelspec: { name: "vitrine", display_name: "Vitrine (TypeScript)", language: "typescript" },
    language_info: { name: "typescript" },
  },
  cells,
});

/** A LoRA run that would take hours. */
const TRAINING = [
  `import { dataset } from "vitrine/data";
import { load } from "vitrine/models";
import { withLora } from "vitrine/nn/lora";
import { pairBatches, pairLoss } from "vitrine/train/contrastive";
import { train } from "vitrine/train/loop";
const pairs = await dataset("emoji", { split: "test" });
const { model, adapter } = withLora(await load("emoji-clip"), { targetModules: ["q_proj", "v_proj"] });`,
  `let steps = 0;
const batches = pairBatches(model, pairs, { batchSize: 16 });
for await (const row of train({ variables: adapter.variables, batches, loss: pairLoss(model), steps: 100000, learningRate: 1e-3 })) steps = row.step;
console.log("trained and stopped:", steps > 0 && steps < 100000);`,
  `console.log("kept:", adapter.modules.some(({ B }) => B.abs().max().dataSync()[0] > 0));`,
];

/** What the browser did that a safe page never does. */
function watch(page: Page): string[] {
  const seen: string[] = [];
  page.on("dialog", (dialog) => {
    seen.push(`dialog: ${dialog.message()}`);
    void dialog.dismiss();
  });
  page.on(
    "request",
    (request) => !/^(file|data|blob):|^http:\/\/127\.0\.0\.1/.test(request.url()) && seen.push(`request: ${request.url()}`),
  );
  return seen;
}

describe("JupyterLab", { skip: noJupyter ?? (browserPath ? undefined : NO_BROWSER) }, () => {
  const folder = mkdtempSync(join(tmpdir(), "vitrine-lab-test-"));
  let lab: Awaited<ReturnType<typeof startLab>>;
  let browser: Browser;
  before(async () => {
    writeFileSync(
      join(folder, "figures.ipynb"),
      JSON.stringify(
        notebook([
          markdown("# Figures"),
          code(
            `import { live, show } from "vitrine/notebook";\nimport { breathe, interruptSignal } from "vitrine/engine/interrupt";\nimport * as aq from "arquero";`,
          ),
          code(`({ data: [{ type: "heatmap", z: [[1, 2], [3, 4]] }], layout: { title: { text: ${JSON.stringify(EVIL)} } } })`),
          code(`aq.table({ token: [${JSON.stringify(EVIL)}] })`),
          code(
            "const curve = live((rows: number[]) => ({ data: [{ y: rows }], layout: {} }));\nfor (let i = 0; i < 8; i++) { curve.add(i); await new Promise((done) => setTimeout(done, 200)); }",
          ),
          code(
            "let turns = 0;\nconst signal = interruptSignal();\nwhile (!signal.aborted) { turns++; await breathe(); }\nconsole.log('stopped:', turns > 0);",
          ),
          code("console.log('the next cell ran:', turns > 0);"),
        ]),
      ),
    );
    copyFileSync(join(ROOT, "notebooks", "01-first-look.ipynb"), join(folder, "01-first-look.ipynb"));
    writeFileSync(join(folder, "training.ipynb"), JSON.stringify(notebook(TRAINING.map(code))));
    [lab, browser] = await Promise.all([startLab(folder), openBrowser()]);
  });
  after(async () => {
    await browser?.close();
    await lab?.close();
    rmSync(folder, { recursive: true, force: true });
  });

  test("lists the kernel", async () => {
    const { kernelspecs } = (await (await lab.api("kernelspecs")).json()) as {
      kernelspecs: Record<string, { spec: { display_name: string } }>;
    };
    assert.equal(kernelspecs.vitrine?.spec.display_name, "Vitrine (TypeScript)");
  });

  test("asks for the token", async () => {
    assert.equal((await fetch(`${lab.url}/api/kernels`)).status, 403);
  });

  test("notebook 01 runs in JupyterLab, and its figures are drawn", { timeout: 400_000 }, async () => {
    const page = await openNotebook(browser, lab, "01-first-look.ipynb");
    const seen = watch(page);
    await menu(page, "Run", "Run All Cells");
    await sleep(500);
    await waitForCells(page, 300_000);
    const figure = page.locator(".jp-RenderedPlotly").first();
    await figure.waitFor({ timeout: 60_000 });
    await figure.hover();
    await page.waitForSelector(".js-plotly-plot .plot-container", { state: "attached", timeout: 60_000 });
    assert.equal(await page.locator('[data-mime-type="application/vnd.jupyter.error"]').count(), 0);
    assert.deepEqual(seen, []);
    await page.close();
  });

  test("the stop button ends a training cell; what was learned stays, and the next cell runs", { timeout: 240_000 }, async () => {
    const page = await openNotebook(browser, lab, "training.ipynb");
    await menu(page, "Run", "Run All Cells");
    const waiting = page.locator(".jp-InputPrompt", { hasText: "*" });
    while ((await waiting.count()) !== 2) await sleep(100); // the first cell is done, the second trains
    await sleep(3000);
    const start = performance.now();
    await menu(page, "Kernel", "Interrupt Kernel");
    await waitForCells(page, 20_000);
    const seconds = (performance.now() - start) / 1000;
    const text = await page.locator(".jp-Notebook").innerText();
    assert.match(text, /trained and stopped: true/);
    assert.match(text, /kept: true/);
    assert.ok(seconds < 5, `${seconds.toFixed(1)} s from the menu to the next cell's end`);
    await page.close();
  });

  test("run all, interrupt: figures are drawn, the watching cell ends, the next one runs", { timeout: 240_000 }, async () => {
    const page = await openNotebook(browser, lab, "figures.ipynb");
    const seen = watch(page);
    await menu(page, "Run", "Run All Cells");

    // A figure stands there as a picture, and plotly draws it when the pointer comes.
    const figure = page.locator(".jp-RenderedPlotly").first();
    await figure.waitFor({ timeout: 120_000 });
    await figure.hover();
    await page.waitForSelector(".jp-RenderedPlotly .plot-container .heatmaplayer image", { state: "attached", timeout: 60_000 });
    assert.equal(await page.locator(".js-plotly-plot").count(), 1);
    assert.match(await page.locator(".js-plotly-plot .gtitle").innerHTML(), /&lt;img src=x/);
    assert.equal(await page.locator(".jp-RenderedHTMLCommon td").textContent(), EVIL);

    // The live figure has ended: its picture gave way to the figure of all rows.
    await page.locator(".jp-RenderedPlotly").nth(1).waitFor({ timeout: 60_000 });

    const waiting = page.locator(".jp-InputPrompt", { hasText: "*" });
    while ((await waiting.count()) !== 2) await sleep(100);
    assert.ok(await kernelIsBusy(page));
    await sleep(1000);
    const start = performance.now();
    await menu(page, "Kernel", "Interrupt Kernel");
    await waitForCells(page, 20_000);
    const seconds = (performance.now() - start) / 1000;
    const text = await page.locator(".jp-Notebook").innerText();
    assert.match(text, /stopped: true/);
    assert.match(text, /the next cell ran: true/);
    assert.ok(seconds < 5, `${seconds.toFixed(1)} s from the menu to the next cell's end`);
    assert.equal(await page.title().then((title) => /taken/.test(title)), false);
    assert.deepEqual(seen, []);
    await page.close();
  });

  test(
    "export_html.py: one plotly in the page, figures drawn without a network, no script of an output",
    { timeout: 240_000 },
    async () => {
      const [source, ran, page] = ["export.ipynb", "ran.ipynb", "page.html"].map((name) => join(folder, name)) as [string, string, string];
      writeFileSync(
        source,
        JSON.stringify(
          notebook([
            markdown(`# Export\n\n<script>document.title = "taken"</script>${EVIL}\n\n[link](javascript:alert(1))`),
            code(
              `import { html, show } from "vitrine/notebook";\nfor (const y of [[1, 2], [2, 1]]) show({ data: [{ y }], layout: { title: { text: ${JSON.stringify(`</script>${EVIL}`)} } } });`,
            ),
            code(`html\`<b>\${${JSON.stringify(EVIL)}}</b>\``),
            code(
              `({ [Symbol.for("Jupyter.display")]: () => ({ "text/html": "<script>document.title = 'taken'</script><i onclick='alert(1)'>raw</i>", "text/plain": "raw" }) })`,
            ),
            code(
              `({ [Symbol.for("Jupyter.display")]: () => ({ "application/javascript": "document.title = 'taken'", "text/plain": "no script" }) })`,
            ),
          ]),
        ),
      );
      const env = jupyterEnvironment();
      execFileSync(PYTHON, [join(__dirname, "support", "notebook.py"), source, ran], { env });
      execFileSync(PYTHON, [join(ROOT, "kernels", "export_html.py"), ran, page], { env });
      const text = readFileSync(page, "utf8");
      assert.equal(text.match(/plotly\.js v\d/g)?.length, 1, "the library's banner stands once");
      assert.ok(text.length < 6.5e6, `${text.length} bytes`);

      const view = await browser.newPage({ viewport: { width: 1200, height: 900 } });
      const seen = watch(view);
      await view.goto(pathToFileURL(page).href);
      for (const place of await view.locator("[data-vitrine-figure]").all()) await place.scrollIntoViewIfNeeded();
      await view.locator(".js-plotly-plot .scatterlayer .trace").nth(1).waitFor({ timeout: 60_000 });
      assert.equal(await view.locator("[onerror], [onclick], a[href^=javascript]").count(), 0);
      assert.ok((await view.locator("body").innerText()).includes(EVIL), "what looks like markup is shown");
      assert.doesNotMatch(await view.title(), /taken/);
      assert.deepEqual(seen, []);
      await view.close();
    },
  );

  test("export_html.py: a notebook without figures carries no plotly", () => {
    const [source, page] = [join(folder, "plain.ipynb"), join(folder, "plain.html")];
    writeFileSync(source, JSON.stringify(notebook([markdown("Only text.")])));
    execFileSync(PYTHON, [join(ROOT, "kernels", "export_html.py"), source, page], { env: jupyterEnvironment() });
    assert.ok(existsSync(page));
    assert.doesNotMatch(readFileSync(page, "utf8"), /<script/);
  });
});
