// @ts-check
/** Says once that a training has ended, however many panels show it. Pure. */

import { findSeverity, isRunning } from "./run.js";

/** @typedef {import("./run.js").Run} Run */
/** @typedef {import("./run.js").RunSummary} RunSummary */

export class Announcer {
  /** @type {Set<string>} */
  #announced = new Set();

  /**
   * @param {(severity: ReturnType<typeof findSeverity>, run: Run) => void} announce
   */
  constructor(announce) {
    this.announce = announce;
  }

  /**
   * @param {Run | undefined} previous what was known before
   * @param {Run | undefined} current
   */
  notice(previous, current) {
    if (!current || !hasEnded(previous?.summary, current.summary)) return;
    const { name, updated_at: time } = current.summary;
    const end = `${time} ${name}`; // a run that goes on after a pause ends again
    if (this.#announced.has(end)) return;
    this.#announced.add(end);
    this.announce(findSeverity(current.summary.status), current);
  }
}

/**
 * @param {RunSummary | undefined} previous
 * @param {RunSummary} current
 */
function hasEnded(previous, current) {
  return previous?.name === current.name && isRunning(previous) && !isRunning(current);
}
