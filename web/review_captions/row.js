// @ts-check
/** One image: the caption that came in, the user's edit of it, and the card that shows both. */

import { createButton, createElement, setText } from "../shared/dom.js";

import { isEmpty, lacksTriggerWord } from "./filters.js";
import { thumbnailUrl } from "./host.js";

/** @typedef {import("./edits.js").Edit} Edit */
/** @typedef {import("./filters.js").CaptionFacts} CaptionFacts */
/** @typedef {import("./words.js").Translate} Translate */
/**
 * @typedef {object} ReviewedImage as nodes/host/caption_review.py describes it
 * @property {string} sha256
 * @property {string} name
 * @property {string} caption the one that came in
 * @property {string} trigger_word
 * @property {number} width
 * @property {number} height
 * @property {string} thumbnail
 * @property {boolean} isCopy another image of the dataset has the same content
 */
/**
 * @typedef {object} RowActions
 * @property {(row: Row, caption: string) => void} edit
 * @property {(row: Row) => void} revert
 * @property {(row: Row) => void} keepEdit
 * @property {() => void} leave
 */

export const TOKENS_PER_CHUNK = 75;

export class Row {
  /** @type {Edit | undefined} */
  edit;
  /** @type {CaptionFacts | undefined} */
  facts;

  /**
   * @param {ReviewedImage} image
   * @param {RowActions} actions
   * @param {Translate} translate
   */
  constructor(image, actions, translate) {
    this.image = image;
    this.actions = actions;
    this.translate = translate;
    this.text = this.#createText();
    this.marks = createElement("span", { className: "ltr-marks" });
    this.tokens = createElement("span", {
      className: "ltr-tokens",
      title: translate("tokensHint", { max: TOKENS_PER_CHUNK }),
    });
    this.revert = createButton(translate("revert"), () => actions.revert(this), {
      title: translate("revertHint"),
      hidden: true,
    });
    this.conflict = createElement("div", {
      className: "ltr-conflict",
      role: "group",
      hidden: true,
    });
    this.card = this.#createCard();
  }

  get name() {
    return this.image.name;
  }

  get incoming() {
    return this.image.caption;
  }

  get caption() {
    return this.edit?.caption ?? this.incoming;
  }

  get isEdited() {
    return this.edit !== undefined;
  }

  get isOutdated() {
    return (this.edit?.incoming ?? this.incoming) !== this.incoming;
  }

  get isShown() {
    return !this.card.hidden;
  }

  /** Shows this edit, if any, and what is known of the caption. */
  draw() {
    if (this.text.value !== this.caption) this.text.value = this.caption;
    this.card.classList.toggle("ltr-edited", this.isEdited);
    this.card.classList.toggle("ltr-empty", isEmpty(this));
    this.revert.hidden = !this.isEdited;
    this.#drawMarks();
    this.#drawTokens();
    this.#drawConflict();
  }

  /** @param {boolean} isReadOnly */
  setReadOnly(isReadOnly) {
    this.text.readOnly = isReadOnly;
  }

  #createText() {
    const text = createElement("textarea", {
      rows: 4,
      spellcheck: false,
      placeholder: this.translate("noCaption"),
      ariaLabel: this.translate("captionOf", { name: this.name }),
    });
    text.addEventListener("input", () => this.actions.edit(this, text.value));
    text.addEventListener("blur", () => this.actions.leave());
    return text;
  }

  #createCard() {
    const { name, thumbnail, width, height } = this.image;
    const thumb = createElement("img", {
      loading: "lazy",
      decoding: "async",
      alt: "",
      src: thumbnailUrl(thumbnail),
    });
    const title = createElement("div", {
      className: "ltr-name",
      textContent: name,
      title: this.translate("imageSize", { name, width: `${width}`, height: `${height}` }),
    });
    const foot = createElement(
      "div",
      { className: "ltr-foot" },
      this.marks,
      this.revert,
      this.tokens,
    );
    const body = createElement(
      "div",
      { className: "ltr-body" },
      title,
      this.conflict,
      this.text,
      foot,
    );
    this.text.ariaDescribedByElements = [this.marks, this.tokens];
    return createElement(
      "div",
      { className: "ltr-card", role: "group", ariaLabel: name },
      thumb,
      body,
    );
  }

  #drawMarks() {
    const { translate } = this;
    const marks = [];
    if (isEmpty(this))
      marks.push(createMark("ltr-bad", translate("empty"), translate("emptyHint")));
    if (lacksTriggerWord(this)) {
      const hint = translate("noTriggerWordHint", { word: this.image.trigger_word });
      marks.push(createMark("ltr-warn", translate("noTriggerWord"), hint));
    }
    if (this.isEdited) {
      const hint = translate("editedHint", { caption: this.incoming || translate("emptyCaption") });
      marks.push(createMark("ltr-note", translate("edited"), hint));
    }
    this.marks.replaceChildren(...marks);
  }

  #drawTokens() {
    const { num_tokens, num_chunks = 1 } = this.facts ?? {};
    const isCounted = num_tokens !== undefined;
    setText(this.tokens, isCounted ? `${num_tokens} / ${TOKENS_PER_CHUNK * num_chunks}` : "…");
    this.tokens.classList.toggle("ltr-warn", num_chunks > 1);
  }

  #drawConflict() {
    this.conflict.hidden = !this.isOutdated;
    if (!this.isOutdated) return this.conflict.replaceChildren();
    const { translate, actions } = this;
    this.conflict.ariaLabel = translate("outdated");
    const incoming = this.incoming || translate("emptyCaption");
    this.conflict.replaceChildren(
      createElement("div", { textContent: translate("outdated") }),
      createElement("div", { className: "ltr-incoming", textContent: incoming }),
      createElement(
        "div",
        {},
        createButton(translate("keepEdit"), () => actions.keepEdit(this)),
        createButton(translate("takeIncoming"), () => actions.revert(this)),
      ),
    );
  }
}

/**
 * @param {string} className
 * @param {string} textContent
 * @param {string} title
 */
function createMark(className, textContent, title) {
  return createElement("span", { className, textContent, title });
}
