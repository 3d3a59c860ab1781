// @ts-check
/** The names of the curves, with their values at the step under the pointer or at the last one. */

import { createElement, setText } from "../shared/dom.js";

/** @typedef {import("./curves.js").Curves} Curves */
/** @typedef {import("./curves.js").Values} Values */
/** @typedef {import("./formats.js").Formats} Formats */
/** @typedef {import("./words.js").Translate} Translate */

export class Legend {
  /**
   * @param {Translate} translate
   * @param {Formats} formats
   */
  constructor(translate, formats) {
    this.translate = translate;
    this.formats = formats;
    this.step = createElement("span", { className: "ltp-legend-step" });
    this.smoothed = new Entry("smoothed", translate("smoothed"));
    this.loss = new Entry("loss", translate("eachStep"));
    this.validation = new Entry("validation", translate("validation"));
    this.ema = new Entry("ema", translate("validationOfEma"));
    this.learningRate = new Entry("rate", translate("learningRate"));
    this.other = new Entry("other", "");
    const elements = this.entries.map((entry) => entry.element);
    this.element = createElement("div", { className: "ltp-legend" }, this.step, ...elements);
  }

  /**
   * @param {Values} values
   * @param {string} otherName
   */
  draw(values, otherName) {
    const { formats } = this;
    setText(this.step, this.translate("step", { step: values.step }));
    this.smoothed.draw(formats.loss(values.smoothed));
    this.loss.draw(formats.loss(values.loss));
    this.validation.draw(values.validation === undefined ? "" : formats.loss(values.validation));
    this.ema.draw(values.emaValidation === undefined ? "" : formats.loss(values.emaValidation));
    this.learningRate.draw(
      values.learningRate === null ? "" : formats.learningRate(values.learningRate),
    );
    this.other.draw(values.other === undefined ? "" : formats.loss(values.other), otherName);
  }

  get entries() {
    const { smoothed, loss, validation, ema, learningRate, other } = this;
    return [smoothed, loss, validation, ema, learningRate, other];
  }

  /** In words, for a screen reader. */
  get text() {
    const shown = this.entries.filter((entry) => !entry.element.hidden).map((entry) => entry.text);
    return [this.step.textContent, ...shown].join(", ");
  }
}

class Entry {
  /**
   * @param {string} kind
   * @param {string} name
   */
  constructor(kind, name) {
    this.name = createElement("span", { className: "ltp-legend-name", textContent: name });
    this.value = createElement("span", { className: "ltp-number" });
    const mark = createElement("span", { className: `ltp-mark ltp-mark-${kind}` });
    this.element = createElement("span", { className: "ltp-entry" }, mark, this.name, this.value);
  }

  /**
   * @param {string} value empty hides it
   * @param {string} [name]
   */
  draw(value, name) {
    this.element.hidden = !value;
    setText(this.value, value);
    if (name !== undefined) setText(this.name, name);
    if (name !== undefined) this.element.title = name;
  }

  get text() {
    return `${this.name.textContent} ${this.value.textContent}`;
  }
}
