// @ts-check
/** The buttons below a run: Finish now, Pause, Cancel, Resume, and the box for notifications. */

import { createButton, createElement, setText } from "../shared/dom.js";

import { canResume, isRunning } from "./run.js";

/** @typedef {import("./run.js").Run} Run */
/** @typedef {import("./run.js").RunSummary} RunSummary */
/** @typedef {import("./words.js").Translate} Translate */
/**
 * @typedef {object} Deeds what the buttons do
 * @property {(summary: RunSummary) => void} finish
 * @property {(summary: RunSummary) => void} pause
 * @property {(summary: RunSummary) => void} cancel
 * @property {() => void} resume
 * @property {(isWanted: boolean) => void} notify
 */

export class Actions {
  /** @type {RunSummary | undefined} */
  #summary;
  #cancelled = ""; // prompt id of the run that was asked to stop

  /**
   * @param {Translate} translate
   * @param {Deeds} deeds
   */
  constructor(translate, deeds) {
    this.translate = translate;
    this.deeds = deeds;
    const create = (/** @type {"finish" | "pause"} */ deed, label = "", title = "") =>
      createButton(label, () => this.#summary && deeds[deed](this.#summary), { title });
    this.finish = create("finish", translate("finishNow"), translate("finishNowHint"));
    this.pause = create("pause", translate("pause"), translate("pauseHint"));
    this.cancel = createButton(translate("cancel"), () => this.#cancel(), {
      title: translate("cancelHint"),
    });
    this.resume = createButton(translate("resume"), deeds.resume, {
      className: "ltw-primary",
      title: translate("resumeHint"),
    });
    this.asked = createElement("span", { className: "ltp-asked", role: "status" });
    this.box = createElement("input", { type: "checkbox" });
    this.box.addEventListener("change", () => deeds.notify(this.box.checked));
    this.notify = createElement(
      "label",
      { className: "ltp-notify" },
      this.box,
      translate("notify"),
    );
    this.notify.title = translate("notifyHint");
    const buttons = [this.finish, this.pause, this.cancel, this.resume];
    this.element = createElement(
      "div",
      { className: "ltp-actions" },
      ...buttons,
      this.asked,
      this.notify,
    );
  }

  /** @param {Run} run */
  draw({ summary, requests }) {
    this.#summary = summary;
    const isGoingOn = isRunning(summary);
    const isCancelled = summary.prompt_id !== "" && this.#cancelled === summary.prompt_id;
    const isAsked = isCancelled || requests.length > 0;
    this.finish.hidden = this.pause.hidden = !isGoingOn;
    this.cancel.hidden = !isGoingOn || !summary.prompt_id;
    this.resume.hidden = !canResume(summary);
    this.finish.disabled = this.pause.disabled = isAsked || !summary.can_ask;
    this.cancel.disabled = isCancelled;
    setText(this.asked, isGoingOn ? this.#describe(isCancelled, requests) : "");
  }

  /** @param {{ isOffered: boolean, isWanted: boolean, hint: string }} notification */
  drawNotify({ isOffered, isWanted, hint }) {
    this.notify.hidden = !isOffered;
    this.box.checked = isWanted;
    this.notify.title = hint || this.translate("notifyHint");
    if (hint) setText(this.asked, hint);
  }

  #cancel() {
    if (!this.#summary) return;
    this.#cancelled = this.#summary.prompt_id;
    this.cancel.disabled = true;
    setText(this.asked, this.translate("cancelAsked"));
    this.deeds.cancel(this.#summary);
  }

  /**
   * @param {boolean} isCancelled
   * @param {Run["requests"]} requests
   */
  #describe(isCancelled, requests) {
    if (isCancelled) return this.translate("cancelAsked");
    if (requests.includes("pause")) return this.translate("pauseAsked");
    return requests.includes("finish") ? this.translate("finishAsked") : "";
  }
}
