import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createServer } from "node:net";
import { delimiter, dirname, join } from "node:path";
import { test } from "node:test";
import { browserCommand, jupyterEnvironment, labArguments } from "../../src/setup/lab.mjs";
import { places } from "../../src/setup/places.mjs";
import { firstNotebook, freePort } from "../../src/setup/start.mjs";
import { oddFolder, ROOT, write } from "./support";

const FIGURE = { data: [{ type: "scatter", y: [1, 2] }], layout: { title: { text: "</script><b>odd</b>" } } };

const cell = (source: string) => ({ cell_type: "code", metadata: {}, outputs: [], execution_count: null, source });
const notebook = (...cells: string[]) =>
  JSON.stringify({
    nbformat: 4,
    nbformat_minor: 4,
    metadata: { kernelspec: { name: "vitrine", display_name: "Vitrine" } },
    cells: cells.map(cell),
  });

test("firstNotebook() takes 01-…, and says where it looked", (t) => {
  const root = oddFolder(t);
  assert.throws(() => firstNotebook(root), /no notebook 01-….ipynb in .*notebooks/);
  write(root, { "notebooks/02-b.ipynb": "", "notebooks/01-a.ipynb": "", "notebooks/01-a.md": "" });
  assert.equal(firstNotebook(root), "01-a.ipynb");
});

test("freePort() refuses a busy port that was asked for and passes over one that was not", async (t) => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => server.close());
  const { port } = server.address() as { port: number };
  await assert.rejects(freePort(port), new RegExp(`port ${port} is in use`));
  const free = await freePort(undefined);
  assert.ok(free >= 8888 && free <= 8907);
});

test("labArguments() serve the notebooks on 127.0.0.1 and show no token", () => {
  const args = labArguments("/a b", 9000);
  for (const arg of [
    "--ServerApp.ip=127.0.0.1",
    "--ServerApp.port=9000",
    "--ServerApp.root_dir=/a b/notebooks",
    "--ServerApp.open_browser=False",
  ])
    assert.ok(args.includes(arg), arg);
  assert.doesNotMatch(args.join(" "), /token/);
});

test("jupyterEnvironment() adds our kernel folder and puts this Node first", () => {
  const env = jupyterEnvironment("/root of it", { PATH: "/bin", JUPYTER_PATH: "/mine" });
  assert.equal(env.JUPYTER_PATH, ["/root of it", "/mine"].join(delimiter));
  assert.equal(env.PATH, [dirname(process.execPath), "/bin"].join(delimiter));
});

test("browserCommand() opens a browser only where there is a display", () => {
  assert.equal(browserCommand({}, "linux"), undefined);
  assert.equal(browserCommand({ DISPLAY: ":0" }, "linux"), "xdg-open");
  assert.equal(browserCommand({ WAYLAND_DISPLAY: "wayland-0" }, "linux"), "xdg-open");
  assert.equal(browserCommand({}, "darwin"), "open");
});

/** Runs headless.py on a notebook of these cells. */
function headless(folder: string, ...cells: string[]) {
  write(folder, { "note.ipynb": notebook(...cells) });
  const page = join(folder, "page.html");
  const args = [
    join(ROOT, "src/setup/headless.py"),
    join(folder, "note.ipynb"),
    page,
    join(ROOT, "node_modules/plotly.js-dist-min/plotly.min.js"),
    join(ROOT, "kernels"),
  ];
  const env = { ...jupyterEnvironment(ROOT), NODE_OPTIONS: "" };
  const { status, stdout, stderr } = spawnSync(places(ROOT).python, args, { encoding: "utf8", env });
  return { status, stdout, stderr, html: existsSync(page) ? readFileSync(page, "utf8") : "" };
}

test("headless.py prints texts and figures, writes plotly.js once, and ends with 0", (t) => {
  const figure = `({ [Symbol.for("Jupyter.display")]: () => ({ "application/vnd.plotly.v1+json": ${JSON.stringify(FIGURE)}, "text/plain": "a line, 2 points" }) })`;
  const { status, stdout, stderr, html } = headless(oddFolder(t), 'console.log("sum", 1 + 1)', figure, figure);
  assert.equal(status, 0, stderr);
  assert.match(stdout, /^sum 2$/m);
  assert.equal(stdout.match(/^\[figure\] a line, 2 points$/gm)?.length, 2);
  assert.match(stdout, /Every cell ran \(\d+ s\)\. The page: .*page\.html$/m);
  assert.equal(html.match(/plotly\.js v\d/g)?.length, 1);
  assert.equal(html.match(/data-vitrine-figure="/g)?.length, 2);
  const stored = /<script [^>]*id="vitrine-figure-0"[^>]*>(.*?)<\/script>/s.exec(html)?.[1];
  const { data, layout } = JSON.parse(stored ?? "");
  assert.deepEqual({ data, layout }, { data: FIGURE.data, layout: FIGURE.layout });
});

test("headless.py names the error of a failing cell, writes the page all the same, and ends with 1", (t) => {
  const { status, stdout, html } = headless(
    oddFolder(t),
    'console.log("before")',
    'throw new RangeError("no such layer: 99")',
    'console.log("after")',
  );
  assert.equal(status, 1);
  assert.match(stdout, /^before$/m);
  assert.match(stdout, /no such layer: 99/);
  assert.match(stdout, /^Failed: a cell failed: .*The page: /m);
  assert.doesNotMatch(stdout, /^after$/m);
  assert.match(html, /no such layer: 99/);
});

test("npm start serves JupyterLab with a token, and one Ctrl-C ends it with code 0", async (t) => {
  const child = spawn(process.execPath, [join(ROOT, "src/setup/run.mjs"), "start", "--no-browser"], {
    cwd: ROOT,
    env: { ...process.env, NODE_OPTIONS: "" },
  });
  t.after(() => child.kill("SIGKILL"));
  const ended = new Promise<number | null>((resolve) => child.once("close", resolve));
  let said = "";
  child.stderr.on("data", (chunk) => (said += chunk));
  const url = await new Promise<URL>((resolve, reject) => {
    child.stdout.on("data", (chunk) => {
      said += chunk;
      const found = /http:\/\/\S+/.exec(said);
      if (found) resolve(new URL(found[0]));
    });
    ended.then(() => reject(new Error(`it ended at once: ${said}`)));
  });
  assert.equal(url.hostname, "127.0.0.1");
  const kernels = (token: string) => fetch(`${url.origin}/api/kernelspecs?token=${token}`);
  const token = url.searchParams.get("token") ?? "";
  assert.ok(token.length >= 32);
  assert.equal((await kernels("wrong")).status, 403);
  const { kernelspecs } = (await (await kernels(token)).json()) as { kernelspecs: Record<string, unknown> };
  assert.ok(kernelspecs.vitrine);
  child.kill("SIGINT");
  assert.equal(await ended, 0);
  await assert.rejects(kernels(token), "the server is gone");
});
