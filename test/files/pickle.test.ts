/** Pickles that want more than tensors and plain data, or only to do harm. */
import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { openTorch } from "vitrine/files/torch";
import { P, torchZip } from "./archives";
import { bytes, file, message, oracle, scratch, u32, u64 } from "./helpers";

test("openTorch() refuses globals by name, all of them, and runs nothing", () => {
  const canary = path.join(scratch, "canary");
  const evil: [string, Uint8Array, RegExp][] = [
    ["posix.system", P.whole(P.call(P.global("posix", "system"), P.text(`touch ${canary}`))), /global posix\.system, which is not allowed/],
    ["builtins.getattr", P.whole(P.call(P.global("builtins", "getattr"), P.text("a"), P.text("b"))), /global builtins\.getattr/],
    ["__builtin__.eval", P.whole(P.call(P.global("__builtin__", "eval"), P.text("1"))), /global __builtin__\.eval/],
    [
      "torch.nn Linear",
      P.whole(bytes(P.global("torch.nn.modules.linear", "Linear"), ")", 0x81, "}", "b")),
      /global torch\.nn\.modules\.linear\.Linear/,
    ],
    ["constructor", P.whole(P.call(P.global("constructor", "constructor"))), /global constructor\.constructor/],
    ["torch.__proto__", P.whole(P.call(P.global("torch", "__proto__"))), /global torch\.__proto__/],
    ["torch.hub.load", P.whole(P.call(P.global("torch.hub", "load"), P.text("x"))), /global torch\.hub\.load/],
    ["STACK_GLOBAL", P.whole(P.text("os"), P.text("system"), 0x93), /global os\.system/],
    ["as a dictionary's default", P.whole(P.dict(P.text("a"), P.global("os", "getenv"))), /global os\.getenv/],
    ["behind a memo", P.whole(P.global("os", "getenv"), "q\0", "0", "h\0", "(", P.text("HOME"), "t", "R"), /global os\.getenv/],
    ["never used", P.whole(P.global("subprocess", "Popen"), "0", "N"), /global subprocess\.Popen/],
    ["before the cut", bytes(0x80, 2, P.global("os", "system"), "("), /global os\.system/],
    [
      "as a storage's class",
      P.whole(bytes(P.tuple(P.text("storage"), P.global("os", "x"), P.text("0"), P.text("cpu"), P.int(4)), "Q")),
      /global os\.x/,
    ],
  ];
  for (const [name, content, says] of evil)
    assert.match(
      message(() => openTorch(file(torchZip(content)))),
      says,
      name,
    );
  const several = P.whole(P.dict(P.text("a"), P.call(P.global("os", "system")), P.text("b"), P.call(P.global("os", "popen"))));
  assert.match(
    message(() => openTorch(file(torchZip(several)))),
    /global os\.system, global os\.popen, which are not allowed/,
  );
  assert.match(
    message(() => openTorch(path.join(oracle, "checkpoints", "pickle", "refuse_me.bin"))),
    /refuse_me\.bin wants global os\.getenv/,
  );
  assert.equal(fs.existsSync(canary), false);
});

test("openTorch() refuses damaged pickles quickly, with bounded memory", () => {
  const damaged: [string, Uint8Array, RegExp][] = [
    ["truncated", P.whole(P.dict(P.text("a"), P.int(1))).subarray(0, 9), /a value of 1 bytes, 0 are left/],
    ["LONG_BINPUT 2^31", P.whole("N", "r", u32(2 ** 31)), /memory slot 2147483648 cannot exist/],
    ["BINUNICODE8 of 2^63", P.whole(0x8d, u64(2n ** 63n)), /a value of \d+ bytes, \d+ are left/],
    ["contains itself", P.whole("]", "q\0", "h\0", "a"), /contains itself/],
    ["contains itself in a dictionary", P.whole("}", "q\0", P.text("k"), "h\0", "s"), /"k" contains itself/],
    ["10^6 marks", P.whole(Buffer.alloc(1e6, "(")), /nested deeper than 1000 levels/],
    ["10^5 lists in each other", P.whole("]".repeat(1e5), "a".repeat(1e5 - 1)), /nested deeper than 500 levels/],
    ["5 million lists", P.whole("(", Buffer.alloc(5e6, "]"), "t"), /more than 2000000 objects/],
    ["nothing on the stack", P.whole("0"), /wants a value where there is none/],
    ["no mark", P.whole("t"), /wants a mark where there is none/],
    ["empty memory slot", P.whole("h", 7), /memory slot 7 is empty/],
    ["two values", P.whole("N", "N"), /unfinished value/],
    ["protocol 0", bytes("I1\n."), /instruction 0x49/],
    ["INST", P.whole("(", "ios\nsystem\n"), /instruction 0x69/],
    ["append to a text", P.whole(P.text("a"), "N", "a"), /no list/],
    ["set a key of a list", P.whole("]", "N", "N", "s"), /no dictionary/],
    ["key without a value", P.whole("}", "(", "N", "u"), /a key has no value/],
    ["state of a list", P.whole("]", "}", "b"), /no dictionary/],
    ["call of a text", P.whole(P.text("print"), ")", "R"), /calls something that is no function/],
    ["text that is not UTF-8", P.whole("X", u32(1), 0xff), /not UTF-8/],
    ["persistent id that is no storage", P.whole("N", "Q"), /persistent id that is no storage/],
    [
      "OrderedDict of a number",
      P.whole(P.call(P.global("collections", "OrderedDict"), P.int(1))),
      /collections\.OrderedDict is called with arguments/,
    ],
    ["a class as a value", P.whole(P.global("torch", "FloatStorage")), /is no plain data/],
  ];
  for (const [name, content, says] of damaged) {
    const place = file(torchZip(content));
    const start = performance.now();
    const text = message(() => openTorch(place));
    assert.match(text, says, name);
    assert.ok(text.includes(place), name);
    assert.ok(performance.now() - start < 3000, name);
  }
});
