// @ts-check
/** Numbers as the panel shows them, in the user's language. Pure. */

/** @typedef {import("./words.js").Translate} Translate */

const MEBIBYTE = 2 ** 20;
const GIBIBYTE = 2 ** 30;

export class Formats {
  /**
   * @param {string} locale
   * @param {Translate} translate
   */
  constructor(locale, translate) {
    this.locale = locale;
    this.translate = translate;
  }

  /** @param {number | null | undefined} value */
  loss(value) {
    if (value == null) return this.translate("unknown");
    if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(2);
    return this.#round(value, Math.abs(value) < 100 ? 4 : 1);
  }

  /** @param {number | null | undefined} value */
  learningRate(value) {
    if (value == null) return this.translate("unknown");
    return value === 0 ? "0" : value.toExponential(2).replace(/\.?0+e/, "e");
  }

  /** @param {number | null | undefined} stepsPerSecond */
  speed(stepsPerSecond) {
    if (!stepsPerSecond) return this.translate("unknown");
    if (stepsPerSecond >= 1) return `${this.#round(stepsPerSecond, 2)} it/s`;
    return `${this.#round(1 / stepsPerSecond, 1)} s/it`;
  }

  /** @param {number | null | undefined} seconds */
  duration(seconds) {
    if (seconds == null || seconds < 0) return this.translate("unknown");
    const whole = Math.round(seconds);
    const parts = [Math.floor(whole / 60) % 60, whole % 60];
    const hours = Math.floor(whole / 3600);
    const [first, ...rest] = hours ? [hours, ...parts] : parts;
    return [first, ...rest.map((part) => String(part).padStart(2, "0"))].join(":");
  }

  /** @param {number} bytes */
  bytes(bytes) {
    if (!bytes) return this.translate("unknown");
    if (bytes >= GIBIBYTE) return `${this.#round(bytes / GIBIBYTE, 1)} GB`;
    return `${this.#round(bytes / MEBIBYTE, 1)} MB`;
  }

  /** @param {number} part from 0 to 1 */
  percent(part) {
    const floored = Math.floor(part * 100) / 100; // 100 % only at the end
    return floored.toLocaleString(this.locale, { style: "percent" });
  }

  /** @param {number} value */
  whole(value) {
    return value.toLocaleString(this.locale);
  }

  /** @param {number} secondsSince1970 */
  time(secondsSince1970) {
    const date = new Date(secondsSince1970 * 1000);
    return date.toLocaleString(this.locale, { dateStyle: "short", timeStyle: "short" });
  }

  /**
   * @param {number} value
   * @param {number} digits
   */
  #round(value, digits) {
    const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    return value.toLocaleString(this.locale, options);
  }
}
