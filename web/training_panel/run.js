// @ts-check
/** A run as the server describes it, and what follows from that. Pure. */

/** @typedef {import("./words.js").WordKey} WordKey */
/** @typedef {"finished" | "finished early" | "cancelled" | "paused" | "failed" | "stopped"} End */
/**
 * @typedef {object} RunSummary
 * @property {string} name
 * @property {"running" | End} status
 * @property {string} stage
 * @property {number} step
 * @property {number} total
 * @property {number | null} started_at
 * @property {number | null} updated_at
 * @property {number | null} average_loss
 * @property {string} prompt_id
 * @property {boolean} can_ask
 */
/**
 * @typedef {object} Curve columns of equal length
 * @property {number[]} step
 * @property {number[]} loss
 * @property {number[]} low
 * @property {number[]} high
 * @property {(number | null)[]} average
 * @property {(number | null)[]} learning_rate
 */
/**
 * @typedef {object} Validation columns of equal length
 * @property {string} kind
 * @property {number | null} best_step
 * @property {number[]} step
 * @property {number[]} loss
 * @property {(number | null)[]} ema_loss of the moving average, null without one
 */
/** @typedef {{ filename: string, subfolder: string, type: string }} HostFile */
/** @typedef {{ name: string, step: number, file: HostFile }} Sample */
/**
 * @typedef {object} LoraFile
 * @property {"final" | "best" | "ema" | "checkpoint"} kind
 * @property {string} path
 * @property {number} bytes
 * @property {number | null} step
 * @property {number | null} epoch
 * @property {boolean} is_best
 * @property {string | null} lora_name by which loaders list it
 */
/**
 * @typedef {object} Run
 * @property {RunSummary} summary
 * @property {number | null} learning_rate
 * @property {number | null} steps_per_second
 * @property {number | null} eta_seconds
 * @property {number} memory_bytes
 * @property {number} memory_budget_bytes
 * @property {string} message
 * @property {string} settings
 * @property {string[]} notices
 * @property {("finish" | "pause")[]} requests
 * @property {Curve} curve
 * @property {Validation} validation
 * @property {Sample[]} samples
 * @property {LoraFile[]} loras
 * @property {number} num_loras
 * @property {string[]} notes
 */

/** @type {Record<string, WordKey>} */
const STAGES = { loading: "loading", caching: "caching", training: "training", saving: "saving" };
/** @type {Record<string, WordKey>} */
const ENDS = {
  finished: "finished",
  "finished early": "finishedEarly",
  cancelled: "cancelled",
  paused: "paused",
  failed: "failed",
  stopped: "stopped",
};
/** @type {Record<string, "success" | "info" | "warn" | "error">} */
const SEVERITIES = {
  finished: "success",
  "finished early": "success",
  failed: "error",
  stopped: "warn",
};

/** @param {RunSummary | undefined} summary */
export function isRunning(summary) {
  return summary?.status === "running";
}

/**
 * @param {RunSummary} summary
 * @returns {WordKey}
 */
export function nameStatus({ status, stage }) {
  return ENDS[status] ?? STAGES[stage] ?? "training";
}

/** @param {string} status */
export function findSeverity(status) {
  return SEVERITIES[status] ?? "info";
}

/**
 * From 0 to 1.
 * @param {RunSummary} summary
 */
export function measureProgress({ step, total }) {
  return total ? Math.min(1, step / total) : 0;
}

/**
 * Whether the same prompt, queued again, would go on with it.
 * @param {RunSummary} summary
 */
export function canResume({ status }) {
  return ["paused", "stopped", "cancelled", "failed"].includes(status);
}

/**
 * Seconds from its start to its last word, undefined if unknown.
 * @param {RunSummary} summary
 */
export function measureTime({ started_at, updated_at }) {
  return started_at && updated_at ? updated_at - started_at : undefined;
}
