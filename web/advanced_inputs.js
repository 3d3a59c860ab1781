// Collapses the advanced inputs of our nodes in the canvas renderer, as ComfyUI's front end does in its other renderer only (1.49).
// To be removed when a fresh node is small in both without it.
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "LoRATrainer.AdvancedInputs",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("LoRATrainer_")) return;
    for (const widget of node.widgets ?? []) {
      if (!widget.options?.advanced) continue;
      widget.advanced = true; // gives the node its menu entry "Show Advanced"
      Object.defineProperty(widget, "hidden", { get: () => !node.showAdvanced, set() {} });
    }
    node.setSize([node.size[0], node.computeSize()[1]]);
  },
});
