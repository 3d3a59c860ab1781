// @ts-check
/**
 * Token counts and missing trigger words. Asks the server for each caption once, a moment after the
 * last key.
 */

/** @typedef {import("./filters.js").CaptionFacts} Facts */
/** @typedef {{ caption: string, image: { trigger_word: string } }} Subject */

const DELAY = 250; // milliseconds
const AT_ONCE = 200; // captions in one request

export class CaptionFacts {
  /** @type {Map<string, Facts>} */
  #known = new Map();
  /** @type {Map<string, Subject[]>} all that have the same caption */
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
    const subjects = this.#wanted.get(key) ?? [];
    subjects.push(subject);
    this.#wanted.set(key, subjects);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#ask(), DELAY);
  }

  /** Nobody needs to know of captions that were typed over in the meantime. */
  #ask() {
    /** @type {[caption: string, triggerWord: string][]} */
    const pairs = [];
    for (const [key, subjects] of this.#wanted) {
      const subject = subjects.find((one) => keyOf(one.caption, one.image.trigger_word) === key);
      if (subject) pairs.push([subject.caption, subject.image.trigger_word]);
    }
    this.#wanted.clear();
    for (let start = 0; start < pairs.length; start += AT_ONCE) {
      this.inspect(pairs.slice(start, start + AT_ONCE));
    }
  }
}

/**
 * @param {string} caption
 * @param {string} triggerWord
 */
function keyOf(caption, triggerWord) {
  return JSON.stringify([caption, triggerWord]);
}
