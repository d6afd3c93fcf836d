/** Where derived files that can be made again are kept. */
import { accessSync, constants, existsSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";

/** The name in the checkout's own package.json; the published package is called `vitrine`. */
const CHECKOUT = "vitrine-workbench";

/** The checkout that this module is part of (src/data or dist/data), or undefined where the package is installed elsewhere. */
function checkout(): string | undefined {
  const root = dirname(dirname(__dirname));
  const manifest = join(root, "package.json");
  if (!existsSync(manifest) || JSON.parse(readFileSync(manifest, "utf8")).name !== CHECKOUT) return undefined;
  try {
    accessSync(root, constants.W_OK);
    return root;
  } catch {
    return undefined; // a checkout that somebody else owns
  }
}

/** The system's folder for caches: XDG_CACHE_HOME or ~/.cache, ~/Library/Caches on macOS, %LOCALAPPDATA% on Windows. */
function systemCache(): string {
  if (process.platform === "darwin") return join(homedir(), "Library", "Caches");
  if (process.platform === "win32") return process.env.LOCALAPPDATA ?? join(homedir(), "AppData", "Local");
  return process.env.XDG_CACHE_HOME || join(homedir(), ".cache");
}

/** Folder for derived files: `VITRINE_CACHE`, else `.cache` of the checkout when writable, else `vitrine` in the system's cache. */
export function cacheFolder(): string {
  if (process.env.VITRINE_CACHE) return process.env.VITRINE_CACHE;
  const root = checkout();
  return root ? join(root, ".cache") : join(systemCache(), "vitrine");
}
