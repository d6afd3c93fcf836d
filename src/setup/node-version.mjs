// Read first, so it keeps to what every Node that knows modules can read.

/** The sentence for a Node that is too old, or undefined. wanted: `engines.node` of package.json, ">=20.19". */
export function nodeProblem(version, wanted = "20.19") {
  const [major, minor] = version.replace(/^v/, "").split(".").map(Number);
  const [wantedMajor, wantedMinor] = wanted.split(".").map(Number);
  if (major > wantedMajor || (major === wantedMajor && minor >= wantedMinor)) return undefined;
  return (
    `This is Node ${version}, and Vitrine needs Node ${wanted} or newer. ` +
    "Install the current LTS version (nodejs.org, your system's packages, or a version manager: `nvm install --lts`), " +
    "then run the same command again."
  );
}
