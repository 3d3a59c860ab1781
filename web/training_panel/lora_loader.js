// @ts-check
/** Puts a LoRA file to use in the graph: in ComfyUI's Load LoRA nodes. */

import { rememberChange } from "../shared/host.js";

import { createNode } from "./host.js";

const OWNER_PROPERTY = "LoRA Trainer: loads the LoRA of";
const GAP = 80; // below the trainer

/**
 * Chooses the LoRA in the selected nodes that load one; without any, in one below the trainer that
 * takes the model that the trainer takes.
 * @param {ComfyNode} trainer
 * @param {string} loraName as loaders list it
 * @param {ComfyNode[]} selectedNodes
 * @returns {string} the title of a node that loads it now
 */
export function chooseLora(trainer, loraName, selectedNodes) {
  const selected = selectedNodes.filter(findWidget);
  const loaders = selected.length ? selected : [findOwn(trainer) ?? addLoader(trainer)];
  for (const loader of loaders) {
    const widget = findWidget(loader);
    if (widget) choose(widget, loraName);
  }
  rememberChange();
  return loaders[0].title;
}

/**
 * The file may be new to the node's list.
 * @param {ComfyWidget} widget
 * @param {string} loraName
 */
function choose(widget, loraName) {
  const values = widget.options?.values;
  if (widget.options && Array.isArray(values) && !values.includes(loraName))
    widget.options.values = [...values, loraName];
  widget.value = loraName;
  widget.callback?.(loraName);
}

/** @param {ComfyNode} node */
function findWidget(node) {
  return node.widgets?.find((widget) => widget.name === "lora_name");
}

/** @param {ComfyNode} trainer */
function findOwn(trainer) {
  return trainer.graph?.nodes.find((node) => node.properties[OWNER_PROPERTY] === trainer.id);
}

/** @param {ComfyNode} trainer */
function addLoader(trainer) {
  const hasClip = findSlot(trainer, "clip") >= 0;
  const loader = createNode(hasClip ? "LoraLoader" : "LoraLoaderModelOnly");
  loader.properties[OWNER_PROPERTY] = trainer.id;
  loader.pos = [trainer.pos[0], trainer.pos[1] + trainer.size[1] + GAP];
  trainer.graph?.add(loader);
  if (!connectLike(trainer, "apply_to", loader, "model"))
    connectLike(trainer, "model", loader, "model");
  connectLike(trainer, "clip", loader, "clip");
  return loader;
}

/**
 * Connects an input of the loader to what an input of the trainer is connected to.
 * @param {ComfyNode} trainer
 * @param {string} from
 * @param {ComfyNode} loader
 * @param {string} to
 * @returns {boolean} whether that is connected
 */
function connectLike(trainer, from, loader, to) {
  const slot = findSlot(trainer, from);
  const origin = slot >= 0 ? trainer.getInputNode(slot) : null;
  const link = origin && trainer.getInputLink(slot);
  if (!origin || !link) return false;
  origin.connect(link.origin_slot, loader, findSlot(loader, to));
  return true;
}

/**
 * @param {ComfyNode} node
 * @param {string} name
 */
function findSlot(node, name) {
  return (node.inputs ?? []).findIndex((input) => input.name === name);
}
