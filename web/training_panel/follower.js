// @ts-check
/**
 * Follows the run of one node: finds it, asks for it while it goes on, and leaves the server alone
 * otherwise. Knows no browser and no host: it is given questions and a timer.
 */

import { isRunning } from "./run.js";

/** @typedef {import("./run.js").Run} Run */
/** @typedef {import("./run.js").RunSummary} RunSummary */
/**
 * @typedef {object} World
 * @property {() => Promise<RunSummary[]>} listOwn the runs of the node, the latest first
 * @property {(name: string) => Promise<Run>} read
 * @property {(then: () => void, milliseconds: number) => number} setTimer
 * @property {(timer: number) => void} clearTimer
 */

export const RUNNING_INTERVAL = 2_000; // milliseconds
export const WAITING_INTERVAL = 5_000;

export class RunFollower {
  /** @type {Run | undefined} */
  run;
  /** @type {Run | undefined} */
  compared;
  failure = "";
  /** Name of the run that the user chose; empty for the latest. */
  chosen = "";
  /** Name of the run to lay over it, or empty. */
  comparedName = "";
  /** Whether the server has prompts to run, so that a run may begin. */
  isBusy = false;
  #isStopped = false;
  #isAsking = false;
  #isWoken = false;
  #timer = 0;

  /**
   * @param {World} world
   * @param {(previous: Run | undefined) => void} onChange
   */
  constructor(world, onChange) {
    this.world = world;
    this.onChange = onChange;
  }

  stop() {
    this.#isStopped = true;
    this.world.clearTimer(this.#timer);
  }

  /** Something has happened: look for the latest run now. */
  async wake() {
    this.#isWoken = true;
    if (this.#isAsking) return; // it looks again when it has its answer
    this.world.clearTimer(this.#timer);
    this.#isAsking = true;
    while (this.#isWoken && !this.#isStopped) {
      this.#isWoken = false;
      await this.#ask();
    }
    this.#isAsking = false;
    this.#waitForNext();
  }

  get interval() {
    if (isRunning(this.run?.summary)) return this.failure ? WAITING_INTERVAL : RUNNING_INTERVAL;
    if (this.isBusy || isRunning(this.compared?.summary)) return WAITING_INTERVAL;
    return undefined;
  }

  #waitForNext() {
    const { interval } = this;
    if (interval && !this.#isStopped)
      this.#timer = this.world.setTimer(() => this.wake(), interval);
  }

  async #ask() {
    const previous = this.run;
    try {
      const name = await this.#findName();
      const run = name ? await this.world.read(name) : undefined;
      const compared = await this.#readCompared();
      if (this.#isStopped) return;
      this.run = run;
      this.compared = compared;
      this.failure = "";
    } catch (error) {
      this.failure = /** @type {Error} */ (error).message;
    }
    if (!this.#isStopped) this.onChange(previous);
  }

  /** While a run goes on there is no other: it is not looked for. */
  async #findName() {
    if (isRunning(this.run?.summary) && !this.failure) return this.run?.summary.name;
    const runs = await this.world.listOwn();
    const [latest] = runs;
    if (this.chosen && !isRunning(latest)) return this.chosen;
    this.chosen = "";
    return latest?.name;
  }

  /** A run that was deleted is no failure. */
  async #readCompared() {
    const { compared, comparedName } = this;
    if (!comparedName) return undefined;
    const isSame = compared?.summary.name === comparedName;
    if (isSame && !isRunning(compared?.summary)) return compared;
    return this.world.read(comparedName).catch(() => undefined);
  }
}
