// @ts-check
/** What our widgets ask of ComfyUI's front end and server. Nothing else in shared/ imports them. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

import { createTranslate } from "./translation.js";

/** @typedef {import("./translation.js").Phrase} Phrase */
/** @typedef {Record<string, Record<string, Phrase>>} Translations phrases by language */

/**
 * A widget's phrases among those that ComfyUI collects from the locales folders of all packs. Its
 * front end (1.49) merges them into its own but lets no extension look one up: we read the same
 * answer.
 * @param {string} widget its key below LoRATrainer
 * @returns {Promise<Translations>}
 */
export async function loadTranslations(widget) {
  try {
    const languages = Object.entries(await api.getCustomNodesI18n());
    return Object.fromEntries(
      languages.map(([locale, texts]) => [locale, texts.LoRATrainer?.[widget]]),
    );
  } catch (error) {
    console.warn(`LoRA Trainer: no translations from ComfyUI, ${widget} stays in English.`, error);
    return {};
  }
}

/** The language of ComfyUI's settings. When it changes, the front end makes all nodes again. */
export function getLocale() {
  return String(app.extensionManager.setting.get("Comfy.Locale") ?? "en");
}

/**
 * For the language of ComfyUI's settings.
 * @template {Record<string, Phrase>} English
 * @param {English} english
 * @param {Translations} translations
 */
export function translateForUser(english, translations) {
  return createTranslate(getLocale(), english, translations[getLocale()]);
}

/**
 * @param {string} path
 * @param {object} [body] sent as JSON by POST
 * @returns {Promise<any>}
 */
export async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  const options = body && { method: "POST", headers, body: JSON.stringify(body) };
  const answer = await api.fetchApi(`/lora_trainer/${path}`, options);
  if (!answer.ok) throw new Error((await answer.text()) || answer.statusText);
  return answer.json();
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
 * @param {"success" | "info" | "warn" | "error"} severity
 * @param {string} summary
 * @param {string} detail
 */
export function showToast(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: 10_000 });
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

/**
 * After `object[name]`, if there is one, also call `then` with the same arguments.
 * @param {any} object
 * @param {string} name
 * @param {(...values: any[]) => void} then
 */
export function callAfter(object, name, then) {
  const original = object[name];
  object[name] = function (/** @type {any[]} */ ...values) {
    const result = original?.apply(this, values);
    then(...values);
    return result;
  };
}
