/** The widgets' words: each is translated, with the same placeholders and its language's plurals. */

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import test from "node:test";

import { createTranslate } from "../../web/shared/translation.js";
import { ENGLISH } from "../../web/review_captions/words.js";
import { ENGLISH as OF_PANEL } from "../../web/training_panel/words.js";

const WIDGETS = [
  ["ReviewCaptions", "review_captions", ENGLISH],
  ["TrainingPanel", "training_panel", OF_PANEL],
];
const ROOT = new URL("../../", import.meta.url);
const SCRIPTS = { fr: /[a-zà-ÿœ]/i, ja: /[\u3040-\u30ff\u4e00-\u9fff]/, zh: /[\u4e00-\u9fff]/ };
const LANGUAGES = readdirSync(new URL("locales/", ROOT), { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => name);

function readPhrases(language, widget = "ReviewCaptions") {
  const text = readFileSync(new URL(`locales/${language}/main.json`, ROOT), "utf8");
  return JSON.parse(text).LoRATrainer[widget];
}

function formsOf(phrase) {
  return typeof phrase === "string" ? [phrase] : Object.values(phrase);
}

function placeholdersOf(phrase) {
  return [...new Set(formsOf(phrase).flatMap((form) => form.match(/\{\w+\}/g) ?? []))].sort();
}

test("there are translations", () => assert.deepEqual(LANGUAGES, ["fr", "ja", "zh"]));

for (const language of LANGUAGES) {
  for (const [widget, , english] of WIDGETS) {
    const phrases = readPhrases(language, widget);

    test(`${language} of ${widget} translates exactly the words of English`, () => {
      assert.deepEqual(Object.keys(phrases), Object.keys(english));
    });

    test(`${language} of ${widget} is in its own script`, () => {
      for (const [key, phrase] of Object.entries(phrases)) {
        for (const form of formsOf(phrase)) {
          const words = form.replace(/\{\w+\}/g, "");
          assert.equal(form.trim(), form, key);
          if (/\p{L}/u.test(words)) assert.match(words, SCRIPTS[language], key);
          assert.doesNotMatch(form, /[|@]/, `${key}: the front end reads it as a pattern`);
        }
      }
    });

    test(`${language} of ${widget} has the placeholders of the English text`, () => {
      for (const [key, phrase] of Object.entries(phrases))
        assert.deepEqual(placeholdersOf(phrase), placeholdersOf(english[key]), key);
    });

    test(`${language} of ${widget} has a form for every number`, () => {
      const translate = createTranslate(language, english, phrases);
      for (const [key, phrase] of Object.entries(phrases)) {
        assert.equal(typeof phrase, typeof english[key], key);
        for (const count of [0, 1, 2, 5, 11, 21, 1_000_000])
          assert.doesNotMatch(translate(key, { count }), /undefined|\{count\}/);
      }
    });
  }
}

for (const [widget, place, english] of WIDGETS) {
  test(`every word of ${widget} is used by a module`, () => {
    const folder = new URL(`web/${place}/`, ROOT);
    const names = readdirSync(folder).filter((name) => name.endsWith(".js") && name !== "words.js");
    const code = names.map((name) => readFileSync(new URL(name, folder), "utf8")).join("\n");
    assert.deepEqual(
      Object.keys(english).filter((key) => !code.includes(`"${key}"`)),
      [],
    );
  });
}

test("numbers choose the plural and are formatted for the language", () => {
  const english = createTranslate("en", ENGLISH);
  assert.deepEqual(
    [0, 1, 2].map((count) => english("numImages", { count })),
    ["0 images", "1 image", "2 images"],
  );
  assert.equal(english("numImages", { count: 1200 }), "1,200 images");
  const french = createTranslate("fr", ENGLISH, readPhrases("fr"));
  assert.deepEqual(
    [0, 1, 2].map((count) => french("numImages", { count })),
    ["0 image", "1 image", "2 images"],
  );
  assert.equal(
    createTranslate("ja", ENGLISH, readPhrases("ja"))("numImages", { count: 1 }),
    "画像 1 枚",
  );
});

test("a language without translation falls back to English, plurals included", () => {
  const korean = createTranslate("ko", ENGLISH);
  assert.deepEqual(
    [1, 2].map((count) => korean("numImages", { count })),
    ["1 image", "2 images"],
  );
});

test("names are filled in unchanged, whatever they contain", () => {
  const translate = createTranslate("en", ENGLISH);
  assert.equal(
    translate("captionOf", { name: "$& {count} $1.png" }),
    "Caption of $& {count} $1.png",
  );
  assert.equal(translate("namedReplace", { text: "a", replacement: "" }), "Replace “a” with “”");
});
