// @ts-check
/** Smooths a noisy curve. Pure. */

const SHARE = 1 / 10; // of the curve that a smoothed value remembers

/**
 * The exponential moving average, without the pull of its first value: every value is a weighted
 * mean of those so far (as in Adam, Kingma and Ba 2014, section 3).
 * @param {number[]} values
 * @param {number} [span] number of values that it remembers
 * @returns {number[]}
 */
export function smooth(values, span = values.length * SHARE) {
  const decay = 1 - 2 / (Math.max(1, span) + 1);
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    sum = decay * sum + value;
    weight = decay * weight + 1;
    return sum / weight;
  });
}
