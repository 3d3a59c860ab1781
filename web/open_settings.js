// @ts-check
/**
 * Shows what the presets choose for settings that are left open: `rank → 16` next to the 0. Labels
 * are not saved, so the workflow and the prompt stay as they are.
 */

import { app } from "../../scripts/app.js";

import { addChoice, chooseFor } from "./open_settings/choices.js";
import { ask, callAfter } from "./shared/host.js";

/** @typedef {import("./open_settings/choices.js").RunChoices} RunChoices */
/** @typedef {import("./open_settings/choices.js").Values} Values */

const TRAINER = "LoRATrainer_LoRATrainSDXL";
/** What its presets choose depends on the model, which only a run knows. */
const ANY_MODEL = "LoRATrainer_TrainLoRA";
const FLIGHT_CHECK = "LoRATrainer_FlightCheck";
const NODE_TYPES = [TRAINER, ANY_MODEL, FLIGHT_CHECK];
const ASKED = ["goal", "memory", "rank", "train_batch_size"];

app.registerExtension({
  name: "LoRATrainer.OpenSettings",
  nodeCreated(node) {
    if (NODE_TYPES.includes(node.comfyClass ?? "")) showOpenSettings(node);
  },
});

/** @param {ComfyNode} node */
function showOpenSettings(node) {
  const labels = new OpenSettings(node);
  // a Flight Check tells what SDXL would get
  if (node.comfyClass !== ANY_MODEL) node.showRunChoices = (run) => labels.showRun(run);
  callAfter(node, "onConfigure", () => labels.update());
  callAfter(node, "onConnectionsChange", () => labels.update());
  callAfter(node, "onExecuted", (output) => {
    const run = output?.lora_trainer?.[0]?.presets;
    if (!run) return;
    labels.showRun(run);
    // A flight check knows the steps of the trainer behind it before that has run.
    for (const next of node.getOutputNodes(0) ?? []) next.showRunChoices?.(run);
  });
  for (const widget of node.widgets ?? []) callAfter(widget, "callback", () => labels.update());
  labels.update();
}

class OpenSettings {
  /** @type {Values} */
  #presets = {};
  /** @type {RunChoices | undefined} */
  #run;
  #asked = "";

  /** @param {ComfyNode} node */
  constructor(node) {
    this.node = node;
  }

  /** @param {RunChoices} run */
  showRun(run) {
    this.#run = run;
    this.#draw();
  }

  async update() {
    const widgets = this.#readWidgets();
    const query = String(new URLSearchParams(ASKED.map((name) => [name, String(widgets[name])])));
    this.#draw();
    if (query === this.#asked) return;
    this.#asked = query;
    const isKnown = this.node.comfyClass !== ANY_MODEL && ASKED.every((name) => name in widgets);
    const presets = isKnown ? await askPresets(query) : {};
    if (query !== this.#asked) return;
    this.#presets = presets;
    this.#draw();
  }

  /** A widget whose value comes over a link says nothing. */
  #readWidgets() {
    const linked = (this.node.inputs ?? []).filter((input) => input.widget && input.link != null);
    const names = new Set(linked.map((input) => input.widget?.name));
    const free = (this.node.widgets ?? []).filter((widget) => !names.has(widget.name));
    return Object.fromEntries(free.map((widget) => [widget.name, widget.value]));
  }

  #draw() {
    const choices = chooseFor(this.#readWidgets(), this.#presets, this.#run);
    for (const widget of this.node.widgets ?? []) {
      const label = widget.label ?? widget.name;
      const shown = addChoice(label, choices[widget.name]);
      if (shown !== label) widget.label = shown;
    }
    app.graph?.setDirtyCanvas(true);
  }
}

/**
 * @param {string} query
 * @returns {Promise<Values>}
 */
async function askPresets(query) {
  try {
    return await ask(`presets?${query}`);
  } catch (error) {
    console.warn("LoRA Trainer: no presets from ComfyUI, so open settings show only 0.", error);
    return {};
  }
}
