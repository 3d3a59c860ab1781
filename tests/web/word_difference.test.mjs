/** The word difference: it loses no character, and marks the words that a reader would mark. */

import assert from "node:assert/strict";
import test from "node:test";

import { compareWords, splitWords } from "../../web/review_captions/word_difference.js";

/** Join the parts to one text: [-removed-], {+added+}. */
function show(before, after) {
  const brackets = { same: ["", ""], removed: ["[-", "-]"], added: ["{+", "+}"] };
  return compareWords(before, after)
    .map(({ kind, text }) => brackets[kind][0] + text + brackets[kind][1])
    .join("");
}

function join(parts, leftOut) {
  return parts
    .filter(({ kind }) => kind !== leftOut)
    .map(({ text }) => text)
    .join("");
}

for (const [before, after, shown] of [
  ["", "", ""],
  ["", "a cat", "{+a cat+}"],
  ["a cat", "", "[-a cat-]"],
  ["a cat", "a cat", "a cat"],
  ["a red cat", "a cat", "a [-red -]cat"],
  ["a cat, grass", "a dog, grass", "a [-cat-]{+dog+}, grass"],
  ["a cat", "photo, a cat", "{+photo, +}a cat"],
  ["a cat", "a cat, night", "a cat{+, night+}"],
  ["cat cat cat", "cat cat", "cat cat[- cat-]"],
  ["one\ntwo", "one two", "one[-\n-]{+ +}two"],
  ['say "cat"', 'say "dog"', 'say "[-cat-]{+dog+}"'],
  ["a 👩‍👩‍👧‍👦 here", "a 👩‍👩‍👦 here", "a [-👩‍👩‍👧‍👦-]{+👩‍👩‍👦+} here"],
  ["cafe\u0301 noir", "café noir", "[-cafe\u0301-]{+café+} noir"],
  ["<b>cat</b>", "<b>dog</b>", "<b>[-cat-]{+dog+}</b>"],
]) {
  test(`${JSON.stringify(before)} to ${JSON.stringify(after)}`, () => {
    assert.equal(show(before, after), shown);
  });
}

test("a Japanese caption, which has no spaces, is compared word by word", () => {
  assert.equal(
    show("赤い猫が庭で眠っている", "赤い犬が庭で眠っている"),
    "赤い[-猫-]{+犬+}が庭で眠っている",
  );
});

test("letters are not cut from their accents, and emoji are not cut in two", () => {
  for (const text of ["e\u0301a\u0308", "👍🏽", "👩‍👩‍👧‍👦", "🇫🇷"])
    assert.deepEqual(splitWords(text), [text]);
});

test("both captions can be rebuilt from the parts", () => {
  const words = ["cat", "dog", ",", " ", "  ", "\n", "猫", "e\u0301", "👍🏽", '"', "grass"];
  let seed = 1;
  const draw = () => (seed = (seed * 48271) % 2147483647);
  const drawText = () =>
    Array.from({ length: draw() % 30 }, () => words[draw() % words.length]).join("");
  for (let round = 0; round < 500; round++) {
    const [before, after] = [drawText(), drawText()];
    const parts = compareWords(before, after);
    assert.equal(join(parts, "added"), before);
    assert.equal(join(parts, "removed"), after);
    assert.ok(parts.every(({ kind }, index) => kind !== parts[index + 1]?.kind));
  }
});

test("a long caption with one changed word shows that word", () => {
  const words = Array.from({ length: 20_000 }, (_, index) => `word${index}`);
  const before = words.join(" ");
  const after = before.replace("word9999 ", "other ");
  const changed = compareWords(before, after).filter(({ kind }) => kind !== "same");
  assert.deepEqual(changed, [
    { kind: "removed", text: "word9999" },
    { kind: "added", text: "other" },
  ]);
});

test("two long captions with nothing in common are replaced as a whole", () => {
  const before = Array.from({ length: 9_000 }, (_, index) => `a${index}`).join(" ");
  const after = Array.from({ length: 9_000 }, (_, index) => `b${index}`).join(" ");
  assert.deepEqual(compareWords(before, after), [
    { kind: "removed", text: before },
    { kind: "added", text: after },
  ]);
});
