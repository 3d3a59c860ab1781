// @ts-check
/** Which captions the list shows. Pure. */

/** @typedef {{ num_tokens: number, num_chunks: number, has_trigger_word: boolean }} CaptionFacts */
/**
 * @typedef {object} ReviewedCaption
 * @property {string} name
 * @property {string} caption
 * @property {boolean} isEdited
 * @property {boolean} isOutdated its incoming caption has changed since the edit
 * @property {CaptionFacts} [facts] missing until the server has counted
 */
/** @typedef {"all" | "edited" | "outdated" | "empty" | "noTriggerWord" | "long"} FilterName */

/** @type {Record<FilterName, (caption: ReviewedCaption) => boolean>} */
export const FILTERS = {
  all: () => true,
  edited: ({ isEdited }) => isEdited,
  outdated: ({ isOutdated }) => isOutdated,
  empty: isEmpty,
  noTriggerWord: lacksTriggerWord,
  long: ({ facts }) => facts !== undefined && facts.num_chunks > 1,
};

/** @param {ReviewedCaption} caption */
export function isEmpty({ caption }) {
  return !caption.trim();
}

/** @param {ReviewedCaption} caption */
export function lacksTriggerWord(caption) {
  return !isEmpty(caption) && caption.facts?.has_trigger_word === false;
}

/**
 * Whether the caption or the file's name has this text, in capitals or not. Normalized, because
 * macOS separates letters and accents in file names.
 * @param {ReviewedCaption} caption
 * @param {string} text
 */
export function matchesSearch({ name, caption }, text) {
  return fold(`${name}\n${caption}`).includes(fold(text.trim()));
}

/** @param {string} text */
function fold(text) {
  return text.normalize("NFC").toLocaleLowerCase();
}
