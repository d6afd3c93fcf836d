// The one entry of the npm scripts:  node src/setup/run.mjs COMMAND [ARGUMENTS]
// Nothing but this and the version check is read before an old Node has been told so.
import { nodeProblem } from "./node-version.mjs";

const COMMANDS = ["start", "test", "doctor", "setup", "build", "check", "file"];

async function run([command, ...args]) {
  const { nearest } = await import("./options.mjs");
  const { failureParagraph } = await import("./say.mjs");
  const stop = new AbortController();
  let code = 130;
  for (const name of ["SIGINT", "SIGTERM", "SIGHUP"]) process.once(name, () => stop.abort(new Error(`ended by ${name}`)));
  try {
    if (!COMMANDS.includes(command))
      throw new Error(`Unknown command "${command}"; did you mean ${nearest(command ?? "", COMMANDS) ?? COMMANDS.join(", ")}?`);
    const { main } = await import(`./${command}.mjs`);
    code = (await main(args, { signal: stop.signal })) ?? 0;
  } catch (error) {
    if (stop.signal.aborted) console.error("\nStopped. The same command goes on from here.");
    else {
      console.error(error.told ? error.message : failureParagraph(error));
      code = 1;
    }
  }
  process.exitCode = code;
}

const problem = nodeProblem(process.version);
if (problem) {
  console.error(problem);
  process.exitCode = 1;
} else await run(process.argv.slice(2));
