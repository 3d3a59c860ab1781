// @ts-check
/** The bar that chooses which captions the list shows: a search text and a filter with counts. */

import { createElement, setText } from "../shared/dom.js";

import { FILTERS, matchesSearch } from "./filters.js";
import { TOKENS_PER_CHUNK } from "./row.js";

/** @typedef {import("./filters.js").FilterName} FilterName */
/** @typedef {import("./row.js").Row} Row */
/** @typedef {import("./words.js").Translate} Translate */
/** @typedef {import("./words.js").WordKey} WordKey */

/** @type {Record<FilterName, WordKey>} */
const LABELS = {
  all: "filterAll",
  edited: "filterEdited",
  outdated: "filterOutdated",
  empty: "filterEmpty",
  noTriggerWord: "filterNoTriggerWord",
  long: "filterLong",
};

export class SearchBar {
  /**
   * @param {Translate} translate
   * @param {() => void} onChange
   */
  constructor(translate, onChange) {
    this.translate = translate;
    this.text = createElement("input", {
      type: "search",
      placeholder: translate("searchHint"),
      ariaLabel: translate("search"),
    });
    this.filter = createElement("select", { ariaLabel: translate("filter") });
    for (const value of Object.keys(FILTERS)) {
      this.filter.append(createElement("option", { value }));
    }
    this.text.addEventListener("input", onChange);
    this.filter.addEventListener("change", onChange);
    const properties = { className: "ltr-bar", role: "search" };
    this.element = createElement("div", properties, this.text, this.filter);
  }

  /** @param {Row} row */
  matches(row) {
    const fits = FILTERS[/** @type {FilterName} */ (this.filter.value)];
    return fits(row) && matchesSearch(row, this.text.value);
  }

  /** @param {Row[]} rows */
  draw(rows) {
    for (const option of this.filter.options) {
      const name = /** @type {FilterName} */ (option.value);
      const count = rows.filter(FILTERS[name]).length;
      const filter = this.translate(LABELS[name], { max: TOKENS_PER_CHUNK });
      setText(option, this.translate("filterOption", { filter, count }));
      option.disabled = !count && name !== "all" && name !== this.filter.value;
    }
  }
}
