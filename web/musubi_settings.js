// Where Musubi Tuner is, in ComfyUI's settings: which program the server starts must not come with a workflow, so no node has a widget for it.
// nodes/host/musubi_settings.py reads them; their translations are in locales/<language>/settings.json.
import { app } from "../../scripts/app.js";

const setting = (name, text) => ({
  id: `LoRATrainer.Musubi.${name}`,
  category: ["LoRA Trainer", "Musubi Tuner", name],
  type: "text",
  defaultValue: "",
  ...text,
});

app.registerExtension({
  name: "LoRATrainer.MusubiSettings",
  settings: [
    setting("Python", {
      name: "Python of Musubi Tuner",
      tooltip: "Full path of the Python that Musubi Tuner is installed in. Empty: MUSUBI_PYTHON, or the .venv or venv in its folder.",
    }),
    setting("Folder", {
      name: "Folder of Musubi Tuner",
      tooltip:
        "Full path of the folder musubi-tuner, on the machine that runs ComfyUI. Empty: MUSUBI_TUNER_DIR, or beside ComfyUI or in the home folder. " +
        "The node Musubi Doctor tells what was found.",
    }),
  ],
});
