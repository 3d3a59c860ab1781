// @ts-check
/** Gives the trainer nodes their panel, which shows the node's run live. */

import { app } from "../../scripts/app.js";

import { loadStyles } from "./shared/dom.js";
import {
  callAfter,
  getLocale,
  loadTranslations,
  showToast,
  translateForUser,
} from "./shared/host.js";
import { Announcer } from "./training_panel/announcer.js";
import { Formats } from "./training_panel/formats.js";
import { notifyUser } from "./training_panel/host.js";
import { CLOSED_HEIGHT, TrainingPanel } from "./training_panel/panel.js";
import { nameStatus } from "./training_panel/run.js";
import { ENGLISH } from "./training_panel/words.js";

const NODE_TYPES = [
  "LoRATrainer_TrainLoRA",
  "LoRATrainer_LoRATrainSDXL",
  "LoRATrainer_TrainSlider",
  "LoRATrainer_MusubiTrain",
];
const MIN_OPEN_WIDTH = 340;
const STYLES = new URL("./training_panel/panel.css", import.meta.url);

const translations = await loadTranslations("TrainingPanel");

/** One for all panels, so that a run that two of them show ends once. */
const announcer = new Announcer((severity, { summary, message }) => {
  const translate = translateForUser(ENGLISH, translations);
  const title = `${translate(nameStatus(summary))} – ${summary.name}`;
  const text = message || translate("stepOf", { step: summary.step, total: summary.total });
  showToast(severity, title, text);
  notifyUser(title, text);
});

app.registerExtension({
  name: "LoRATrainer.TrainingPanel",
  nodeCreated(node) {
    if (NODE_TYPES.includes(node.comfyClass ?? "")) addPanel(node);
  },
});

/** @param {ComfyNode} node */
function addPanel(node) {
  loadStyles(STYLES.href);
  const translate = translateForUser(ENGLISH, translations);
  const formats = new Formats(getLocale(), translate);
  const onResize = () => fit(node, panel);
  const panel = new TrainingPanel(node, { translate, formats, announcer, onResize });
  const widget = node.addDOMWidget("training_panel", "training_panel", panel.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => panel.minHeight,
    getMaxHeight: () => (panel.isOpen ? 1e6 : CLOSED_HEIGHT),
  });
  widget.serialize = false;
  callAfter(widget, "onRemove", () => panel.remove());
  callAfter(node, "onConfigure", () => panel.start());
}

/**
 * Room for a panel that has opened; none is left behind by one that has closed.
 * @param {ComfyNode} node
 * @param {TrainingPanel} panel
 */
function fit(node, panel) {
  const [width, height] = node.size;
  const needed = node.computeSize()[1];
  if (panel.isOpen) node.setSize([Math.max(width, MIN_OPEN_WIDTH), Math.max(height, needed)]);
  else node.setSize([width, needed]);
  app.graph?.setDirtyCanvas(true);
}
