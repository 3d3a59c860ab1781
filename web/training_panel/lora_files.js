// @ts-check
/** The LoRAs that a run has saved, each with a button that copies its path and says its use. */

import { copyText } from "../shared/clipboard.js";
import { createButton, createElement, setText } from "../shared/dom.js";

/** @typedef {import("./formats.js").Formats} Formats */
/** @typedef {import("./run.js").LoraFile} LoraFile */
/** @typedef {import("./run.js").Run} Run */
/** @typedef {import("./words.js").Translate} Translate */

export class LoraFiles {
  #shown = "";

  /**
   * @param {Translate} translate
   * @param {Formats} formats
   */
  constructor(translate, formats) {
    this.translate = translate;
    this.formats = formats;
    this.list = createElement("ul", { className: "ltp-loras" });
    this.more = createElement("p", { className: "ltp-more" });
    const heading = createElement("h4", { textContent: translate("loraFiles") });
    this.element = createElement("section", { hidden: true }, heading, this.list, this.more);
  }

  /**
   * The rows stay while the files do: what a row says, and the focus, must not be lost.
   * @param {Run} run
   */
  draw({ loras, num_loras: count }) {
    this.element.hidden = !loras.length;
    const numMore = count - loras.length;
    setText(this.more, numMore ? this.translate("moreFiles", { count: numMore }) : "");
    this.more.hidden = !numMore;
    const shown = JSON.stringify(loras);
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.list.replaceChildren(...loras.map((lora) => this.#createRow(lora)));
  }

  /** @param {LoraFile} lora */
  #createRow(lora) {
    const { translate } = this;
    const name = this.#name(lora);
    const how = createElement("div", { className: "ltp-how", hidden: true });
    const use = createButton(
      translate("copyPath"),
      async () => {
        this.#explain(how, lora);
        await copyText(lora.path);
        setText(use, translate("copied"));
      },
      { title: translate("copyPathHint", { name }) },
    );
    const parts = [
      createElement("span", { className: "ltp-lora-name", textContent: name }),
      createElement("span", {
        className: "ltp-number",
        textContent: this.formats.bytes(lora.bytes),
      }),
      use,
    ];
    if (lora.is_best)
      parts[0].append(
        createElement("span", { className: "ltp-best", textContent: translate("best") }),
      );
    const row = createElement("div", { className: "ltp-lora" }, ...parts);
    return createElement("li", {}, row, how);
  }

  /** @param {LoraFile} lora */
  #name({ kind, step, epoch, path }) {
    const { translate } = this;
    if (kind === "final") return translate("result");
    if (kind === "ema") return translate("resultOfEma");
    if (step !== null) return translate("step", { step });
    if (epoch !== null) return translate("epoch", { epoch });
    return path.split(/[\\/]/).at(-1) ?? path;
  }

  /**
   * @param {HTMLElement} how
   * @param {LoraFile} lora
   */
  #explain(how, { path, lora_name: loraName }) {
    const hint = loraName
      ? this.translate("listed", { name: loraName })
      : this.translate("notListed");
    const file = createElement("code", { textContent: path });
    how.replaceChildren(file, createElement("span", { textContent: hint }));
    how.hidden = false;
  }
}
