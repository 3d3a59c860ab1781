// @ts-check
/**
 * Where Musubi Tuner is, in ComfyUI's settings. No node has a widget for it: a workflow must not
 * choose which program the server starts. nodes/host/musubi_settings.py reads the settings; their
 * translations are in locales/<language>/settings.json.
 */

import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "LoRATrainer.MusubiSettings",
  settings: [
    setting("Python", {
      name: "Python of Musubi Tuner",
      tooltip:
        "Full path of the Python that Musubi Tuner is installed in. " +
        "Empty: MUSUBI_PYTHON, or the .venv or venv in its folder.",
    }),
    setting("Folder", {
      name: "Folder of Musubi Tuner",
      tooltip:
        "Full path of the folder musubi-tuner, on the machine that runs ComfyUI. " +
        "Empty: MUSUBI_TUNER_DIR, or next to ComfyUI or in the home folder. " +
        "The node Musubi Doctor tells what was found.",
    }),
  ],
});

/**
 * @param {string} name
 * @param {{ name: string, tooltip: string }} texts
 * @returns {ComfySetting}
 */
function setting(name, texts) {
  return {
    id: `LoRATrainer.Musubi.${name}`,
    category: ["LoRA Trainer", "Musubi Tuner", name],
    type: "text",
    defaultValue: "",
    ...texts,
  };
}
