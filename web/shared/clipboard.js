// @ts-check
/** Copies a text, also where the browser has no clipboard for pages. */

import { createElement } from "./dom.js";

/**
 * Browsers offer the clipboard to secure pages only, and ComfyUI often runs on plain http.
 * @param {string} text
 */
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = createElement("textarea", { value: text });
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}
