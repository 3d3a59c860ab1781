// @ts-check
/**
 * Collapses the advanced inputs of our nodes in the canvas renderer. The front end (1.49) does so
 * in its other renderer only. Remove it when a fresh node is small in both without it.
 */

import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "LoRATrainer.AdvancedInputs",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("LoRATrainer_")) return;
    for (const widget of node.widgets ?? []) collapse(node, widget);
    const addCustomWidget = node.addCustomWidget;
    // An architecture brings new widgets, whose options say only afterwards that they are advanced.
    node.addCustomWidget = function (widget) {
      const added = addCustomWidget.call(this, widget);
      collapse(this, added);
      return added;
    };
    node.setSize([node.size[0], node.computeSize()[1]]);
  },
});

/**
 * @param {ComfyNode} node
 * @param {ComfyWidget} widget
 */
function collapse(node, widget) {
  let hidden = widget.hidden;
  // `advanced` gives the node its menu entry "Show Advanced".
  Object.defineProperty(widget, "advanced", { get: () => widget.options?.advanced, set() {} });
  Object.defineProperty(widget, "hidden", {
    get: () => hidden || (widget.options?.advanced && !node.showAdvanced),
    set(value) {
      hidden = value;
    },
  });
}
