// node test/support/screenshot.mjs NOTEBOOK OUT.png: runs the notebook in JupyterLab and takes pictures of it from top to bottom:
// OUT-1.png, OUT-2.png, …, one for each screen. The notebook itself is not changed: a copy beside it is run, and removed.
import { copyFileSync, rmSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { browserPath, menu, NO_BROWSER, openBrowser, openNotebook, sleep, startLab, waitForCells } from "./lab.mjs";

const [notebook, out] = process.argv.slice(2);
if (!notebook || !out) throw new Error("usage: node test/support/screenshot.mjs NOTEBOOK OUT.png");
if (!browserPath) throw new Error(NO_BROWSER);

// Beside the original, so that relative paths and packages are the same.
const folder = dirname(resolve(notebook));
const copy = `.picture-of-${process.pid}-${basename(notebook)}`.slice(1);
copyFileSync(notebook, join(folder, copy));
const lab = await startLab(folder);
const browser = await openBrowser();
try {
  const page = await openNotebook(browser, lab, copy, { width: 1400, height: 1100 });
  await page.keyboard.press("Control+b"); // without the files beside it
  await menu(page, "Run", "Run All Cells");
  await sleep(500);
  await waitForCells(page);
  await sleep(1500); // figures draw themselves
  const names = await pictures(page, out.replace(/\.png$/, ""));
  const errors = await page.$$eval('.jp-RenderedText[data-mime-type="application/vnd.jupyter.error"]', (all) =>
    all.map((each) => each.textContent),
  );
  console.log([...names, ...errors.map((text) => `a cell failed: ${text}`)].join("\n"));
} finally {
  await browser.close();
  await lab.close();
  rmSync(join(folder, copy));
}

async function pictures(page, stem) {
  const scroller = await page.evaluateHandle(() => {
    const all = [
      document.querySelector(".jp-WindowedPanel-outer"),
      ...document.querySelectorAll(".jp-NotebookPanel-notebook, .jp-NotebookPanel-notebook *"),
    ];
    return (
      all
        .filter((each) => each && each.scrollHeight > each.clientHeight + 50 && /auto|scroll/.test(getComputedStyle(each).overflowY))
        .sort((a, b) => b.clientHeight - a.clientHeight)[0] ?? document.querySelector(".jp-Notebook")
    );
  });
  // To the end of the last cell; below it JupyterLab leaves a screen empty.
  const { height, step } = await scroller.evaluate((each) => {
    const last = [...document.querySelectorAll(".jp-Notebook .jp-Cell")].at(-1).getBoundingClientRect().bottom;
    return { height: last - each.getBoundingClientRect().top + each.scrollTop, step: Math.max(200, each.clientHeight - 40) };
  });
  const names = [];
  for (let top = 0; top === 0 || (top < height - 60 && names.length < 30); top += step) {
    await scroller.evaluate((each, to) => (each.scrollTop = to), top);
    await sleep(400);
    names.push(`${stem}-${names.length + 1}.png`);
    await page.screenshot({ path: names.at(-1) });
  }
  return names;
}
