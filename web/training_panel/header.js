// @ts-check
/** The line that is always there: the run's state and progress, and the button that opens it. */

import { createButton, createElement, setText } from "../shared/dom.js";

import { isRunning, measureProgress, nameStatus } from "./run.js";

/** @typedef {import("./formats.js").Formats} Formats */
/** @typedef {import("./run.js").Run} Run */
/** @typedef {import("./words.js").Translate} Translate */

const ANNOUNCED_PART = 10; // percent between two announcements of a screen reader

export class Header {
  /**
   * @param {Translate} translate
   * @param {Formats} formats
   * @param {() => void} onToggle
   */
  constructor(translate, formats, onToggle) {
    this.translate = translate;
    this.formats = formats;
    this.state = createElement("span", { className: "ltp-state" });
    this.step = createElement("span", { className: "ltp-step ltp-number" });
    this.percent = createElement("span", { className: "ltp-percent ltp-number" });
    this.toggle = createButton("", onToggle, { className: "ltp-toggle" });
    this.live = createElement("span", {
      className: "ltp-hidden",
      role: "status",
      ariaLive: "polite",
    });
    this.filling = createElement("div");
    this.bar = createElement("div", { className: "ltp-bar", role: "progressbar" }, this.filling);
    this.bar.ariaLabel = translate("panel");
    const texts = [this.state, this.step, this.percent, this.toggle, this.live];
    const line = createElement("div", { className: "ltp-line-of-state" }, ...texts);
    this.element = createElement("div", { className: "ltp-header" }, line, this.bar);
  }

  /**
   * @param {Run | undefined} run
   * @param {boolean} isOpen
   */
  draw(run, isOpen) {
    this.#drawToggle(isOpen);
    this.toggle.hidden = this.bar.hidden = !run;
    this.state.dataset.status = run?.summary.status ?? "";
    if (!run) return setText(this.state, this.translate("noRun"));
    const { summary } = run;
    const status = this.translate(nameStatus(summary));
    const part = measureProgress(summary);
    setText(this.state, status);
    setText(this.step, this.translate("stepOf", { step: summary.step, total: summary.total }));
    setText(this.percent, isRunning(summary) ? this.formats.percent(part) : "");
    this.filling.style.width = `${part * 100}%`;
    this.bar.ariaValueNow = String(Math.round(part * 100));
    this.#announce(status, part);
  }

  /** @param {boolean} isOpen */
  #drawToggle(isOpen) {
    this.toggle.ariaExpanded = String(isOpen);
    this.toggle.title = this.toggle.ariaLabel = this.translate(isOpen ? "hide" : "show");
  }

  /**
   * @param {string} status
   * @param {number} part
   */
  #announce(status, part) {
    const rounded = Math.floor((part * 100) / ANNOUNCED_PART) * ANNOUNCED_PART;
    const percent = this.formats.percent(rounded / 100);
    setText(this.live, this.translate("announced", { status, percent }));
  }
}
