// @ts-check
/**
 * The chart of a run: every step's loss thin, smoothed thick, validation as dots and that of the
 * moving average dashed, the learning rate faint, and another run dashed. SVG, which stays sharp at
 * any zoom of the canvas.
 */

import { createElement } from "../shared/dom.js";

import { createScale, drawArea, drawLine, findNearest, findTicks } from "./chart_scale.js";
import { readValues } from "./curves.js";
import { Legend } from "./legend.js";

/** @typedef {import("./curves.js").Curves} Curves */
/** @typedef {import("./formats.js").Formats} Formats */
/** @typedef {import("./words.js").Translate} Translate */
/** @typedef {{ x: (step: number) => number, y: (value: number) => number }} Scales */

const MARGIN = { left: 44, right: 12, top: 8, bottom: 20 }; // in panel.css too
const DOT_RADIUS = 3;
const LARGE_STEP = 10; // points that PageUp and PageDown move by
const SVG = "http://www.w3.org/2000/svg";

export class Chart {
  /** @type {Curves | undefined} */
  #curves;
  #otherName = "";
  /** @type {number | undefined} the point under the pointer or chosen with the keyboard */
  #chosen;
  #size = { width: 0, height: 0 };

  /**
   * @param {Translate} translate
   * @param {Formats} formats
   */
  constructor(translate, formats) {
    this.translate = translate;
    this.formats = formats;
    this.legend = new Legend(translate, formats);
    this.svg = createSvg("svg", { "aria-hidden": "true" });
    this.picture = createElement("div", { className: "ltp-picture", role: "img" });
    this.picture.append(this.svg);
    this.pointer = this.#createPointer();
    this.cursor = createElement("div", { className: "ltp-cursor", hidden: true });
    this.pointer.append(this.cursor);
    this.blank = createElement("div", {
      className: "ltp-blank",
      textContent: translate("noCurve"),
    });
    const plot = createElement(
      "div",
      { className: "ltp-plot" },
      this.picture,
      this.pointer,
      this.blank,
    );
    this.element = createElement("div", { className: "ltp-chart" }, this.legend.element, plot);
    this.observer = new ResizeObserver(() => this.#resize());
    this.observer.observe(this.picture);
  }

  remove() {
    this.observer.disconnect();
  }

  /**
   * @param {Curves} curves
   * @param {string} otherName of the run laid over it
   */
  draw(curves, otherName) {
    this.#curves = curves;
    this.#otherName = otherName;
    const isEmpty = !curves.step.length;
    this.blank.hidden = !isEmpty;
    this.pointer.hidden = this.legend.element.hidden = isEmpty;
    this.picture.ariaLabel = isEmpty ? this.translate("noCurve") : this.#summarize(curves);
    if (!isEmpty) this.#drawValues();
    this.#drawPicture();
  }

  /** @param {Curves} curves */
  #summarize({ step, smoothed }) {
    const lowest = smoothed.reduce(
      (best, value, index) => (value < smoothed[best] ? index : best),
      0,
    );
    return this.translate("chartSummary", {
      step: step[step.length - 1],
      first: this.formats.loss(smoothed[0]),
      last: this.formats.loss(smoothed[smoothed.length - 1]),
      lowest: this.formats.loss(smoothed[lowest]),
      lowestStep: step[lowest],
    });
  }

  // ---- the picture ----

  #resize() {
    const { offsetWidth: width, offsetHeight: height } = this.picture; // not scaled by the canvas
    if (width === this.#size.width && height === this.#size.height) return;
    this.#size = { width, height };
    this.#drawPicture();
  }

