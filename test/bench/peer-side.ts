/** The peer's Python, and the checkpoints that both sides load. */
import { accessSync, constants, existsSync, mkdirSync, readdirSync, renameSync, rmSync, statfsSync } from "node:fs";
import { dirname, join, relative, sep } from "node:path";
import { answer } from "./child";
import { CHECKPOINT, checkpointOf, type Workload } from "./work";

export const PEER = join(__dirname, "peer.py");
/** Bytes that the checkpoints take. */
const ROOM = 2.9e9;

const MODULES = ["torch", "transformers", "peft"];
const LOOK = `
import importlib.util, json, platform
missing = [m for m in ${JSON.stringify(MODULES)} if importlib.util.find_spec(m) is None]
from importlib.metadata import version
print(json.dumps(dict(missing=missing, versions=dict([("python", platform.python_version())] + [(m, version(m)) for m in ${JSON.stringify(MODULES)} if m not in missing]))))
`;

/** Versions of what the peer consists of. @throws naming every module that the Python lacks, and how to get them */
export async function peerVersions(python: string, signal: AbortSignal): Promise<Record<string, string>> {
  const { missing, versions } = await answer<{ missing: string[]; versions: Record<string, string> }>(
    `--peer ${python}`,
    python,
    ["-c", LOOK],
    { signal },
  );
  if (missing.length)
    throw new Error(
      `--peer ${python} lacks ${missing.join(", ")}. Make an environment that has them (Python 3.11 or later):\n` +
        "  python3 -m venv PEER && PEER/bin/pip install --require-hashes -r src/setup/requirements-peer.txt\nand give --peer PEER/bin/python.",
    );
  return versions;
}

/** Whether the folder holds the checkpoints that these workloads load. */
export const hasCheckpoints = (folder: string, workloads: readonly Workload[]): boolean =>
  workloads.every((workload) =>
    ["config.json", "model.safetensors"].every((name) => existsSync(join(folder, checkpointOf(workload), name))),
  );

/**
 * Makes the checkpoints with `peer.py make` where the folder lacks them: beside their places first, so that a stop half-way leaves nothing behind.
 *
 * @throws when the folder cannot be written or the disk has no room
 */
export async function makeCheckpoints(
  folder: string,
  workloads: readonly Workload[],
  python: string | undefined,
  signal: AbortSignal,
  say: (line: string) => void,
): Promise<void> {
  if (hasCheckpoints(folder, workloads)) return;
  if (!python)
    throw new Error(
      `${folder} holds no ${workloads.map(checkpointOf).find((name) => !existsSync(join(folder, name))) ?? CHECKPOINT}; give --peer PYTHON, which makes it`,
    );
  checkRoom(folder);
  say(`making the checkpoints in ${folder} (2.7 GB of random weights, about a minute)`);
  const making = join(folder, `.making-${process.pid}`);
  try {
    mkdirSync(making);
    await answer("peer.py make", python, ["-c", MAKE, PEER, making], { signal });
    for (const name of readdirSync(making)) if (!existsSync(join(folder, name))) renameSync(join(making, name), join(folder, name));
  } finally {
    rmSync(making, { recursive: true, force: true });
  }
}

/** peer.py make prints nothing of its own; `answer` wants a line. */
const MAKE =
  "import runpy, sys; sys.argv = [sys.argv[1], 'make', sys.argv[2]]; runpy.run_path(sys.argv[0], run_name='__main__'); print('true')";

function checkRoom(folder: string): void {
  try {
    // The folder that is there decides: Node's recursive mkdir never ends where the system lets nothing be made, as in /proc.
    let standing = folder;
    while (!existsSync(standing)) standing = dirname(standing);
    accessSync(standing, constants.W_OK);
    if (standing !== folder) mkdirSync(join(standing, relative(standing, folder).split(sep)[0]));
    mkdirSync(folder, { recursive: true });
  } catch (error) {
    throw new Error(`--checkpoints ${folder} cannot be written (${(error as NodeJS.ErrnoException).code}); name a folder of yours`);
  }
  const { bavail, bsize } = statfsSync(folder);
  const free = bavail * bsize;
  if (free < ROOM)
    throw new Error(
      `--checkpoints ${folder}: ${(free / 1e9).toFixed(1)} GB are free on its disk, the checkpoints need ${(ROOM / 1e9).toFixed(1)} GB`,
    );
}
