// @ts-check
/** The keys of the widget: search, the next caption, undo, and out of the search or the preview. */

import { focusAndShow } from "../shared/dom.js";

/** @typedef {import("./row.js").Row} Row */
/**
 * @typedef {object} Review the widget, as far as keys reach
 * @property {Row[]} rows
 * @property {{ text: HTMLInputElement }} search
 * @property {{ isOpen: boolean }} preview
 * @property {boolean} canUndo
 * @property {() => void} applyFilter
 * @property {() => void} closePreview
 * @property {() => void} undo
 */

/**
 * A key that means something here goes no further: ComfyUI has shortcuts too, such as Ctrl+Enter
 * for Run. From the open preview none does, because Delete would remove the node.
 * @param {HTMLElement} root
 * @param {Review} review
 */
export function addShortcuts(root, review) {
  const shortcuts = new Shortcuts(review);
  root.addEventListener("keydown", (event) => {
    if (event.isComposing) return; // the key belongs to an input method, for example for Japanese
    const { isOpen } = review.preview;
    const isOurs = isOpen ? shortcuts.handleInPreview(event) : shortcuts.handle(event);
    if (isOurs) event.preventDefault();
    if (isOurs || isOpen) event.stopPropagation();
  });
}

/** Each method says whether the key means something here. */
class Shortcuts {
  /** @type {Row | undefined} the one to go back to from the search */
  #lastRow;

  /** @param {Review} review */
  constructor(review) {
    this.review = review;
  }

  /** @param {KeyboardEvent} event */
  handle(event) {
    const target = /** @type {Element} */ (event.target);
    const key = nameKey(event);
    if (key === "Ctrl+f") return this.#focusSearch();
    if (key === "Ctrl+Enter") return this.#focusNext(target);
    if (key === "Ctrl+z") return this.#undo(target);
    return key === "Escape" && target === this.review.search.text && this.#leaveSearch();
  }

  /** @param {KeyboardEvent} event */
  handleInPreview(event) {
    const key = nameKey(event);
    if (key === "Escape") this.review.closePreview();
    return ["Escape", "Ctrl+f", "Ctrl+Enter", "Ctrl+z"].includes(key);
  }

  #focusSearch() {
    const { rows, search } = this.review;
    this.#lastRow = rows.find((row) => row.text === document.activeElement) ?? this.#lastRow;
    search.text.focus();
    search.text.select();
    return true;
  }

  /**
   * To the next caption; from the bars to the first one.
   * @param {Element} target
   */
  #focusNext(target) {
    const shown = this.review.rows.filter((row) => row.isShown);
    const index = shown.findIndex((row) => row.card.contains(target));
    focusAndShow(shown[index + 1]?.text);
    return true;
  }

  /**
   * In a text, the browser's undo is meant.
   * @param {Element} target
   */
  #undo(target) {
    if (["TEXTAREA", "INPUT"].includes(target.tagName) || !this.review.canUndo) return false;
    this.review.undo();
    return true;
  }

  #leaveSearch() {
    const { rows, search } = this.review;
    search.text.value = "";
    this.review.applyFilter();
    focusAndShow((this.#lastRow?.card.isConnected ? this.#lastRow : rows[0])?.text);
    return true;
  }
}

/** @param {KeyboardEvent} event */
function nameKey({ key, ctrlKey, metaKey }) {
  return ctrlKey || metaKey ? `Ctrl+${key}` : key;
}
