// @ts-check
/** What the widget asks of ComfyUI's front end and server. Nothing else here imports them. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

import { createTranslate } from "./translation.js";

/** @typedef {import("./translation.js").Phrase} Phrase */
/** @typedef {Record<string, Record<string, Phrase>>} Translations phrases by language */

/**
 * Our phrases among those that ComfyUI collects from the locales folders of all packs. Its front
 * end (1.49) merges them into its own but lets no extension look one up: we read the same answer.
 * @returns {Promise<Translations>}
 */
export async function loadTranslations() {
  try {
    const languages = Object.entries(await api.getCustomNodesI18n());
    return Object.fromEntries(
      languages.map(([locale, texts]) => [locale, texts.LoRATrainer?.ReviewCaptions]),
    );
  } catch (error) {
    console.warn(
      "LoRA Trainer: no translations from ComfyUI, Review Captions stays in English.",
      error,
    );
    return {};
  }
}

/**
 * For the language of ComfyUI's settings. When it changes, the front end makes all nodes again.
 * @param {Translations} translations
 */
export function translateForUser(translations) {
  const locale = String(app.extensionManager.setting.get("Comfy.Locale") ?? "en");
  return createTranslate(locale, translations[locale]);
}

/**
 * @param {string} path
 * @param {object} [body] sent as JSON by POST
 * @returns {Promise<any>}
 */
export async function ask(path, body) {
  const options = body && { method: "POST", body: JSON.stringify(body) };
  const answer = await api.fetchApi(`/lora_trainer/${path}`, options);
  if (!answer.ok) throw new Error((await answer.text()) || answer.statusText);
  return answer.json();
}

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

/** Lets the editor notice a change, for its undo and for what it keeps over a reload. */
export function rememberChange() {
  const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
  app.graph?.setDirtyCanvas(true);
}

export function queuePrompt() {
  app.queuePrompt(0);
}

/**
 * @param {string} summary
 * @param {string} detail
 */
export function notify(summary, detail) {
  app.extensionManager.toast.add({ severity: "info", summary, detail, life: 10_000 });
}

/**
 * The list scrolls; Ctrl and the wheel zoom the canvas, as everywhere.
 * @param {WheelEvent} event
 */
export function shareWheel(event) {
  event.stopPropagation();
  if (!event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  app.canvas.processMouseWheel(event);
}

/**
 * The middle button moves the canvas, as it does over ComfyUI's own text boxes.
 * @param {PointerEvent} event
 */
export function shareMiddleButton(event) {
  if (event.button !== 1) return;
  event.preventDefault();
  app.canvas.processMouseDown(event);
}
