// @ts-check
/** Finds the words of a language, in singular or plural, and fills in names and numbers. Pure. */

import { ENGLISH } from "./words.js";

/** @typedef {keyof typeof ENGLISH} WordKey */
/** @typedef {string | Record<string, string>} Phrase a text, or one per category of plurals */
/** @typedef {(key: WordKey, values?: Record<string, string | number>) => string} Translate */

/**
 * A phrase with plurals takes its form from `count`. What has no translation is in English.
 * @param {string} locale
 * @param {Record<string, Phrase>} [phrases]
 * @returns {Translate}
 */
export function createTranslate(locale, phrases = {}) {
  const plurals = new Intl.PluralRules(locale);
  const englishPlurals = new Intl.PluralRules("en");
  return (key, values = {}) => {
    const phrase = phrases[key];
    const form = choosePlural(
      phrase ?? ENGLISH[key],
      phrase ? plurals : englishPlurals,
      values.count,
    );
    return fillIn(form, values, locale);
  };
}

/**
 * @param {Phrase} phrase
 * @param {Intl.PluralRules} plurals
 * @param {string | number | undefined} count
 */
function choosePlural(phrase, plurals, count) {
  if (typeof phrase === "string") return phrase;
  return phrase[plurals.select(Number(count))] ?? phrase.other;
}

/**
 * @param {string} text
 * @param {Record<string, string | number>} values
 * @param {string} locale
 */
function fillIn(text, values, locale) {
  return text.replace(/\{(\w+)\}/g, (placeholder, name) => {
    const value = values[name] ?? placeholder;
    return typeof value === "number" ? value.toLocaleString(locale) : value;
  });
}
