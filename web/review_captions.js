// @ts-check
/** Gives the Review Captions node its widget, in place of its texts `edits` and `reviewed`. */

import { app } from "../../scripts/app.js";

import { findWidget } from "./review_captions/host.js";
import { CaptionReview } from "./review_captions/widget.js";
import { ENGLISH } from "./review_captions/words.js";
import { loadStyles } from "./shared/dom.js";
import { callAfter, loadTranslations, translateForUser } from "./shared/host.js";

const NODE_TYPE = "LoRATrainer_ReviewCaptions";
const NODE_SIZE = [760, 720];
const MIN_HEIGHT = 320;
const STYLES = new URL("./review_captions/widget.css", import.meta.url);

const translations = await loadTranslations("ReviewCaptions");

app.registerExtension({
  name: "LoRATrainer.ReviewCaptions",
  nodeCreated(node) {
    if (node.comfyClass === NODE_TYPE) addReview(node);
  },
});

/** @param {ComfyNode} node */
function addReview(node) {
  loadStyles(STYLES.href);
  const review = new CaptionReview(node, translateForUser(ENGLISH, translations));
  const widget = node.addDOMWidget("caption_review", "caption_review", review.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => MIN_HEIGHT,
  });
  widget.serialize = false;
  callAfter(widget, "onRemove", () => review.remove());
  callAfter(node, "onConfigure", () => review.restore());
  callAfter(node, "onExecuted", (output) => review.show(output?.lora_trainer_review?.[0]));
  callAfter(findWidget(node, "wait_for_review"), "callback", () => review.drawReview());
  const [width, height] = node.size;
  node.setSize([Math.max(width, NODE_SIZE[0]), Math.max(height, NODE_SIZE[1])]);
}
