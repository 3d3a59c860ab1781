// @ts-check
/** The bar that changes all shown captions at once. trainers/captions/edits.py changes them. */

import { createButton, createElement, createToggle, getPressed } from "../shared/dom.js";

/** @typedef {import("./words.js").Translate} Translate */
/** @typedef {import("./words.js").WordKey} WordKey */
/**
 * @typedef {object} Operation
 * @property {string} value as the server knows it
 * @property {WordKey} label
 * @property {WordKey} hint
 * @property {WordKey} named how the preview and Undo name it
 * @property {boolean} isSearch
 */

/** @type {Operation[]} */
const OPERATIONS = [
  {
    value: "add in front",
    label: "addInFront",
    hint: "textToAdd",
    named: "namedAddInFront",
    isSearch: false,
  },
  {
    value: "add at the end",
    label: "addAtTheEnd",
    hint: "textToAdd",
    named: "namedAddAtTheEnd",
    isSearch: false,
  },
  { value: "remove", label: "remove", hint: "textToRemove", named: "namedRemove", isSearch: true },
  {
    value: "replace",
    label: "replace",
    hint: "textToReplace",
    named: "namedReplace",
    isSearch: true,
  },
];

export class BulkChangeBar {
  #canChange = false;

  /**
   * @param {Translate} translate
   * @param {() => void} onPreview
   * @param {() => void} onUndo
   */
  constructor(translate, onPreview, onUndo) {
    this.translate = translate;
    this.operation = createElement("select", { ariaLabel: translate("operation") });
    for (const { value, label } of OPERATIONS) {
      this.operation.append(createElement("option", { value, textContent: translate(label) }));
    }
    this.text = createElement("input", { type: "text", ariaLabel: translate("text") });
    this.replacement = createElement("input", {
      type: "text",
      placeholder: translate("replacementHint"),
      ariaLabel: translate("replacement"),
    });
    this.matchCase = createToggle("Aa", translate("matchCase"), false);
    this.wholeWords = createToggle("ab|", translate("wholeWords"), true);
    this.preview = createButton(translate("preview"), onPreview, {
      title: translate("previewHint"),
    });
    this.undo = createButton(translate("undo"), onUndo, { hidden: true });
    this.element = createElement(
      "div",
      { className: "ltr-bar", role: "group", ariaLabel: translate("bulkChange") },
      this.operation,
      this.text,
      this.replacement,
      this.matchCase,
      this.wholeWords,
      this.preview,
      this.undo,
    );
    this.#listen();
    this.draw();
  }

  /** What the server needs besides the captions. */
  get request() {
    return {
      operation: this.operation.value,
      text: this.text.value,
      replacement: this.replacement.value,
      match_case: getPressed(this.matchCase),
      whole_words: getPressed(this.wholeWords),
    };
  }

  /** Such as: Replace “cat” with “dog”. */
  get changeName() {
    const values = { text: this.text.value.trim(), replacement: this.replacement.value.trim() };
    return this.translate(this.#chosen.named, values);
  }

  /** @param {boolean} canChange */
  setCanChange(canChange) {
    this.#canChange = canChange;
    this.draw();
  }

  /** @param {string | undefined} change the one that Undo would take back */
  setUndo(change) {
    this.undo.hidden = change === undefined;
    this.undo.title = change === undefined ? "" : this.translate("undoHint", { change });
  }

  draw() {
    const { value, hint, isSearch } = this.#chosen;
    this.replacement.hidden = value !== "replace";
    this.matchCase.hidden = this.wholeWords.hidden = !isSearch;
    this.text.placeholder = this.translate(hint);
    this.preview.disabled = !this.#canChange || !this.text.value.trim();
  }

  get #chosen() {
    return OPERATIONS[this.operation.selectedIndex];
  }

  #listen() {
    this.operation.addEventListener("change", () => this.draw());
    this.text.addEventListener("input", () => this.draw());
    for (const field of [this.text, this.replacement]) {
      field.addEventListener("keydown", ({ key, isComposing }) => {
        if (key === "Enter" && !isComposing) this.preview.click();
      });
    }
  }
}
