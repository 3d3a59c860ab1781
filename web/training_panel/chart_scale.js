// @ts-check
/** From steps and values to places in the chart: ranges, ticks and paths of SVG. Pure. */

const CUT_SHARE = 0.02; // of the single losses, at each end, may be outside of the chart
const MARGIN = 0.06;

/**
 * The range of all `certain` values, and of nearly all `noisy` ones.
 * @param {number[]} certain
 * @param {number[]} noisy
 * @returns {[low: number, high: number]}
 */
export function findRange(certain, noisy) {
  const sorted = [...noisy].sort((a, b) => a - b);
  const cut = Math.floor(sorted.length * CUT_SHARE);
  const kept = [...certain, ...sorted.slice(cut, sorted.length - cut)];
  if (!kept.length) return [0, 1];
  const low = kept.reduce((a, b) => Math.min(a, b));
  const high = kept.reduce((a, b) => Math.max(a, b));
  const margin = (high - low || Math.abs(high) || 1) * MARGIN;
  return [low >= 0 ? Math.max(0, low - margin) : low - margin, high + margin];
}

/**
 * Round numbers between low and high, at most `count` of them.
 * @param {number} low
 * @param {number} high
 * @param {number} count
 * @returns {number[]}
 */
export function findTicks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  if (!(raw > 0) || !Number.isFinite(raw)) return [];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10]
    .map((each) => each * power)
    .find((each) => each >= raw * 0.999999);
  const size = step ?? 10 * power;
  const ticks = [];
  for (let index = Math.ceil(low / size - 1e-9); index * size <= high * (1 + 1e-12); index++)
    ticks.push(Number((index * size).toPrecision(12)));
  return ticks;
}

/**
 * A function from this range to that one.
 * @param {[number, number]} from
 * @param {[number, number]} to
 * @returns {(value: number) => number}
 */
export function createScale([fromLow, fromHigh], [toLow, toHigh]) {
  const factor = (toHigh - toLow) / (fromHigh - fromLow || 1);
  return (value) => toLow + (value - fromLow) * factor;
}

/**
 * A line through the points, with a gap where a value is unknown.
 * @param {number[]} xs
 * @param {(number | null)[]} ys
 */
export function drawLine(xs, ys) {
  let path = "";
  let isDown = false;
  xs.forEach((x, index) => {
    const y = ys[index];
    if (y != null) path += `${isDown ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    isDown = y != null;
  });
  return path;
}

/**
 * The area between two lines.
 * @param {number[]} xs
 * @param {number[]} lows
 * @param {number[]} highs
 */
export function drawArea(xs, lows, highs) {
  if (!xs.length) return "";
  const back = drawLine([...xs].reverse(), [...lows].reverse());
  return `${drawLine(xs, highs)}${back.replace("M", "L")}Z`;
}

/**
 * The index of the step nearest to this one, in steps that go up.
 * @param {number[]} steps
 * @param {number} step
 */
export function findNearest(steps, step) {
  const after = steps.findIndex((each) => each >= step);
  if (after < 1) return after === 0 ? 0 : steps.length - 1;
  return step - steps[after - 1] < steps[after] - step ? after - 1 : after;
}
