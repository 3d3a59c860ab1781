// @ts-check
/** The panel of one trainer node: follows its run, and shows it. */

import { createElement, setText } from "../shared/dom.js";
import { queuePrompt, rememberChange, shareMiddleButton, shareWheel } from "../shared/host.js";

import { Actions } from "./actions.js";
import { Chart } from "./chart.js";
import { prepareCurves } from "./curves.js";
import { RunFollower } from "./follower.js";
import { Header } from "./header.js";
import * as host from "./host.js";
import { LoraFiles } from "./lora_files.js";
import { chooseLora } from "./lora_loader.js";
import { Numbers } from "./numbers.js";
import { isRunning } from "./run.js";
import { RunChoice } from "./run_choice.js";
import { Samples } from "./samples.js";

/** @typedef {import("./announcer.js").Announcer} Announcer */
/** @typedef {import("./formats.js").Formats} Formats */
/** @typedef {import("./run.js").LoraFile} LoraFile */
/** @typedef {import("./run.js").Run} Run */
/** @typedef {import("./run.js").RunSummary} RunSummary */
/** @typedef {import("./words.js").Translate} Translate */

// The workflow saves these properties, but neither the panel nor what it shows.
const OPEN_PROPERTY = "training_panel_open";
const COMPARED_PROPERTY = "training_panel_compared_run";
const START_DELAY = 100; // milliseconds until a new node is in its graph

export const CLOSED_HEIGHT = 40;
export const OPEN_HEIGHT = 580;

export class TrainingPanel {
  /** Whether the run was seen going on: then the panel opens by itself. */
  #wasRunning = false;
  #timer = 0;
  #requestFailure = "";
  /** @type {ComfyNode[]} before a click on the panel, which selects its own node */
  #selectedNodes = [];

  /**
   * @param {ComfyNode} node
   * @param {object} given
   * @param {Translate} given.translate
   * @param {Formats} given.formats
   * @param {Announcer} given.announcer
   * @param {() => void} given.onResize when the panel has opened or closed
   */
  constructor(node, { translate, formats, announcer, onResize }) {
    this.node = node;
    this.translate = translate;
    this.announcer = announcer;
    this.onResize = onResize;
    this.header = new Header(translate, formats, () => this.#toggle());
    this.numbers = new Numbers(translate, formats);
    this.chart = new Chart(translate, formats);
    this.samples = new Samples(translate, host.getViewUrl);
    this.loras = new LoraFiles(translate, formats, (lora) => this.#useLora(lora));
    this.choice = new RunChoice(translate, formats, {
      choose: (name) => this.#choose(name),
      compare: (name) => this.#compare(name),
      list: host.listRuns,
    });
    this.actions = new Actions(translate, this.#createDeeds());
    this.message = createElement("div", { className: "ltp-message", role: "status", hidden: true });
    this.settings = createElement("pre");
    const heading = createElement("summary", { textContent: translate("settings") });
    this.settingsBox = createElement("details", {}, heading, this.settings);
    this.choice.element.addEventListener("focusin", () => this.#refreshChoice());
    const parts = [this.numbers, this.chart, this.samples, this.loras, this.choice];
    const elements = parts.map((part) => part.element);
    this.body = createElement("div", { className: "ltp-body" }, ...elements, this.settingsBox);
    this.element = this.#createElement();
    this.follower = this.#createFollower();
    this.stopWatching = host.watchServer(node, (isBusy) => {
      this.follower.isBusy = isBusy;
      this.follower.wake();
    });
    this.#drawNotify("");
    this.#draw();
    this.start();
  }

  /** Also after the node has come from a saved workflow. */
  start() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.follower.comparedName = String(this.node.properties?.[COMPARED_PROPERTY] ?? "");
      this.follower.wake();
    }, START_DELAY);
  }

  remove() {
    clearTimeout(this.#timer);
    this.stopWatching();
    this.follower.stop();
    this.chart.remove();
  }

  get isOpen() {
    const chosen = this.node.properties?.[OPEN_PROPERTY];
    return this.follower.run !== undefined && Boolean(chosen ?? this.#wasRunning);
  }

  get minHeight() {
    return this.isOpen ? OPEN_HEIGHT : CLOSED_HEIGHT;
  }

  // ---- elements ----

  #createElement() {
    const root = createElement(
      "div",
      { className: "ltp ltw", role: "group", ariaLabel: this.translate("panel") },
      this.header.element,
      this.message,
      this.body,
      this.actions.element,
    );
    root.dataset.captureWheel = "true";
    root.addEventListener("wheel", (event) => this.isOpen && shareWheel(event), { passive: false });
    root.addEventListener("pointerdown", shareMiddleButton);
    root.addEventListener("keydown", keepDeleteHere);
    const remember = () => (this.#selectedNodes = host.listSelectedNodes());
    for (const event of ["pointerdown", "keydown"]) root.addEventListener(event, remember, true);
    return root;
  }

  #createFollower() {
    const world = {
      listOwn: () => host.listOwnRuns(this.node),
      read: host.readRun,
      setTimer: window.setTimeout.bind(window),
      clearTimer: window.clearTimeout.bind(window),
    };
    return new RunFollower(world, (previous) => this.#take(previous));
  }

  #createDeeds() {
    return {
      finish: (/** @type {RunSummary} */ { name }) =>
        this.#request(() => host.askRun(name, "finish")),
      pause: (/** @type {RunSummary} */ { name }) =>
        this.#request(() => host.askRun(name, "pause")),
      cancel: (/** @type {RunSummary} */ run) => this.#request(() => host.interrupt(run.prompt_id)),
      resume: queuePrompt,
      notify: async (/** @type {boolean} */ areWanted) => {
        const isRefused = await host.chooseNotifications(areWanted);
        this.#drawNotify(isRefused ? this.translate("notifyDenied") : "");
      },
    };
  }

  // ---- what the server says ----

  /** @param {Run | undefined} previous */
  #take(previous) {
    const { run } = this.follower;
    const wasOpen = this.element.classList.contains("ltp-open");
    this.#wasRunning ||= isRunning(run?.summary);
    this.announcer.notice(previous, run);
    this.#draw();
    if (wasOpen !== this.isOpen) this.#resize();
    else if (isRunning(previous?.summary) && !isRunning(run?.summary)) this.#refreshChoice();
  }

  #resize() {
    this.onResize();
    if (this.isOpen) this.#refreshChoice();
  }

