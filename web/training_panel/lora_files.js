// @ts-check
/** The LoRAs that a run has saved, each with buttons that use it in the graph and copy its path. */

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
   * @param {(lora: LoraFile) => Promise<string>} use returns the title of the node that loads it
   */
  constructor(translate, formats, use) {
    this.translate = translate;
    this.formats = formats;
    this.use = use;
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
    const use = createButton(translate("useLora"), () => this.#use(how, lora), {
      title: translate("useLoraHint", { name }),
    });
    const copy = createButton(
      translate("copyPath"),
      async () => {
        this.#explain(how, lora);
        await copyText(lora.path);
        setText(copy, translate("copied"));
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
      copy,
    ];
    if (lora.is_best)
      parts[0].append(
        createElement("span", { className: "ltp-best", textContent: translate("best") }),
      );
    const row = createElement("div", { className: "ltp-lora" }, ...parts);
    return createElement("li", {}, row, how);
  }

  /**
   * @param {HTMLElement} how
   * @param {LoraFile} lora
   */
  async #use(how, lora) {
    let text;
    try {
      text = this.translate("used", { node: await this.use(lora) });
    } catch (error) {
      text = /** @type {Error} */ (error).message;
    }
    how.replaceChildren(createElement("span", { role: "status", textContent: text }));
    how.hidden = false;
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
