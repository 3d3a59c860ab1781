// @ts-check
/** The run's numbers, each with its name: loss, validation, learning rate, speed, time, memory. */

import { createElement, setText } from "../shared/dom.js";

import { isRunning, measureTime } from "./run.js";

/** @typedef {import("./formats.js").Formats} Formats */
/** @typedef {import("./run.js").Run} Run */
/** @typedef {import("./words.js").Translate} Translate */

export class Numbers {
  /**
   * @param {Translate} translate
   * @param {Formats} formats
   */
  constructor(translate, formats) {
    this.translate = translate;
    this.formats = formats;
    this.loss = new Entry(translate("loss"), translate("lossHint"));
    this.validation = new Entry(translate("validation"));
    this.learningRate = new Entry(translate("learningRate"));
    this.speed = new Entry(translate("speed"));
    this.time = new Entry(translate("timeLeft"));
    this.memory = new Entry(translate("memory"));
    this.meter = createElement("div", { className: "ltp-meter" }, createElement("div"));
    this.memory.element.append(this.meter);
    const entries = [
      this.loss,
      this.validation,
      this.learningRate,
      this.speed,
      this.time,
      this.memory,
    ];
    const elements = entries.map((entry) => entry.element);
    this.element = createElement("dl", { className: "ltp-numbers" }, ...elements);
  }

  /** @param {Run} run */
  draw(run) {
    const { formats, translate } = this;
    this.loss.draw(formats.loss(run.summary.average_loss ?? run.curve.average.at(-1)));
    this.#drawValidation(run);
    this.learningRate.draw(
      formats.learningRate(run.learning_rate ?? run.curve.learning_rate.at(-1)),
    );
    this.speed.draw(formats.speed(run.steps_per_second));
    const isGoingOn = isRunning(run.summary);
    setText(this.time.name, translate(isGoingOn ? "timeLeft" : "timeTaken"));
    this.time.draw(formats.duration(isGoingOn ? run.eta_seconds : measureTime(run.summary)));
    this.#drawMemory(run);
  }

  /** @param {Run} run */
  #drawValidation({ validation }) {
    const { formats, translate } = this;
    setText(
      this.validation.name,
      translate(validation.kind === "stable loss" ? "stableLoss" : "validation"),
    );
    const best = validation.best_step;
    const detail = best === null ? "" : translate("bestAt", { step: best });
    this.validation.draw(formats.loss(validation.loss.at(-1)), detail);
  }

  /** @param {Run} run */
  #drawMemory({ memory_bytes: used, memory_budget_bytes: budget }) {
    const { formats, translate } = this;
    const detail = budget ? translate("memoryOf", { budget: formats.bytes(budget) }) : "";
    this.memory.draw(formats.bytes(used), detail);
    this.meter.hidden = !budget || !used;
    const share = budget ? Math.min(1, used / budget) : 0;
    const bar = /** @type {HTMLElement} */ (this.meter.firstElementChild);
    bar.style.width = `${share * 100}%`;
    this.meter.classList.toggle("ltp-full", budget > 0 && used > budget);
  }
}

class Entry {
  /**
   * @param {string} name
   * @param {string} [title]
   */
  constructor(name, title = "") {
    this.name = createElement("dt", { textContent: name });
    this.value = createElement("span", { className: "ltp-value" });
    this.detail = createElement("span", { className: "ltp-detail" });
    const value = createElement("dd", {}, this.value, this.detail);
    this.element = createElement("div", { className: "ltp-entry-number", title }, this.name, value);
  }

  /**
   * @param {string} value
   * @param {string} [detail]
   */
  draw(value, detail = "") {
    setText(this.value, value);
    setText(this.detail, detail);
  }
}
