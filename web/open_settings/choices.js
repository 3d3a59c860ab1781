// @ts-check
/** What is shown for settings that were left open (0, or "auto"). Pure. */

/** @typedef {Record<string, unknown>} Values settings by name */
/**
 * What a run's presets came to, and for which widgets.
 * @typedef {object} RunChoices
 * @property {string} goal
 * @property {string} memory
 * @property {Values} given
 * @property {Values} chosen
 */

const ARROW = " → ";

/** @param {unknown} value */
function isOpen(value) {
  return value === 0 || value === "auto";
}

/**
 * Whether the widgets are still those that the run was started with.
 * @param {RunChoices} run
 * @param {Values} widgets
 */
export function answersWidgets(run, widgets) {
  return (
    run.goal === widgets.goal &&
    run.memory === widgets.memory &&
    Object.keys(run.chosen).every((name) => isOpen(widgets[name])) &&
    Object.entries(run.given).every(([name, value]) => widgets[name] === value)
  );
}

/**
 * Return the text for every open widget for which something was chosen.
 * @param {Values} widgets
 * @param {Values} presets
 * @param {RunChoices} [run] knows more than the presets: it had a dataset
 * @returns {Record<string, string>}
 */
export function chooseFor(widgets, presets, run) {
  const chosen = { ...presets, ...(run && answersWidgets(run, widgets) ? run.chosen : {}) };
  const shown = Object.entries(chosen).filter(([name]) => isOpen(widgets[name]));
  return Object.fromEntries(shown.map(([name, value]) => [name, format(value)]));
}

/** @param {unknown} value */
function format(value) {
  if (typeof value === "boolean") return value ? "on" : "off";
  return String(value);
}

/**
 * @param {string} label
 * @param {string} [choice]
 */
export function addChoice(label, choice) {
  const plain = removeChoice(label);
  return choice === undefined ? plain : plain + ARROW + choice;
}

/** @param {string} label */
export function removeChoice(label) {
  return label.split(ARROW)[0];
}
