// Tab and Shift-Tab.
const { JupyterHandlerImpl } = require("tslab/dist/jupyter");

/** Answers what the kernel is, completions and inspections; cells are run by `run.cjs`. */
class Handler extends JupyterHandlerImpl {
  constructor(executor) {
    super(executor, false);
  }

  handleKernel() {
    const info = super.handleKernel();
    return {
      ...info,
      status: "ok",
      implementation: "vitrine",
      language_info: { ...info.language_info, version: "5.0", pygments_lexer: "typescript" },
      banner: "Vitrine (TypeScript)",
      help_links: [],
    };
  }

  handleComplete({ code, cursor_pos }) {
    const position = toUtf16(code, cursor_pos);
    const none = { cursor_start: cursor_pos, cursor_end: cursor_pos, matches: [], metadata: {}, status: "ok" };
    try {
      const found = super.handleComplete({ code, cursor_pos: position });
      return { ...found, cursor_start: toPoints(code, found.cursor_start), cursor_end: toPoints(code, found.cursor_end) };
    } catch {
      return none; // tslab does not complete inside of strings
    }
  }

  handleInspect({ code, cursor_pos }) {
    const position = toUtf16(code, cursor_pos);
    for (const at of [position, position - 1, callee(code, position)]) {
      const found = at >= 0 ? super.handleInspect({ code, cursor_pos: at }) : undefined;
      if (found?.found) return found;
    }
    return { status: "ok", found: false, data: {}, metadata: {} };
  }
}

// Jupyter counts characters, JavaScript counts halves of emoji.
const toUtf16 = (code, points) => [...code].slice(0, points).join("").length;
const toPoints = (code, units) => [...code.slice(0, units)].length;

/** Where the name of the function stands whose parentheses surround the position; -1 for none. */
function callee(code, position) {
  let depth = 0;
  for (let i = position - 1; i >= 0; i--) {
    if (")]}".includes(code[i])) depth++;
    else if ("([{".includes(code[i]) && --depth < 0) {
      if (code[i] !== "(")
        depth = 0; // inside of an object or array that is an argument: go on outwards
      else return /[\w$]\s*$/.test(code.slice(0, i)) ? code.slice(0, i).trimEnd().length - 1 : -1;
    }
  }
  return -1;
}

module.exports = { Handler };
