/** The kernel as Jupyter sees it: every test sends messages through jupyter_client to the real process. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { type Kernel, noJupyter, ROOT, type Run, startKernel, textOf } from "./support/kernel";

const only = (run: Run, type: string) => {
  const found = run.outputs.filter((output) => output.type === type);
  assert.equal(found.length, 1, `one ${type} in ${JSON.stringify(run.outputs).slice(0, 600)}`);
  return found[0]!;
};
const ok = (run: Run): Run => {
  assert.equal(run.status, "ok", textOf(run));
  return run;
};
/** The error of a cell as a person reads it, without colours. */
const errorOf = (run: Run): string => {
  assert.equal(run.status, "error");
  return only(run, "error")
    .traceback!.join("\n")
    .replace(/\u001b\[[0-9;]*m/g, "");
};

describe("the kernel", { skip: noJupyter }, () => {
  let kernel: Kernel;
  before(async () => {
    kernel = await startKernel();
  });
  after(() => kernel?.close());

  test("starts, says what it is and runs in the notebook's folder", async () => {
    // On an idle machine 1.5 s; the bound allows for one that runs the other tests at the same time.
    assert.ok(kernel.ready < 30, `answered after ${kernel.ready.toFixed(1)} s`);
    const info = await kernel.info();
    assert.equal(info.implementation, "vitrine");
    assert.equal((info.language_info as { name: string }).name, "typescript");
    assert.equal(textOf(await kernel.run("process.cwd()")), join(ROOT, "notebooks"));
  });

  test("overhead of a cell is below 0.3 s", async () => {
    const seconds: number[] = [];
    for (let i = 0; i < 5; i++) seconds.push(ok(await kernel.run(`${i} + 1`)).seconds);
    assert.ok(Math.min(...seconds) < 0.3, `fastest of five: ${Math.min(...seconds)} s`);
  });

  test("last expression: a value that can display itself becomes its bundle, also out of a promise", async () => {
    const define = `const rich = { [Symbol.for("Jupyter.display")]: () => ({ "text/html": "<b>1</b>", "image/svg+xml": "<svg/>", "text/plain": "one" }) };`;
    const bundle = { "text/html": "<b>1</b>", "image/svg+xml": "<svg/>", "text/plain": "one" };
    assert.deepEqual(only(ok(await kernel.run(`${define}\nrich`)), "execute_result").data, bundle);
    assert.deepEqual(only(ok(await kernel.run("await Promise.resolve(rich)")), "execute_result").data, bundle);
    assert.deepEqual(only(ok(await kernel.run("Promise.resolve(rich)")), "execute_result").data, bundle);
    assert.deepEqual(ok(await kernel.run("undefined")).outputs, []);
  });

  test("last expression: a plain value is shown as text, a figure as a figure", async () => {
    assert.deepEqual(only(await kernel.run("({ a: [1, 2] })"), "execute_result").data, { "text/plain": "{ a: [ 1, 2 ] }" });
    const { data } = only(await kernel.run(`({ data: [{ type: "bar", y: [1, 2] }], layout: {} })`), "execute_result");
    assert.deepEqual(Object.keys(data!).sort(), ["application/vnd.plotly.v1+json", "image/png", "text/plain"]);
  });

  test("show() keeps the order of the calls and fills its place later", async () => {
    const run = ok(
      await kernel.run(`import { show } from "vitrine/notebook";
show({ data: [{ y: [1, 2] }], layout: { title: { text: "Curve" } } });
console.log("between");
show("last");`),
    );
    assert.deepEqual(
      run.outputs.slice(0, 3).map(({ type }) => type),
      ["display_data", "stream", "display_data"],
    );
    const [figure, text] = [run.outputs[0], run.outputs[2]].map((place) =>
      run.outputs.find((output) => output.type === "update_display_data" && output.transient?.display_id === place?.transient?.display_id),
    );
    assert.equal(figure?.data?.["text/plain"], "Figure: Curve (scatter)");
    assert.deepEqual(Buffer.from(String(figure?.data?.["image/png"]), "base64").subarray(1, 4).toString(), "PNG");
    assert.equal(text?.data?.["text/plain"], "last");
  });

  test("await forms that tslab alone misreads work at the top of a cell", async () => {
    assert.equal(textOf(ok(await kernel.run("const one = await (Promise.resolve(1)); one"))), "1");
    assert.equal(textOf(ok(await kernel.run("await (async () => 2)()"))), "2");
    assert.equal(
      textOf(ok(await kernel.run("async function* two() { yield 1; yield 2; }\nfor await (const each of two()) console.log(each);"))),
      "1\n2\n",
    );
    assert.match(errorOf(await kernel.run("for await (const each of [missingName]) ;")), /line 1: for await[^\n]*\n +\^/);
  });

  test("interrupt: a cell that watches ends normally within a second and keeps its variables", async () => {
    const run = ok(
      await kernel.run(
        `import { breathe, interruptSignal } from "vitrine/engine/interrupt";
let turns = 0;
const signal = interruptSignal();
while (!signal.aborted) { turns++; await breathe(); }
const kept = "kept";`,
        { interrupt: 1 },
      ),
    );
    assert.ok(run.seconds < 2, `ended ${(run.seconds - 1).toFixed(2)} s after the interrupt`);
    assert.equal(textOf(ok(await kernel.run("[kept, turns > 0, interruptSignal().aborted].join(' ')"))), "kept true false");
  });

  test("interrupt: what starts later in an interrupted cell stops too", async () => {
    const run = ok(
      await kernel.run(
        `const until = async () => { const s = interruptSignal(); let n = 0; while (!s.aborted) { n++; await breathe(); } return n; };
const first = await until();
const second = await until();
second`,
        { interrupt: 1 },
      ),
    );
    assert.equal(textOf(run), "0");
  });

  test("embedImages() reads pictures in threads from a cell; an interrupt ends it within a second and keeps the vectors made", async () => {
    const photo = join(ROOT, "test", "oracle", "images", "photo.jpg");
    ok(
      await kernel.run(
        `import { load } from "vitrine/models";
import { embedImages } from "vitrine/embed";
const small = await load(${JSON.stringify(join(ROOT, "test", "oracle", "clip", "model"))});
const photos = (n: number) => Array.from({ length: n }, (_, i) => (i === 50 ? "no/such.jpg" : ${JSON.stringify(photo)}));
const whole = await embedImages(small, photos(100), { batchSize: 16, onError: "skip" });`,
      ),
    );
    assert.equal(textOf(ok(await kernel.run("[whole.count, whole.failures[0].index].join(' ')"))), "99 50");
    const run = ok(
      await kernel.run(`const part = await embedImages(small, photos(1e6), { batchSize: 16, onError: "skip" });`, { interrupt: 2 }),
    );
    assert.ok(run.seconds < 4, `ended ${(run.seconds - 2).toFixed(2)} s after the interrupt`);
    assert.equal(textOf(ok(await kernel.run("part.count > 0 && part.count < 1e6"))), "true");
  });

  test("a chat streams into its cell; an interrupt ends many answers within a second and keeps those that were given", async () => {
    ok(
      await kernel.run(
        `import { pipeline } from "vitrine/chat";
const talk = await pipeline(${JSON.stringify(join(ROOT, "test", "oracle", "internvl_hf", "model"))});
const seven = { maxNewTokens: 7, ignoreEos: true };`,
      ),
    );
    const streamed = ok(
      await kernel.run(`const chat = await talk.chat("Hello", { genConfig: seven, stream: true });
let pieces = 0;
for await (const { text } of chat) { pieces++; process.stdout.write(text + "|"); }
console.log(pieces, chat.response.finishReason);`),
    );
    assert.match(textOf(streamed), /^(.*\|){7}7 length\s*$/s);
    const run = ok(
      await kernel.run(
        `const answers = await talk(Array.from({ length: 10000 }, () => [{ role: "user", content: "Hello" }]), { genConfig: seven });`,
        {
          interrupt: 2,
        },
      ),
    );
    assert.ok(run.seconds < 4, `ended ${(run.seconds - 2).toFixed(2)} s after the interrupt`);
    const told = textOf(ok(await kernel.run("[answers.length, answers[0].finishReason, answers[9999].finishReason].join(' ')")));
    assert.equal(told, "10000 length abort");
  });

  test("interrupt: a cell that does not watch fails at once, and earlier variables stay", async () => {
    ok(await kernel.run("const earlier = 7;"));
    const waiting = await kernel.run("const lost = 1; await new Promise(() => {});", { interrupt: 1 });
    assert.match(errorOf(waiting), /^Interrupted: .*what it started may still be running/);
    assert.ok(waiting.seconds < 2, `${waiting.seconds} s`);
    const computing = await kernel.run("for (;;) {}", { interrupt: 1 });
    assert.match(errorOf(computing), /^Interrupted: the cell was stopped in the middle of a computation/);
    assert.ok(computing.seconds < 2.5, `${computing.seconds} s`);
    assert.equal(textOf(ok(await kernel.run("earlier"))), "7");
  });

  test("interrupt: a cell that watched before but not any more fails after its grace", async () => {
    const run = await kernel.run("interruptSignal(); await new Promise(() => {});", { interrupt: 0.5 });
    assert.match(errorOf(run), /^Interrupted/);
    assert.ok(run.seconds > 2 && run.seconds < 5, `${run.seconds} s`);
    assert.equal(textOf(ok(await kernel.run("interruptSignal().aborted"))), "false");
  });

  test("interrupt: the delayed failure does not hit the next cell", async () => {
    ok(await kernel.run("{ const s = interruptSignal(); while (!s.aborted) await breathe(); }", { interrupt: 0.5 }));
    assert.equal(textOf(ok(await kernel.run("await new Promise((done) => setTimeout(done, 2500)); 'undisturbed'"))), "undisturbed");
  });

  test("errors: message first and whole, lines of the cells, causes, no insides", async () => {
    ok(
      await kernel.run(`// a comment, so that lines differ from the compiled ones
type Size = { width: number };
function check({ width }: Size): number {
  if (width > 2) throw new RangeError("check: width is " + width + "\\n  expected at most 2\\n  see size", { cause: new Error("the cause") });
  return width;
}`),
    );
    const text = errorOf(
      await kernel.run(
        'import { join } from "node:path";\n\nconst sizes: Size[] = [{ width: 3 }];\nconst checked = sizes.map((each) => check(each));',
      ),
    );
    assert.match(text, /^RangeError: check: width is 3\n {2}expected at most 2\n {2}see size\n {4}at cell \d+, line 4: if \(width > 2\)/);
    assert.match(text, /at cell \d+, line 4: const checked = sizes\.map/);
    assert.match(text, /caused by\n {2}Error: the cause/);
    assert.doesNotMatch(text, /node:|tslab|runInThisContext|\.cjs/);
  });

  test("errors: frames of the library and the name of a foreign package", async () => {
    const ours = errorOf(await kernel.run(`show([1], { scale: 2 })`));
    assert.match(ours, /^RangeError: show: "scale" goes with a picture\. This is a plain value and takes no options\.\n/);
    assert.match(ours, /at (src\/notebook\/bundle\.ts|vitrine\/notebook\/bundle\.js):\d+/);
    assert.match(ours, /at cell \d+, line 1: show/);
    assert.match(
      errorOf(await kernel.run(`import sharp from "sharp"; await sharp(Buffer.from("no picture")).png().toBuffer();`)),
      /thrown inside the package sharp/,
    );
  });

  test("errors: what is thrown without being an error, and what nobody waited for", async () => {
    assert.match(errorOf(await kernel.run(`throw "just text"`)), /just text/);
    const run = ok(await kernel.run(`void Promise.reject(new Error("forgotten")); await new Promise((done) => setTimeout(done, 100));`));
    assert.match(textOf(run), /a promise nobody waited for failed\n.*Error.*: forgotten/);
  });

  test("types: a member that does not exist is a diagnostic under its line", async () => {
    const text = errorOf(await kernel.run(`import { show as draw } from "vitrine/notebook";\ndraw({}).bogus;`));
    assert.match(text, /^TypeScript: Property 'bogus' does not exist on type 'Promise<void>'\.\n {4}line 2: draw\(\{\}\)\.bogus;\n {21}\^/);
  });

  test("run all: the cells behind a failed one are given up, later ones run", async () => {
    assert.deepEqual(await kernel.several(["1", "throw new Error('stop')", "2", "3"]), ["ok", "error", "aborted", "aborted"]);
    assert.equal(textOf(ok(await kernel.run("4"))), "4");
  });

  test("handleComplete() completes our functions, also after an emoji", async () => {
    ok(await kernel.run(`import { live } from "vitrine/notebook";`));
    assert.deepEqual((await kernel.complete("live((rows) => ({ data: [], layout: {} })).do")).matches, ["done"]);
    const code = `const face = "😀🙂"; interruptSignal().abo`;
    const { matches, cursor_start, cursor_end } = await kernel.complete(code);
    assert.deepEqual(matches[0], "aborted");
    assert.equal([...code].slice(cursor_start, cursor_end).join(""), "abo");
    assert.deepEqual((await kernel.complete(`import "vit`)).matches, []);
  });

  test("handleInspect() shows signature and comment, also inside of the parentheses", async () => {
    for (const code of ["show", "show(", `show([1, 2], { rows: `]) {
      const { found, data } = await kernel.inspect(code);
      assert.ok(found, code);
      assert.match(data["text/plain"]!, /show\(value: unknown, options\?: ShowOptions\): Promise<void>[\s\S]*Shows a value/);
    }
    assert.equal((await kernel.inspect("   ")).found, false);
  });

  test("output: many lines arrive whole and in order, in few messages", async () => {
    const run = ok(await kernel.run(`for (let i = 0; i < 5000; i++) console.log(i); console.error("end");`));
    const streams = run.outputs.filter(({ type }) => type === "stream");
    assert.equal(
      streams
        .filter(({ name }) => name === "stdout")
        .map(({ text }) => text)
        .join(""),
      Array.from({ length: 5000 }, (_, i) => `${i}\n`).join(""),
    );
    assert.equal(streams.at(-1)?.text, "end\n");
    assert.ok(streams.length < 50, `${streams.length} messages`);
  });

  test("live() moves in place and ends as a figure", async () => {
    const run = ok(
      await kernel.run(`const curve = live((rows: number[]) => ({ data: [{ y: rows }], layout: {} }));
for (let i = 0; i < 30; i++) { curve.add(i); await new Promise((done) => setTimeout(done, 50)); }`),
    );
    const [place, ...updates] = run.outputs;
    assert.equal(place?.type, "display_data");
    assert.ok(updates.length >= 2, `${updates.length} drawings`);
    assert.ok(
      updates.every(({ type, transient }) => type === "update_display_data" && transient?.display_id === place?.transient?.display_id),
    );
    assert.ok(updates.length <= run.seconds * 4 + 2, `${updates.length} drawings in ${run.seconds} s`);
    const figure = updates.at(-1)?.data?.["application/vnd.plotly.v1+json"] as { data: { y: number[] }[] };
    assert.equal(figure.data[0]?.y.length, 30);
  });

  test("progress() is one bar that moves", async () => {
    const run = ok(
      await kernel.run(`import { progress } from "vitrine/engine/progress";
const bar = progress(30, "<b>pictures</b>"); for (let i = 0; i < 30; i++) { await new Promise((done) => setTimeout(done, 60)); bar.tick(); } bar.done();`),
    );
    assert.equal(new Set(run.outputs.map(({ transient }) => transient?.display_id)).size, 1);
    const last = run.outputs.at(-1)?.data;
    assert.match(String(last?.["text/html"]), /&#60;b&#62;pictures[\s\S]*<progress max="30" value="30"/);
    assert.match(String(last?.["text/plain"]), /30\/30 .*it\/s/);
  });

  test("bad input 43: ten million points are thinned below the limit, and the cell says so", async () => {
    const run = ok(await kernel.run("show({ data: [{ y: new Float32Array(1e7).map((_, i) => Math.sin(i / 1e5)) }], layout: {} })"));
    const figure = run.outputs.find(({ data }) => data?.["application/vnd.plotly.v1+json"])?.data;
    assert.ok(JSON.stringify(figure).length < 1_000_000);
    assert.match(textOf(run), /The figure was \d+\.\d MB \(10,000,000 values\) and an output may have 800 kB: [\d,]+ values are drawn/);
  });
});

describe("the kernel elsewhere", { skip: noJupyter }, () => {
  const folder = mkdtempSync(join(tmpdir(), "vitrine-elsewhere-"));
  after(() => rmSync(folder, { recursive: true, force: true }));

  test("a folder without packages finds those of the kernel, with types", async () => {
    const kernel = await startKernel(folder);
    try {
      ok(await kernel.run(`import { show } from "vitrine/notebook"; console.log(typeof show, process.version);`));
      assert.match(errorOf(await kernel.run("show.bogus")), /Property 'bogus' does not exist/);
      assert.equal(textOf(ok(await kernel.run("process.cwd()"))), folder);
    } finally {
      await kernel.close();
    }
  });

  test("a kernel whose port is taken ends and says so, so that Jupyter starts another", async () => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as AddressInfo;
    const ports = { shell_port: port, iopub_port: 0, stdin_port: 0, control_port: 0, hb_port: 0 };
    const file = join(folder, "connection.json");
    writeFileSync(file, JSON.stringify({ ...ports, ip: "127.0.0.1", transport: "tcp", key: "x", signature_scheme: "hmac-sha256" }));
    const { status, stderr } = await new Promise<{ status: number | null; stderr: string }>((resolve) =>
      execFile(process.execPath, [join(ROOT, "kernels", "vitrine", "launch.cjs"), file], { timeout: 30_000 }, (error, _, stderr) =>
        resolve({ status: error ? (error.code as number) : 0, stderr }),
      ),
    );
    server.close();
    assert.equal(status, 1);
    assert.match(stderr, /the kernel cannot open the ports of .*connection\.json: Address already in use; start it again/);
  });

  test("nearestModules() finds the package it lies in", () => {
    const install = join(folder, "project", "node_modules");
    mkdirSync(join(install, "vitrine"), { recursive: true });
    cpSync(join(ROOT, "kernels", "vitrine"), join(install, "vitrine", "kernels", "vitrine"), { recursive: true });
    for (const name of ["tslab", "@tslab"]) symlinkSync(join(ROOT, "node_modules", name), join(install, name));
    const { modules } = require(join(install, "vitrine", "kernels", "vitrine", "environment.cjs"));
    assert.equal(modules, install);
  });
});
