// @ts-check
/** What only Review Captions asks of ComfyUI's front end and server. */

import { api } from "../../../scripts/api.js";

/** @param {string} thumbnail */
export function thumbnailUrl(thumbnail) {
  return api.apiURL(`/lora_trainer/thumbnails/${thumbnail}`);
}

/**
 * @param {ComfyNode} node
 * @param {string} name
 */
export function findWidget(node, name) {
  const found = node.widgets?.find((widget) => widget.name === name);
  if (!found) throw new Error(`${node.comfyClass} has no widget ${name}`);
  return found;
}
