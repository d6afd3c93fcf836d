import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { native, runCheck } from "./build";

test("parallel() covers every index once under jobs of three threads, nested ones and exceptions, without a data race", async (t) => {
  const threads = ["1", "2", "5", "8"];
  const { skip, runs } = await runCheck({
    sources: [join(__dirname, "pool.cc"), native("pool.cc")],
    sanitize: "thread",
    environments: threads.map((VITRINE_THREADS) => ({ VITRINE_THREADS })),
  });
  if (skip) return t.skip(skip);
  assert.deepEqual(
    runs,
    threads.map((count) => `all done by ${count} threads (0)`),
  );
});