  /** The list of all runs, which only an open panel shows. */
  #refreshChoice() {
    this.choice.refresh().catch((error) => this.#fail(error));
  }

  // ---- drawing ----

  #draw() {
    const { run, compared } = this.follower;
    const { isOpen } = this;
    this.header.draw(run, isOpen);
    this.element.classList.toggle("ltp-open", isOpen);
    this.body.hidden = this.actions.element.hidden = !isOpen;
    this.#drawMessage(run);
    if (!run || !isOpen) return;
    this.numbers.draw(run);
    this.chart.draw(prepareCurves(run, compared), compared?.summary.name ?? "");
    this.choice.draw(run.summary, this.follower.chosen, this.follower.comparedName);
    this.samples.draw(run.samples);
    this.loras.draw(run);
    this.actions.draw(run);
    setText(this.settings, run.settings);
    this.settingsBox.hidden = !run.settings;
  }

  /** @param {Run | undefined} run */
  #drawMessage(run) {
    const failure = this.#requestFailure || this.#describeFailure();
    const said = run && this.isOpen ? [run.message, ...run.notices, ...run.notes] : [];
    setText(this.message, [failure, ...said].filter(Boolean).join("\n"));
    this.message.hidden = !this.message.textContent || !run;
    const isError = failure !== "" || run?.summary.status === "failed";
    this.message.classList.toggle("ltp-error", isError);
  }

  #describeFailure() {
    const { failure } = this.follower;
    return failure && this.translate("noAnswer", { reason: failure });
  }

  /** @param {string} hint */
  #drawNotify(hint) {
    const isOffered = host.offersNotifications();
    this.actions.drawNotify({ isOffered, isWanted: host.wantsNotifications(), hint });
  }

  // ---- what the user does ----

  /**
   * Copies the LoRA to where loaders find it, unless it is there, and chooses it in one.
   * @param {LoraFile} lora
   */
  async #useLora(lora) {
    const run = this.follower.run?.summary.name ?? "";
    const name = lora.lora_name ?? (await host.listLora(run, lora.path));
    return chooseLora(this.node, name, this.#selectedNodes);
  }

  #toggle() {
    this.node.properties[OPEN_PROPERTY] = !this.isOpen;
    this.#draw();
    this.#resize();
    rememberChange();
  }

  /** @param {string} name */
  #choose(name) {
    this.follower.chosen = name;
    this.follower.wake();
  }

  /** @param {string} name */
  #compare(name) {
    this.follower.comparedName = name;
    if (name) this.node.properties[COMPARED_PROPERTY] = name;
    else delete this.node.properties[COMPARED_PROPERTY];
    rememberChange();
    this.follower.wake();
  }

  /** @param {() => Promise<unknown>} request */
  async #request(request) {
    this.#requestFailure = "";
    try {
      await request();
    } catch (error) {
      this.#fail(error);
    }
    this.follower.wake();
  }

  /** @param {unknown} error */
  #fail(error) {
    this.#requestFailure = /** @type {Error} */ (error).message;
    this.#draw();
  }
}

/**
 * ComfyUI deletes the selected node by these keys, which here mean nothing.
 * @param {KeyboardEvent} event
 */
function keepDeleteHere(event) {
  if (["Delete", "Backspace"].includes(event.key)) event.stopPropagation();
}
