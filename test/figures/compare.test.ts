import assert from "node:assert/strict";
import { test } from "node:test";
import { compareCurves, stepsTo } from "vitrine/figures/compare-curves";
import { compareScores } from "vitrine/figures/compare-scores";
import type { Figure } from "vitrine/figures/figure";
import { matchesSnapshot } from "./snapshot";

type Trace = { type: string; name: string; x: number[]; y: (number | null)[] };
const traces = (figure: Figure) => figure.data as Trace[];
const note = (figure: Figure) => (figure.layout as { title: { subtitle: { text: string } } }).title.subtitle.text;

const points = (...values: number[]) => values.map((value, i) => ({ step: 10 * (i + 1), value }));

const everyFigure = (text: string): Record<string, Figure> => ({
  compareCurves: compareCurves(
    [
      { name: text, points: points(3, 2, 1) },
      { name: "b", points: points(4, 3, 2) },
      { name: text, points: points(2, 1, 0.5) },
    ],
    { title: text, unit: text, goal: 2 },
  ),
  compareScores: compareScores(
    [
      { name: text, shares: { [text]: 0.5, two: 0.25 } },
      { name: "b", shares: { [text]: 0.75, two: 1 } },
      { name: "b", shares: { [text]: 0.25, two: 0.5 } },
    ],
    { title: text, floor: { [text]: 0.3 } },
  ),
});

for (const [name, figure] of Object.entries(everyFigure("a plain title")))
  test(`${name}() is the figure that was looked at`, () => matchesSnapshot(name, figure));

test("figures that compare runs escape the texts of data, and give plain data", () => {
  for (const [name, figure] of Object.entries(everyFigure("<img src=x onerror=alert(1)> <b>$\\alpha$\n"))) {
    const json = JSON.stringify(figure);
    assert.ok(json.includes("&lt;img"), `${name}: the text is shown`);
    assert.doesNotMatch(json, /<(?!\/?b>|br>|\/?extra>)/, `${name}: only our own markup`);
    assert.doesNotMatch(json, /\$/, `${name}: no TeX`);
  }
});

test("compareCurves() draws each run and the mean of its kind where all runs have the step, and says when the goal is reached", () => {
  const figure = compareCurves(
    [
      { name: "a", points: points(3, 2, 1) },
      { name: "a", points: points(1, 0) },
      { name: "b", points: points(5, 4) },
    ],
    { goal: 1 },
  );
  assert.deepEqual(
    traces(figure).map(({ name, x, y }) => [name, x, y]),
    [
      ["a", [10, 20, 30], [3, 2, 1]],
      ["a", [10, 20], [1, 0]],
      ["a", [10, 20], [2, 1]],
      ["b", [10, 20], [5, 4]],
    ],
  );
  assert.equal(note(figure), "steps to 1: a: 20 · b: not reached");
  assert.equal(stepsTo(points(3, 2, 1), 2), 20);
  assert.equal(stepsTo(points(3, 2, 1), 0), undefined);
  assert.equal(traces(compareCurves([{ name: "a", points: points(Number.NaN, 1) }]))[0].y[0], null, "a gap");
  assert.throws(() => compareCurves([]), /no runs/);
});

test("compareScores() draws the mean of a kind's runs and each of them, and refuses runs of other topics", () => {
  const [a, b, dots] = traces(everyFigure("x").compareScores);
  assert.deepEqual(
    [a.y, b.y],
    [
      [0.5, 0.25],
      [0.5, 0.75],
    ],
  );
  assert.deepEqual(dots.y, [0.5, 0.25, 0.75, 1, 0.25, 0.5]);
  assert.throws(
    () =>
      compareScores([
        { name: "a", shares: { one: 1 } },
        { name: "b", shares: { two: 1 } },
      ]),
    /a run of b has the topics two; expected one/,
  );
  assert.throws(() => compareScores([]), /no runs/);
});
