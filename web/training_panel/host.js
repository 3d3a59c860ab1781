// @ts-check
/** What only the training panel asks of ComfyUI's front end, its server and the browser. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { ask } from "../shared/host.js";

import { findExecutionIds } from "./execution_ids.js";

/** @typedef {import("./run.js").HostFile} HostFile */
/** @typedef {import("./run.js").Run} Run */
/** @typedef {import("./run.js").RunSummary} RunSummary */

const NUM_POINTS = 300;
const NOTIFY_KEY = "LoRATrainer.notify"; // per browser, as its permission is
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];

/**
 * The runs of this node in this workflow, the latest first.
 * @param {ComfyNode} node
 * @returns {Promise<RunSummary[]>}
 */
export async function listOwnRuns(node) {
  const root = app.rootGraph ?? app.graph;
  const ids = root ? findExecutionIds(root, node) : [];
  if (!root || !ids.length) return [];
  const query = new URLSearchParams(ids.slice(0, 100).map((id) => ["node", id]));
  query.set("workflow", root.id);
  return ask(`runs?${query}`);
}

/** @returns {Promise<RunSummary[]>} */
export function listRuns() {
  return ask("runs");
}

/**
 * @param {string} name
 * @returns {Promise<Run>}
 */
export function readRun(name) {
  return ask(`runs/${encodeURIComponent(name)}?points=${NUM_POINTS}`);
}

/**
 * @param {string} name
 * @param {"finish" | "pause"} request
 */
export function askRun(name, request) {
  return ask(`runs/${encodeURIComponent(name)}/${request}`, {});
}

/**
 * Copies a LoRA of a run to the folder that loaders list.
 * @param {string} run
 * @param {string} path
 * @returns {Promise<string>} its name there
 */
export async function listLora(run, path) {
  return (await ask(`runs/${encodeURIComponent(run)}/list`, { path })).lora_name;
}

/**
 * Stops this prompt, and no other that has come after it.
 * @param {string} promptId
 */
export async function interrupt(promptId) {
  const body = JSON.stringify({ prompt_id: promptId });
  const headers = { "Content-Type": "application/json" };
  const answer = await api.fetchApi("/interrupt", { method: "POST", headers, body });
  if (!answer.ok) throw new Error(answer.statusText);
}

export function listSelectedNodes() {
  return Object.values(app.canvas.selected_nodes ?? {});
}

/** @param {string} type */
export function createNode(type) {
  return LiteGraph.createNode(type);
}

/** @param {HostFile} file */
export function getViewUrl({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/**
 * Calls back when a prompt begins or ends anywhere on the server, with whether one is waiting or
 * running; and when this node begins.
 * @param {ComfyNode} node
 * @param {(isBusy: boolean) => void} onChange
 * @returns {() => void} stops it
 */
export function watchServer(node, onChange) {
  let isBusy = false;
  const change = (/** @type {unknown} */ count) => onChange((isBusy = Number(count) > 0));
  /** @type {[string, (event: CustomEvent) => void][]} */
  const listeners = [
    ["status", ({ detail }) => detail && change(detail.exec_info?.queue_remaining)],
    ["executing", ({ detail }) => isNode(node, detail) && onChange((isBusy = true))],
    ["reconnected", () => onChange(isBusy)],
    ...ENDS.map((name) => /** @type {[string, () => void]} */ ([name, () => onChange(isBusy)])),
  ];
  for (const [name, listener] of listeners) api.addEventListener(name, listener);
  countPrompts().then(change);
  return () => {
    for (const [name, listener] of listeners) api.removeEventListener(name, listener);
  };
}

/**
 * @param {ComfyNode} node
 * @param {unknown} id
 */
function isNode(node, id) {
  const root = app.rootGraph ?? app.graph;
  return root !== undefined && findExecutionIds(root, node).includes(String(id));
}

/** The queue's length, 0 while the server does not answer: it then says it by itself. */
async function countPrompts() {
  try {
    const answer = await api.fetchApi("/prompt");
    return (await answer.json()).exec_info?.queue_remaining ?? 0;
  } catch {
    return 0;
  }
}

// ---- notifications of the browser ----

export function offersNotifications() {
  return "Notification" in window && window.isSecureContext;
}

export function wantsNotifications() {
  const isChosen = localStorage.getItem(NOTIFY_KEY) === "true";
  return offersNotifications() && isChosen && Notification.permission === "granted";
}

/**
 * Asks the browser's user for the permission.
 * @param {boolean} areWanted
 * @returns {Promise<boolean>} whether the browser refuses them
 */
export async function chooseNotifications(areWanted) {
  const permission = areWanted ? await Notification.requestPermission() : "default";
  const isRefused = areWanted && permission !== "granted";
  localStorage.setItem(NOTIFY_KEY, String(areWanted && !isRefused));
  return isRefused;
}

/**
 * @param {string} title
 * @param {string} body
 */
export function notifyUser(title, body) {
  if (wantsNotifications()) new Notification(title, { body, tag: `LoRATrainer ${title}` });
}
