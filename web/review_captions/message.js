// @ts-check
/** The line above the captions: what to do first, and what went wrong. */

import { copyText } from "../shared/clipboard.js";
import { createButton, createElement, setText } from "../shared/dom.js";

/** @typedef {import("./words.js").Translate} Translate */
/**
 * @typedef {object} Notice
 * @property {string} [heading]
 * @property {string} text
 * @property {boolean} isError
 * @property {boolean} hasUnreadableEdits
 */

export class Message {
  /**
   * @param {Translate} translate
   * @param {() => string} getEdits
   * @param {() => void} onDiscard
   */
  constructor(translate, getEdits, onDiscard) {
    this.heading = createElement("strong");
    this.text = createElement("span");
    const copy = createButton(translate("copyEdits"), async () => {
      await copyText(getEdits());
      copy.textContent = translate("copied");
    });
    const discard = createButton(translate("discardEdits"), onDiscard);
    this.actions = createElement("div", { className: "ltr-actions", hidden: true }, copy, discard);
    // It stays in the page while empty: screen readers ignore a live region that has just appeared.
    const live = createElement(
      "div",
      { role: "status", ariaLive: "polite" },
      this.heading,
      this.text,
    );
    this.element = createElement("div", { className: "ltr-message" }, live, this.actions);
  }

  /** @param {Notice} notice */
  draw({ heading = "", text, isError, hasUnreadableEdits }) {
    setText(this.heading, heading);
    setText(this.text, text);
    this.actions.hidden = !hasUnreadableEdits;
    this.element.classList.toggle("ltr-error", isError);
    this.element.classList.toggle("ltr-silent", !text);
  }
}
