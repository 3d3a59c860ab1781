// @ts-check
/**
 * Token counts and missing trigger words. Asks the server for each caption once, a moment after the
 * last key.
 */

/** @typedef {import("./filters.js").CaptionFacts} Facts */
/** @typedef {{ caption: string, image: { trigger_word: string } }} Subject */

const DELAY = 250; // milliseconds

export class CaptionFacts {
  /** @type {Map<string, Facts>} */
  #known = new Map();
  /** @type {Map<string, Subject>} */
  #wanted = new Map();
  #timer = 0;

  /** @param {(subjects: [caption: string, triggerWord: string][]) => void} inspect */
  constructor(inspect) {
    this.inspect = inspect;
  }

  /**
   * What is known; what is not will be asked for.
   * @param {Subject} subject
   */
  find(subject) {
    const key = keyOf(subject.caption, subject.image.trigger_word);
    const facts = this.#known.get(key);
    if (!facts) this.#want(key, subject);
    return facts;
  }

  /**
   * @param {[caption: string, triggerWord: string][]} subjects
   * @param {Facts[]} facts one per subject
   */
  add(subjects, facts) {
    subjects.forEach(([caption, word], index) =>
      this.#known.set(keyOf(caption, word), facts[index]),
    );
  }

  stop() {
    clearTimeout(this.#timer);
  }

  /**
   * @param {string} key
   * @param {Subject} subject
   */
  #want(key, subject) {
    this.#wanted.set(key, subject);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#ask(), DELAY);
  }

  /** Of captions that were typed over in the meantime nobody needs to know. */
  #ask() {
    const wanted = [...this.#wanted].filter(
      ([key, { caption, image }]) => key === keyOf(caption, image.trigger_word),
    );
    this.#wanted.clear();
    if (wanted.length)
      this.inspect(wanted.map(([, { caption, image }]) => [caption, image.trigger_word]));
  }
}

/**
 * @param {string} caption
 * @param {string} triggerWord
 */
function keyOf(caption, triggerWord) {
  return JSON.stringify([caption, triggerWord]);
}
