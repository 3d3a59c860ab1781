// @ts-check
/** The latest samples as thumbnails, the last one first. A click opens the image. */

import { createElement } from "../shared/dom.js";

/** @typedef {import("./run.js").Sample} Sample */
/** @typedef {import("./words.js").Translate} Translate */

export class Samples {
  #shown = "";

  /**
   * @param {Translate} translate
   * @param {(file: import("./run.js").HostFile) => string} getUrl
   */
  constructor(translate, getUrl) {
    this.translate = translate;
    this.getUrl = getUrl;
    this.list = createElement("ul", { className: "ltp-samples" });
    const heading = createElement("h4", { textContent: translate("samples") });
    this.element = createElement("section", { hidden: true }, heading, this.list);
  }

  /**
   * Images that are shown already stay: the page would load them again.
   * @param {Sample[]} samples
   */
  draw(samples) {
    this.element.hidden = !samples.length;
    const shown = samples.map((sample) => this.getUrl(sample.file)).join("\n");
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.list.replaceChildren(...samples.map((sample) => this.#createThumbnail(sample)));
  }

  /** @param {Sample} sample */
  #createThumbnail({ step, file }) {
    const url = this.getUrl(file);
    const image = createElement("img", {
      src: `${url}&preview=webp;75`, // smaller than the PNG
      alt: this.translate("samplesOf", { step }),
      loading: "lazy",
      draggable: false,
    });
    const caption = createElement("span", { textContent: this.translate("step", { step }) });
    const link = createElement(
      "a",
      { href: url, target: "_blank", rel: "noopener" },
      image,
      caption,
    );
    link.ariaLabel = link.title = this.translate("openSamples", { step });
    return createElement("li", {}, link);
  }
}
