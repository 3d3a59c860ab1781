// @ts-check
/** Two lists of runs: the one to show, and one to lay over it. */

import { createElement } from "../shared/dom.js";

import { isRunning, nameStatus } from "./run.js";

/** @typedef {import("./formats.js").Formats} Formats */
/** @typedef {import("./run.js").RunSummary} RunSummary */
/** @typedef {import("./words.js").Translate} Translate */

export class RunChoice {
  /** @type {RunSummary[]} */
  #runs = [];
  /** Name of the run that is shown: it is not compared with itself. */
  #shown = "";

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
   * @param {RunSummary} shown one that goes on is shown in any case
   * @param {string} chosen empty for the latest
   * @param {string} compared empty for none
   */
  draw(shown, chosen, compared) {
    this.#shown = shown.name;
    this.run.disabled = isRunning(shown);
    this.#fillBoth(chosen, compared);
  }

  async refresh() {
    this.#runs = await this.list();
    this.#fillBoth(this.run.value, this.compared.value);
  }

  /**
   * @param {string} chosen
   * @param {string} compared
   */
  #fillBoth(chosen, compared) {
    const others = this.#runs.filter((run) => run.name !== this.#shown);
    this.#fill(this.run, this.#runs, this.translate("latestRun"), chosen);
    this.#fill(this.compared, others, this.translate("noOtherRun"), compared);
  }

  /** @param {(name: string) => void} choose */
  #createSelect(choose) {
    const select = createElement("select");
    select.addEventListener("change", () => choose(select.value));
    return select;
  }

  /**
   * @param {HTMLSelectElement} select
   * @param {RunSummary[]} runs
   * @param {string} first
   * @param {string} value
   */
  #fill(select, runs, first, value) {
    const names = runs.map((run) => `${run.name} ${run.status}`);
    const key = [value, ...names].join("\n");
    if (select.dataset.shown === key) return; // an open list would close
    select.dataset.shown = key;
    const isListed = !value || runs.some((run) => run.name === value);
    const options = runs.map((run) => new Option(this.#describe(run), run.name));
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
