// @ts-check
/** The dialog that shows what a change of many captions would do, before it is done. */

import { createButton, createElement, trapFocus } from "../shared/dom.js";

import { thumbnailUrl } from "./host.js";
import { compareWords } from "./word_difference.js";

/** @typedef {import("./row.js").Row} Row */
/** @typedef {import("./words.js").Translate} Translate */
/** @typedef {{ row: Row, before: string, after: string }} Change */

const TAGS = /** @type {const} */ ({ same: "span", removed: "del", added: "ins" });

export class Preview {
  /** @type {Element | null} */
  #opener = null;

  /** @param {Translate} translate */
  constructor(translate) {
    this.translate = translate;
    this.element = createElement("div", {
      className: "ltr-preview",
      role: "dialog",
      ariaModal: "true",
      hidden: true,
    });
    this.element.addEventListener("keydown", (event) => trapFocus(event, this.element));
  }

  get isOpen() {
    return !this.element.hidden;
  }

  /**
   * @param {object} offer
   * @param {string} offer.title
   * @param {Change[]} offer.changes
   * @param {number} offer.numShown
   * @param {() => void} offer.onApply
   * @param {() => void} offer.onCancel
   */
  open({ title, changes, numShown, onApply, onCancel }) {
    const { translate } = this;
    this.#opener = document.activeElement;
    const apply = createButton(translate("apply", { count: changes.length }), onApply, {
      className: "ltw-primary",
      disabled: !changes.length,
    });
    const cancel = createButton(translate(changes.length ? "cancel" : "close"), onCancel);
    const counts = translate("wouldChange", { changed: changes.length, count: numShown });
    const heading = createElement(
      "div",
      { className: "ltr-heading" },
      createElement("strong", { textContent: title, title }),
      createElement("span", { textContent: counts }),
    );
    const head = createElement("div", { className: "ltr-bar" }, heading, cancel, apply);
    const list = createElement(
      "div",
      { className: "ltr-changes", role: "list", tabIndex: 0, ariaLabel: translate("changes") },
      ...changes.map(describeChange),
    );
    list.hidden = !changes.length;
    this.element.ariaLabel = `${title}. ${counts}`;
    this.element.replaceChildren(head, list);
    this.element.hidden = false;
    (changes.length ? apply : cancel).focus();
  }

  /** The focus goes back to where it was. */
  close() {
    if (!this.isOpen) return;
    this.element.hidden = true;
    this.element.replaceChildren();
    if (this.#opener instanceof HTMLElement) this.#opener.focus();
  }
}

/** @param {Change} change */
function describeChange({ row, before, after }) {
  const src = thumbnailUrl(row.image.thumbnail);
  const thumb = createElement("img", { loading: "lazy", alt: "", src });
  const name = createElement("div", { className: "ltr-name", textContent: row.name });
  const parts = compareWords(before, after);
  const words = parts.map(({ kind, text }) => createElement(TAGS[kind], { textContent: text }));
  const difference = createElement("div", { className: "ltr-difference" }, ...words);
  const body = createElement("div", { className: "ltr-body" }, name, difference);
  return createElement("div", { className: "ltr-change", role: "listitem" }, thumb, body);
}