  #drawPicture() {
    const { width, height } = this.#size;
    const curves = this.#curves;
    if (!curves?.step.length || width < 80 || height < 40) return this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const left = MARGIN.left;
    const right = width - MARGIN.right;
    const bottom = height - MARGIN.bottom;
    const x = createScale([0, curves.lastStep], [left, right]);
    const y = createScale(curves.range, [bottom, MARGIN.top]);
    const clip = createSvg("svg", {
      x: left,
      y: MARGIN.top,
      width: right - left,
      height: bottom - MARGIN.top,
    });
    clip.setAttribute("viewBox", `${left} ${MARGIN.top} ${right - left} ${bottom - MARGIN.top}`);
    clip.append(...drawCurves(curves, { x, y }, [bottom, MARGIN.top]));
    const axes = [
      ...this.#drawValueAxis(curves, y, right),
      ...this.#drawStepAxis(curves, x, bottom),
    ];
    this.svg.replaceChildren(...axes, clip, ...drawDots(curves, { x, y }));
  }

  /**
   * @param {Curves} curves
   * @param {(value: number) => number} y
   * @param {number} right
   */
  #drawValueAxis({ range }, y, right) {
    const ticks = findTicks(...range, Math.max(2, Math.floor(this.#size.height / 42)));
    const digits = Math.max(2, ...ticks.map((tick) => (String(tick).split(".")[1] ?? "").length));
    const options = { minimumFractionDigits: Math.min(digits, 6), maximumFractionDigits: 6 };
    return ticks.flatMap((tick) => [
      createSvg("line", {
        class: "ltp-grid",
        x1: MARGIN.left,
        x2: right,
        y1: y(tick),
        y2: y(tick),
      }),
      createSvg(
        "text",
        { class: "ltp-tick", x: MARGIN.left - 6, y: y(tick) + 3.5, "text-anchor": "end" },
        tick.toLocaleString(this.formats.locale, options),
      ),
    ]);
  }

  /**
   * @param {Curves} curves
   * @param {(step: number) => number} x
   * @param {number} bottom
   */
  #drawStepAxis({ lastStep }, x, bottom) {
    const ticks = findTicks(0, lastStep, Math.max(2, Math.floor(this.#size.width / 90)));
    return ticks.filter(Number.isInteger).map((tick) => {
      const anchor = x(tick) > this.#size.width - 30 ? "end" : "middle";
      const place = { x: x(tick) + (anchor === "end" ? MARGIN.right - 2 : 0), y: bottom + 14 };
      const attributes = { class: "ltp-tick", ...place, "text-anchor": anchor };
      return createSvg("text", attributes, this.formats.whole(tick));
    });
  }

  // ---- the values at a step ----

  /** A slider, which a screen reader reads and the arrow keys move. */
  #createPointer() {
    const pointer = createElement("div", {
      className: "ltp-pointer",
      role: "slider",
      tabIndex: 0,
      ariaLabel: this.translate("valuesAtStep"),
    });
    pointer.addEventListener("pointermove", (event) => this.#chooseAt(event));
    pointer.addEventListener("pointerleave", () => this.#choose(undefined));
    pointer.addEventListener("blur", () => this.#choose(undefined));
    pointer.addEventListener("keydown", (event) => this.#chooseByKey(event));
    return pointer;
  }

  /** @param {PointerEvent} event */
  #chooseAt(event) {
    const curves = this.#curves;
    const { left, width } = this.pointer.getBoundingClientRect();
    if (!curves || !width) return;
    const step = ((event.clientX - left) / width) * curves.lastStep;
    this.#choose(findNearest(curves.step, step));
  }

  /** @param {KeyboardEvent} event */
  #chooseByKey(event) {
    const last = (this.#curves?.step.length ?? 0) - 1;
    const index = Math.min(this.#chosen ?? last, last);
    /** @type {Record<string, number>} */
    const places = {
      ArrowLeft: index - 1,
      ArrowDown: index - 1,
      ArrowRight: index + 1,
      ArrowUp: index + 1,
      PageDown: index - LARGE_STEP,
      PageUp: index + LARGE_STEP,
      Home: 0,
      End: last,
    };
    if (!(event.key in places)) return;
    event.preventDefault();
    event.stopPropagation(); // the canvas moves the node by these keys
    this.#choose(Math.max(0, Math.min(last, places[event.key])));
  }

  /** @param {number | undefined} index */
  #choose(index) {
    this.#chosen = index;
    this.#drawValues();
  }

  #drawValues() {
    const curves = this.#curves;
    if (!curves?.step.length) return;
    const last = curves.step.length - 1;
    const index = Math.min(this.#chosen ?? last, last);
    const { pointer, cursor } = this;
    this.legend.draw(readValues(curves, index), this.#otherName);
    cursor.hidden = this.#chosen === undefined;
    cursor.style.left = `${(curves.step[index] / curves.lastStep) * 100}%`;
    pointer.ariaValueMin = String(curves.step[0]);
    pointer.ariaValueMax = String(curves.step[last]);
    pointer.ariaValueNow = String(curves.step[index]);
    pointer.ariaValueText = this.legend.text;
  }
}

/**
 * @param {Curves} curves
 * @param {Scales} scales
 * @param {[number, number]} height
 */
function drawCurves(curves, { x, y }, height) {
  const { other } = curves;
  const xs = curves.step.map(x);
  const toHeight = createScale([0, curves.maxLearningRate || 1], [height[0], height[1] + 6]);
  const rates = placeKnown(curves.learningRate, toHeight);
  const { step: measured, loss, ema_loss: emaLoss } = curves.validation;
  const paths = [
    ["band", drawArea(xs, curves.low.map(y), curves.high.map(y))],
    ["rate", drawLine(xs, rates)],
    ["loss", drawLine(xs, curves.loss.map(y))],
    ["other", other ? drawLine(other.step.map(x), other.smoothed.map(y)) : ""],
    ["validation", drawLine(measured.map(x), loss.map(y))],
    ["ema", drawLine(measured.map(x), placeKnown(emaLoss, y))],
    ["smoothed", drawLine(xs, curves.smoothed.map(y))],
  ];
  return paths
    .filter(([, path]) => path)
    .map(([name, path]) => createSvg("path", { class: `ltp-line ltp-${name}`, d: path }));
}

/**
 * @param {(number | null)[]} values null: unknown
 * @param {(value: number) => number} scale
 */
function placeKnown(values, scale) {
  return values.map((value) => (value === null ? null : scale(value)));
}

/**
 * Above the curves, and not cut off at the edge.
 * @param {Curves} curves
 * @param {Scales} scales
 */
function drawDots({ validation, other }, { x, y }) {
  const draw = (/** @type {string} */ name, /** @type {Curves["validation"]} */ { step, loss }) =>
    step.map((each, index) =>
      createSvg("circle", { class: name, cx: x(each), cy: y(loss[index]), r: DOT_RADIUS }),
    );
  const others = other ? draw("ltp-dot ltp-dot-other", other.validation) : [];
  return [...others, ...draw("ltp-dot", validation)];
}

/**
 * @param {string} tag
 * @param {Record<string, string | number>} [attributes]
 * @param {string} [text]
 */
function createSvg(tag, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, typeof value === "number" ? value.toFixed(1) : value);
  }
  if (text) element.textContent = text;
  return element;
}
