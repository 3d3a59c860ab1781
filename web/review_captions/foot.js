// @ts-check
/** The bar below the captions: their number, edits of other images, and the end of the review. */

import { createButton, createElement, setText } from "../shared/dom.js";

/** @typedef {import("./row.js").Row} Row */
/** @typedef {import("./words.js").Translate} Translate */

export class Foot {
  /**
   * @param {Translate} translate
   * @param {() => void} onForget
   * @param {() => void} onConfirm
   */
  constructor(translate, onForget, onConfirm) {
    this.translate = translate;
    this.status = createElement("span", {
      className: "ltr-status",
      role: "status",
      ariaLive: "polite",
    });
    this.forget = createButton("", onForget, { title: translate("forgetUnknownHint") });
    this.wait = createElement("span");
    this.confirm = createButton(translate("useAndRun"), onConfirm, { className: "ltw-primary" });
    const parts = [this.status, this.forget, this.wait, this.confirm];
    this.element = createElement("div", { className: "ltr-bar ltr-bottom" }, ...parts);
  }

  /**
   * @param {Row[]} rows
   * @param {number} numUnknown edits of images that are not in the dataset
   */
  draw(rows, numUnknown) {
    const { translate } = this;
    const numEdited = rows.filter((row) => row.isEdited).length;
    const numShown = rows.filter((row) => row.isShown).length;
    const parts = [
      translate("numImages", { count: rows.length }),
      numEdited > 0 && translate("numEdited", { count: numEdited }),
      numShown < rows.length && translate("numShown", { count: numShown }),
    ];
    setText(this.status, rows.length ? parts.filter(Boolean).join(" · ") : "");
    setText(this.forget, translate("forgetUnknown", { count: numUnknown }));
    this.forget.hidden = !numUnknown;
  }

  /**
   * @param {object} review
   * @param {boolean} review.waits the node stops the run until the captions are reviewed
   * @param {boolean} review.isReviewed
   * @param {boolean} review.hasRows
   */
  drawReview({ waits, isReviewed, hasRows }) {
    this.confirm.hidden = !waits || isReviewed;
    this.confirm.disabled = !hasRows;
    setText(this.wait, this.translate(isReviewed ? "reviewed" : "waits"));
    this.wait.className = isReviewed ? "ltr-good" : "ltr-warn";
    this.wait.hidden = !waits || !hasRows;
  }
}
