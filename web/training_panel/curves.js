// @ts-check
/** What a chart of one or two runs shows: curves and ranges, and the values at a step. Pure. */

import { findNearest, findRange } from "./chart_scale.js";
import { smooth } from "./smoothing.js";

/** @typedef {import("./run.js").Run} Run */
/**
 * @typedef {object} Curves
 * @property {number[]} step
 * @property {number[]} loss
 * @property {number[]} low
 * @property {number[]} high
 * @property {number[]} smoothed
 * @property {(number | null)[]} learningRate
 * @property {import("./run.js").Validation} validation
 * @property {ReturnType<typeof prepareOther> | undefined} other
 * @property {number} lastStep
 * @property {[low: number, high: number]} range
 * @property {number} maxLearningRate
 */
/**
 * @typedef {object} Values what the legend says
 * @property {number} step
 * @property {number} loss
 * @property {number} smoothed
 * @property {number | null} learningRate
 * @property {number | undefined} validation the last one up to the step
 * @property {number | undefined} emaValidation that of the moving average
 * @property {number | undefined} other
 */

/**
 * @param {Run} run
 * @param {Run} [compared]
 * @returns {Curves}
 */
export function prepareCurves(run, compared) {
  const { step, loss, low, high, learning_rate: learningRate } = run.curve;
  const smoothed = smooth(loss);
  const other = compared && prepareOther(compared);
  const certain = [...smoothed, ...listLosses(run.validation)];
  if (other) certain.push(...other.smoothed, ...other.validation.loss);
  return {
    ...{ step, loss, low, high, smoothed, learningRate, other },
    validation: run.validation,
    lastStep: Math.max(1, step.at(-1) ?? 0, other?.step.at(-1) ?? 0),
    range: findRange(certain, [...low, ...high]),
    maxLearningRate: learningRate.reduce((/** @type {number} */ a, b) => Math.max(a, b ?? 0), 0),
  };
}

/** @param {import("./run.js").Validation} validation */
function listLosses({ loss, ema_loss: emaLoss }) {
  return [...loss, ...emaLoss.filter((value) => value !== null)];
}

/** @param {Run} compared */
function prepareOther({ curve, validation }) {
  return { step: curve.step, smoothed: smooth(curve.loss), validation };
}

/**
 * @param {Curves} curves with at least one point
 * @param {number} index of a point
 * @returns {Values}
 */
export function readValues(curves, index) {
  const { step, loss, smoothed, learningRate, validation, other } = curves;
  const last = validation.step.findLastIndex((each) => each <= step[index]);
  return {
    step: step[index],
    loss: loss[index],
    smoothed: smoothed[index],
    learningRate: learningRate[index],
    validation: validation.loss[last],
    emaValidation: validation.ema_loss[last] ?? undefined,
    other: other?.step.length ? other.smoothed[findNearest(other.step, step[index])] : undefined,
  };
}
