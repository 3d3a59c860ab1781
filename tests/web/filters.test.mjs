/** The captions that a filter or a search text shows. */

import assert from "node:assert/strict";
import test from "node:test";

import { FILTERS, matchesSearch } from "../../web/review_captions/filters.js";

const CAPTION = { name: "Été.png", caption: "sks, a Red cat", isEdited: false, isOutdated: false };
const COUNTED = { num_tokens: 5, num_chunks: 1, has_trigger_word: true };

function namesOf(caption) {
  return Object.keys(FILTERS).filter((name) => FILTERS[name](caption));
}

test("a caption is in the list of every filter that applies to it", () => {
  assert.deepEqual(namesOf(CAPTION), ["all"]);
  assert.deepEqual(namesOf({ ...CAPTION, facts: COUNTED }), ["all"]);
  assert.deepEqual(namesOf({ ...CAPTION, isEdited: true, isOutdated: true }), [
    "all",
    "edited",
    "outdated",
  ]);
  assert.deepEqual(namesOf({ ...CAPTION, facts: { ...COUNTED, num_chunks: 2 } }), ["all", "long"]);
  assert.deepEqual(namesOf({ ...CAPTION, facts: { ...COUNTED, has_trigger_word: false } }), [
    "all",
    "noTriggerWord",
  ]);
});

test("an empty caption counts as empty, not as lacking the trigger word", () => {
  const facts = { num_tokens: 0, num_chunks: 1, has_trigger_word: false };
  assert.deepEqual(namesOf({ ...CAPTION, caption: " \n", facts }), ["all", "empty"]);
});

test("a search finds captions and names, in upper or lower case", () => {
  for (const text of ["", "  ", "red", "RED CAT", "été", "ÉTÉ.PNG", "E\u0301te\u0301"])
    assert.ok(matchesSearch(CAPTION, text), text);
  for (const text of ["dog", "png sks", "ete"]) assert.ok(!matchesSearch(CAPTION, text), text);
  assert.ok(
    matchesSearch({ ...CAPTION, name: "E\u0301te\u0301.png" }, "été"),
    "a file name as macOS writes it",
  );
});
