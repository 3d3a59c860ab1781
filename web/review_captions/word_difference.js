// @ts-check
/** The difference of two captions, word by word. Pure; preview.js shows it. */

/** @typedef {"same" | "removed" | "added"} PartKind */
/** @typedef {{ kind: PartKind, text: string }} Part */

// Two unrelated captions of 2000 words each. A larger table would take seconds and much memory.
const MAX_TABLE_CELLS = 16_000_000;
// Chinese and Japanese have no spaces between words; the browser's dictionary finds them.
const SEGMENTER = new Intl.Segmenter(undefined, { granularity: "word" });

/**
 * All parts but the added ones give `before`; all but the removed ones give `after`.
 * @param {string} before
 * @param {string} after
 * @returns {Part[]}
 */
export function compareWords(before, after) {
  const [old, now] = [splitWords(before), splitWords(after)];
  const start = countCommonStart(old, now);
  const end = countCommonEnd(old.slice(start), now.slice(start));
  const middle = compareMiddles(
    old.slice(start, old.length - end),
    now.slice(start, now.length - end),
  );
  const same = (/** @type {string[]} */ words) => words.map((text) => part("same", text));
  return mergeNeighbours([
    ...same(old.slice(0, start)),
    ...middle,
    ...same(old.slice(old.length - end)),
  ]);
}

/**
 * Words, spaces and punctuation marks. Joined they give the text back.
 * @param {string} text
 */
export function splitWords(text) {
  // A segmenter slows down with the square of the length, so it gets what is between two spaces.
  const chunks = text.match(/\s+|\S+/g) ?? [];
  return chunks.flatMap((chunk) => (chunk.trim() ? splitChunk(chunk) : [chunk]));
}

/** @param {string} chunk */
function splitChunk(chunk) {
  return Array.from(SEGMENTER.segment(chunk), ({ segment }) => segment);
}

/**
 * @param {string[]} old
 * @param {string[]} now
 */
function countCommonStart(old, now) {
  let count = 0;
  while (count < Math.min(old.length, now.length) && old[count] === now[count]) count++;
  return count;
}

/**
 * @param {string[]} old
 * @param {string[]} now
 */
function countCommonEnd(old, now) {
  let count = 0;
  while (count < Math.min(old.length, now.length) && old.at(-1 - count) === now.at(-1 - count))
    count++;
  return count;
}

/**
 * @param {string[]} old
 * @param {string[]} now
 * @returns {Part[]}
 */
function compareMiddles(old, now) {
  const removed = (/** @type {string} */ text) => part("removed", text);
  const added = (/** @type {string} */ text) => part("added", text);
  if ((old.length + 1) * (now.length + 1) > MAX_TABLE_CELLS)
    return [...old.map(removed), ...now.map(added)];
  const common = measureCommon(old, now);
  /** @type {Part[]} */
  const parts = [];
  let [i, j] = [0, 0];
  while (i < old.length && j < now.length) {
    if (old[i] === now[j]) {
      parts.push(part("same", old[i++]));
      j++;
    } else if (common[i + 1][j] >= common[i][j + 1]) {
      parts.push(removed(old[i++]));
    } else {
      parts.push(added(now[j++]));
    }
  }
  return [...parts, ...old.slice(i).map(removed), ...now.slice(j).map(added)];
}

/**
 * [i][j]: the weight of the longest common subsequence of old.slice(i) and now.slice(j).
 * @param {string[]} old
 * @param {string[]} now
 */
function measureCommon(old, now) {
  const table = Array.from({ length: old.length + 1 }, () => new Uint32Array(now.length + 1));
  for (let i = old.length - 1; i >= 0; i--) {
    const weight = old[i].trim() ? 3 : 1; // a word that stays matters more than a space that stays
    for (let j = now.length - 1; j >= 0; j--) {
      table[i][j] =
        old[i] === now[j]
          ? table[i + 1][j + 1] + weight
          : Math.max(table[i + 1][j], table[i][j + 1]);
    }
  }
  return table;
}

/** @param {Part[]} parts */
function mergeNeighbours(parts) {
  /** @type {Part[]} */
  const merged = [];
  for (const { kind, text } of parts) {
    const last = merged.at(-1);
    if (last?.kind === kind) last.text += text;
    else merged.push(part(kind, text));
  }
  return merged;
}

/**
 * @param {PartKind} kind
 * @param {string} text
 * @returns {Part}
 */
function part(kind, text) {
  return { kind, text };
}
