// @ts-check
/** Two lists of runs: the one to show, and one to lay over it. */

import { createElement } from "../shared/dom.js";

import { nameStatus } from "./run.js";

/** @typedef {import("./formats.js").Formats} Formats */
/** @typedef {import("./run.js").RunSummary} RunSummary */
/** @typedef {import("./words.js").Translate} Translate */

export class RunChoice {
  /** @type {RunSummary[]} */
  #runs = [];

  /**
   * @param {Translate} translate
   * @param {Formats} formats
   * @param {object} deeds
   * @param {(name: string) => void} deeds.choose
   * @param {(name: string) => void} deeds.compare
   * @param {() => Promise<RunSummary[]>} deeds.list
   */
  constructor(translate, formats, { choose, compare, list }) {
    this.translate = translate;
    this.formats = formats;
    this.list = list;
    this.run = this.#createSelect(choose);
    this.compared = this.#createSelect(compare);
    this.element = createElement(
      "div",
      { className: "ltp-choice" },
      createElement("label", {}, translate("run"), this.run),
      createElement("label", {}, translate("compare"), this.compared),
    );
  }

  /**
   * @param {string} chosen empty for the latest
   * @param {string} compared empty for none
   * @param {boolean} isRunning a run that goes on is shown in any case
   */
  draw(chosen, compared, isRunning) {
    this.run.disabled = isRunning;
    this.#fill(this.run, this.translate("latestRun"), chosen);
    this.#fill(this.compared, this.translate("noOtherRun"), compared);
  }

  async refresh() {
    this.#runs = await this.list();
    this.#fill(this.run, this.translate("latestRun"), this.run.value);
    this.#fill(this.compared, this.translate("noOtherRun"), this.compared.value);
  }

  /** @param {(name: string) => void} choose */
  #createSelect(choose) {
    const select = createElement("select");
    select.addEventListener("change", () => choose(select.value));
    return select;
  }

  /**
   * @param {HTMLSelectElement} select
   * @param {string} first
   * @param {string} value
   */
  #fill(select, first, value) {
    const names = this.#runs.map((run) => `${run.name} ${run.status}`);
    const key = [value, ...names].join("\n");
    if (select.dataset.shown === key) return; // an open list would close
    select.dataset.shown = key;
    const isListed = !value || this.#runs.some((run) => run.name === value);
    const options = this.#runs.map((run) => new Option(this.#describe(run), run.name));
    if (!isListed) options.unshift(new Option(value, value));
    select.replaceChildren(new Option(first, ""), ...options);
    select.value = value;
  }

  /** @param {RunSummary} run */
  #describe(run) {
    const parts = [run.name, this.translate(nameStatus(run)), this.formats.whole(run.step)];
    if (run.average_loss !== null) parts.push(this.formats.loss(run.average_loss));
    return parts.join(" · ");
  }
}
