// @ts-check
/** The widget of one Review Captions node: its rows, the bars around them, what the user does. */

import { createElement } from "../shared/dom.js";
import * as host from "../shared/host.js";

import { BulkChangeBar } from "./bulk_change.js";
import { CaptionFacts } from "./caption_facts.js";
import { Edits } from "./edits.js";
import { Foot } from "./foot.js";
import { findWidget } from "./host.js";
import { Message } from "./message.js";
import { Preview } from "./preview.js";
import { Row } from "./row.js";
import { SearchBar } from "./search_bar.js";
import { addShortcuts } from "./shortcuts.js";

/** @typedef {import("./edits.js").UndoStep} UndoStep */
/** @typedef {import("./preview.js").Change} Change */
/** @typedef {import("./row.js").ReviewedImage} ReviewedImage */
/** @typedef {import("./words.js").Translate} Translate */

// The workflow saves this property; the server finds the last run's captions by it.
const KEY_PROPERTY = "caption_review";
const REMEMBER_DELAY = 400; // milliseconds after the last key

export class CaptionReview {
  /** @type {Row[]} */
  rows = [];
  /** Key of the captions shown; empty while there are none. */
  key = "";
  failure = "";
  isRemoved = false;
  /** @type {string[]} keys of edits that belong to no image of the dataset */
  #unknown = [];
  /** @type {{ name: string, step: UndoStep }[]} */
  #undoSteps = [];
  #numRequests = 0;
  #rememberTimer = 0;

  /**
   * @param {ComfyNode} node
   * @param {Translate} translate
   */
  constructor(node, translate) {
    this.node = node;
    this.translate = translate;
    this.edits = new Edits(findWidget(node, "edits"));
    this.facts = new CaptionFacts((subjects) => this.#inspect(subjects));
    this.search = new SearchBar(translate, () => this.applyFilter());
    this.message = new Message(
      translate,
      () => String(this.edits.widget.value),
      () => this.#discardEdits(),
    );
    this.bulk = new BulkChangeBar(
      translate,
      () => this.#previewChange(),
      () => this.undo(),
    );
    this.preview = new Preview(translate);
    this.foot = new Foot(
      translate,
      () => this.#forgetUnknown(),
      () => this.#confirmReview(),
    );
    this.list = createElement("div", { className: "ltr-list" });
    this.element = this.#createElement();
    this.#draw();
  }

  remove() {
    this.isRemoved = true;
    clearTimeout(this.#rememberTimer);
    this.facts.stop();
    this.rows = [];
    this.element.replaceChildren();
  }

  /** After the node has come from a saved workflow or a reloaded page. */
  restore() {
    const key = this.node.properties?.[KEY_PROPERTY];
    if (key) this.#load(String(key));
    else this.#draw();
  }

  /**
   * After the node has run.
   * @param {{ key: string, waits: boolean } | undefined} result
   */
  show(result) {
    if (!result) return;
    this.node.properties[KEY_PROPERTY] = result.key;
    const reviewed = findWidget(this.node, "reviewed");
    const isAnotherReview = Boolean(reviewed.value) && reviewed.value !== result.key;
    if (isAnotherReview) reviewed.value = "";
    this.#remember();
    this.#load(result.key);
    if (result.waits) this.#askForReview();
  }

  get canUndo() {
    return this.#undoSteps.length > 0;
  }

  drawReview() {
    const waits = findWidget(this.node, "wait_for_review").value === true;
    const hasRows = this.rows.length > 0;
    const isReviewed = hasRows && findWidget(this.node, "reviewed").value === this.key;
    this.foot.drawReview({ waits, isReviewed, hasRows });
  }

  // ---- elements ----

  #createElement() {
    const parts = [this.search.element, this.bulk.element, this.message.element, this.list];
    const root = createElement(
      "div",
      { className: "ltr ltw", tabIndex: -1 },
      ...parts,
      this.preview.element,
      this.foot.element,
    );
    root.dataset.captureWheel = "true";
    addShortcuts(root, this);
    root.addEventListener("wheel", host.shareWheel, { passive: false });
    root.addEventListener("pointerdown", host.shareMiddleButton);
    return root;
  }

  // ---- drawing ----

  #draw() {
    const images = this.rows.map((row) => row.image);
    const isUnreadable = this.edits.problem !== undefined;
    this.#unknown = images.length ? this.edits.unknownKeys(images) : [];
    for (const row of this.rows) {
      this.#drawRow(row);
      row.setReadOnly(isUnreadable);
    }
    this.bulk.setCanChange(images.length > 0 && !isUnreadable);
    this.bulk.setUndo(this.#undoSteps.at(-1)?.name);
    this.element.classList.toggle("ltr-blank", !images.length);
    this.search.element.hidden = this.bulk.element.hidden = !images.length;
    this.drawReview();
    this.#drawSummary();
  }

  /** @param {Row} row */
  #drawRow(row) {
    row.edit = this.edits.find(row.image);
    row.facts = this.facts.find(row) ?? row.facts;
    row.draw();
  }

