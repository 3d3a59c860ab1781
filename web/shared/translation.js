// @ts-check
/** Finds the words of a language, in singular or plural, and fills in names and numbers. Pure. */

/** @typedef {string | Record<string, string>} Phrase a text, or one per category of plurals */
/**
 * @template {string | number | symbol} WordKey
 * @typedef {(key: WordKey, values?: Record<string, string | number>) => string} Translate
 */

/**
 * A phrase with plurals takes its form from `count`. What has no translation is in English.
 * @template {Record<string, Phrase>} English
 * @param {string} locale
 * @param {English} english
 * @param {Record<string, Phrase>} [phrases]
 * @returns {Translate<keyof English>}
 */
export function createTranslate(locale, english, phrases = {}) {
  const plurals = new Intl.PluralRules(locale);
  const englishPlurals = new Intl.PluralRules("en");
  return (key, values = {}) => {
    const phrase = phrases[String(key)];
    const form = choosePlural(
      phrase ?? english[key],
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