  /** What the bars say about all rows. */
  #drawSummary() {
    this.search.draw(this.rows);
    this.foot.draw(this.rows, this.#unknown.length);
    this.#drawMessage();
  }

  #drawMessage() {
    const { translate } = this;
    const { problem } = this.edits;
    if (problem) {
      const heading = problem.entry
        ? translate("unreadableEntry", { entry: problem.entry })
        : translate("unreadable", { reason: problem.message });
      const text = translate("unreadableAdvice");
      return this.message.draw({ heading, text, isError: true, hasUnreadableEdits: true });
    }
    const notice = this.failure ? { text: this.failure } : this.#findHint();
    this.message.draw({ ...notice, isError: this.failure !== "", hasUnreadableEdits: false });
  }

  /** What to do where there is nothing to see yet. */
  #findHint() {
    const { translate } = this;
    if (this.rows.length) {
      return { text: this.rows.some((row) => row.isShown) ? "" : translate("noMatch") };
    }
    const count = this.edits.count;
    const kept = count ? ` ${translate("keptEdits", { count })}` : "";
    return { heading: translate("noImagesYet"), text: translate("connectAndRun") + kept };
  }

  applyFilter() {
    for (const row of this.rows) row.card.hidden = !this.search.matches(row);
    this.#drawSummary();
  }

  // ---- the server's answers ----

  /** @param {string} key */
  async #load(key) {
    const request = ++this.#numRequests;
    let review;
    try {
      review = await host.ask(`reviews/${encodeURIComponent(key)}`);
    } catch {
      // Another machine, or an emptied cache: the next run brings them.
      review = { key: "", pictures: [] };
    }
    if (!this.isRemoved && request === this.#numRequests) this.#take(review.key, review.pictures);
  }

  /**
   * @param {string} key
   * @param {ReviewedImage[]} images
   */
  #take(key, images) {
    if (key && key === this.key) return this.#draw();
    this.key = key;
    this.closePreview();
    markCopies(images);
    const actions = {
      edit: this.#edit.bind(this),
      revert: this.#revert.bind(this),
      keepEdit: this.#keepEdit.bind(this),
      leave: this.#remember.bind(this),
    };
    this.rows = images.map((image) => new Row(image, actions, this.translate));
    this.list.replaceChildren(...this.rows.map((row) => row.card));
    this.#draw();
    this.applyFilter();
  }

  /** @param {[caption: string, triggerWord: string][]} subjects */
  async #inspect(subjects) {
    const request = {
      captions: subjects.map(([caption]) => caption),
      trigger_words: subjects.map(([, word]) => word),
    };
    const facts = await this.#tryToAsk("captions/inspect", request);
    if (!facts || this.isRemoved) return;
    this.facts.add(subjects, facts);
    const inspected = new Set(subjects.map(([caption]) => caption));
    for (const row of this.rows) if (inspected.has(row.caption)) this.#drawRow(row);
    this.#drawSummary();
  }

  /**
   * The answer, or undefined after a failure, which the message then names.
   * @param {string} path
   * @param {object} body
   */
  async #tryToAsk(path, body) {
    try {
      const answer = await host.ask(path, body);
      this.failure = "";
      return answer;
    } catch (error) {
      this.failure = this.translate("serverFailed", {
        reason: /** @type {Error} */ (error).message,
      });
      if (!this.isRemoved) this.#drawMessage();
    }
  }

  /** The nodes after this one did not run, and nothing else would say why. */
  #askForReview() {
    const button = this.translate("useAndRun");
    const hint = this.translate("reviewWantedHint", { node: this.node.title, button });
    host.showToast("info", this.translate("reviewWanted"), hint);
  }

  // ---- what the user does ----

  /**
   * @param {Row} row
   * @param {string} caption
   */
  #edit(row, caption) {
    this.edits.set(row.image, caption);
    this.#drawRow(row);
    this.#drawSummary();
    this.#rememberSoon();
  }

  /** @param {Row} row */
  #revert(row) {
    this.#edit(row, row.incoming);
    this.#remember();
    row.text.focus();
  }

  /** @param {Row} row */
  #keepEdit(row) {
    this.#edit(row, row.caption);
    this.#remember();
    row.text.focus();
  }

  #forgetUnknown() {
    this.edits.forget(this.#unknown);
    this.#finish();
  }

  #discardEdits() {
    this.edits.discard();
    this.#finish();
  }

  #confirmReview() {
    findWidget(this.node, "reviewed").value = this.key;
    this.#finish();
    host.queuePrompt();
  }

  /** After a button that may now be hidden, and would lose the focus to the page. */
  #finish() {
    this.#draw();
    this.#remember();
    this.element.focus();
  }

  async #previewChange() {
    const rows = this.rows.filter((row) => row.isShown);
    if (!rows.length || this.preview.isOpen) return;
    const name = this.bulk.changeName;
    const before = rows.map((row) => row.caption);
    const after = await this.#tryToAsk("captions/change", {
      captions: before,
      ...this.bulk.request,
    });
    if (!after || this.isRemoved) return;
    this.#drawMessage();
    const changes = rows
      .map((row, index) => ({ row, before: before[index], after: after[index] }))
      .filter((change) => change.before !== change.after && change.before === change.row.caption);
    this.#openPreview(name, changes, rows.length);
  }

  /**
   * @param {string} title
   * @param {Change[]} changes
   * @param {number} numShown
   */
  #openPreview(title, changes, numShown) {
    const onApply = () => this.#applyChanges(title, changes);
    const onCancel = () => this.closePreview();
    this.preview.open({ title, changes, numShown, onApply, onCancel });
    this.#setBehindPreview(true);
  }

  closePreview() {
    this.#setBehindPreview(false);
    this.preview.close();
  }

  /** @param {boolean} isBehind */
  #setBehindPreview(isBehind) {
    this.list.hidden = isBehind;
    for (const bar of [this.search.element, this.bulk.element, this.foot.element])
      bar.inert = isBehind;
  }

  /**
   * @param {string} name
   * @param {Change[]} changes
   */
  #applyChanges(name, changes) {
    const step = this.edits.change(
      changes.map(({ row, after }) => ({ image: row.image, caption: after })),
    );
    this.#undoSteps.push({ name, step });
    this.closePreview();
    this.#draw();
    this.#remember();
    this.bulk.text.focus();
  }

  /** Takes back the last change of many captions, if there was one. */
  undo() {
    const last = this.#undoSteps.pop();
    if (!last) return;
    this.edits.undo(last.step);
    this.#draw();
    this.#remember();
    this.bulk.text.focus();
  }

  #remember() {
    clearTimeout(this.#rememberTimer);
    host.rememberChange();
  }

  #rememberSoon() {
    clearTimeout(this.#rememberTimer);
    this.#rememberTimer = setTimeout(() => this.#remember(), REMEMBER_DELAY);
  }
}

/**
 * An image whose content occurs more than once keeps its edits under its name.
 * @param {ReviewedImage[]} images
 */
function markCopies(images) {
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const { sha256 } of images) counts.set(sha256, (counts.get(sha256) ?? 0) + 1);
  for (const image of images) image.isCopy = (counts.get(image.sha256) ?? 0) > 1;
}
