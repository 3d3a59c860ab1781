/** Edited captions: how they are read and written, and that none is lost. */

import assert from "node:assert/strict";
import test from "node:test";

import {
  Edits,
  parseEdits,
  serializeEdits,
  UnreadableEdits,
} from "../../web/review_captions/edits.js";

const CAT = { name: "cat.png", sha256: "c".repeat(64), caption: "a red cat", isCopy: false };
const DOG = { name: "dog.png", sha256: "d".repeat(64), caption: "a dog", isCopy: false };
const FIRST_COPY = { name: "1.png", sha256: "e".repeat(64), caption: "a fox", isCopy: true };
const SECOND_COPY = { ...FIRST_COPY, name: "2.png" };

/** @param {unknown} [value] */
function makeEdits(value = "") {
  const widget = { value };
  return { widget, edits: new Edits(widget) };
}

test("an empty text has no edits", () => {
  for (const text of ["", " \n", "{}"]) assert.equal(parseEdits(text).size, 0);
  assert.equal(makeEdits(null).edits.count, 0);
  assert.equal(serializeEdits(new Map()), "");
});

test("an edit is a caption, or a caption with the one that it replaced", () => {
  const edits = parseEdits(
    '{"x": "one", "y": {"caption": "two", "incoming": "three"}, "z": {"caption": "", "incoming": null}}',
  );
  assert.deepEqual(edits.get("x"), { caption: "one" });
  assert.deepEqual(edits.get("y"), { caption: "two", incoming: "three" });
  assert.deepEqual(edits.get("z"), { caption: "", incoming: null });
});

for (const [text, entry] of [
  ['{"a.png": "half', undefined],
  ["nonsense", undefined],
  ['["a"]', '["a"]'],
  ["3", "3"],
  ["null", "null"],
  ['{"a.png": 3}', "a.png"],
  ['{"a.png": null}', "a.png"],
  ['{"a.png": {"incoming": "x"}}', "a.png"],
  ['{"a.png": {"caption": "x", "incoming": 1}}', "a.png"],
  ['{"version": 2, "edits": {"a.png": "x"}}', "version"],
]) {
  test(`${text} cannot be read, and no edit overwrites it`, () => {
    const { widget, edits } = makeEdits(text);
    assert.ok(edits.problem instanceof UnreadableEdits);
    assert.equal(edits.problem.entry, entry);
    assert.equal(edits.find(CAT), undefined);
    assert.throws(() => edits.set(CAT, "mine"), UnreadableEdits);
    assert.throws(() => edits.forget(["a.png"]), UnreadableEdits);
    assert.equal(widget.value, text);
    edits.discard();
    assert.equal(widget.value, "");
    assert.equal(edits.problem, undefined);
    edits.set(CAT, "mine");
    assert.equal(edits.find(CAT)?.caption, "mine");
  });
}

test("an edit is written under the sha256 and found again under the name or the sha256", () => {
  const { widget, edits } = makeEdits();
  edits.set(CAT, "mine");
  assert.deepEqual(JSON.parse(widget.value), {
    [CAT.sha256]: { caption: "mine", incoming: "a red cat" },
  });
  assert.equal(edits.find({ ...CAT, name: "renamed.png" })?.caption, "mine");
  assert.equal(makeEdits('{"cat.png": "by name"}').edits.find(CAT)?.caption, "by name");
});

test("an edit under the name wins over one under the sha256, and a new edit replaces both", () => {
  const { widget, edits } = makeEdits(JSON.stringify({ "cat.png": "name", [CAT.sha256]: "hash" }));
  assert.equal(edits.find(CAT)?.caption, "name");
  edits.set(CAT, "mine");
  assert.deepEqual(Object.keys(JSON.parse(widget.value)), [CAT.sha256]);
});

test("an edit that equals the incoming caption does not count", () => {
  const { widget, edits } = makeEdits(
    JSON.stringify({ "cat.png": { caption: CAT.caption, incoming: "older" } }),
  );
  assert.equal(edits.find(CAT), undefined);
  edits.set(CAT, "mine");
  edits.set(CAT, CAT.caption);
  assert.equal(widget.value, "");
});

test("an edit may empty a caption", () => {
  const { edits } = makeEdits();
  edits.set(CAT, "");
  assert.equal(edits.find(CAT)?.caption, "");
});

test("two images with the same content have separate edits", () => {
  const { edits } = makeEdits();
  edits.set(FIRST_COPY, "first");
  edits.set(SECOND_COPY, "second");
  assert.deepEqual(
    [FIRST_COPY, SECOND_COPY].map((image) => edits.find(image)?.caption),
    ["first", "second"],
  );
});

test("one copy returns to its incoming caption while an edit for both stays", () => {
  const { edits } = makeEdits(JSON.stringify({ [FIRST_COPY.sha256]: "both" }));
  edits.set(FIRST_COPY, FIRST_COPY.caption);
  assert.equal(edits.find(FIRST_COPY), undefined);
  assert.equal(edits.find(SECOND_COPY)?.caption, "both");
});

for (const caption of [
  'quotes "double" and ‘single’, a \\ backslash',
  "two\nlines\tand a tab",
  "é as two characters: e\u0301",
  "a family: 👩‍👩‍👧‍👦, a flag: 🇫🇷, a thumb: 👍🏽",
  "赤い猫が庭で眠っている",
  "شجرة خضراء",
  "{count} <b>@:not.a.key | plural</b>",
  "word ".repeat(20_000),
]) {
  test(`a caption comes back as it was written: ${JSON.stringify(caption.slice(0, 40))}`, () => {
    const { widget, edits } = makeEdits();
    edits.set(CAT, caption);
    assert.equal(makeEdits(widget.value).edits.find(CAT)?.caption, caption);
  });
}

test("a file called __proto__ is a file", () => {
  const { widget, edits } = makeEdits();
  edits.set({ ...CAT, name: "__proto__", isCopy: true }, "mine");
  assert.equal(makeEdits(widget.value).edits.find({ ...CAT, name: "__proto__" })?.caption, "mine");
});

test("fields that a newer version adds to an edit are kept", () => {
  const { widget, edits } = makeEdits(
    '{"dog.png": {"caption": "x", "author": "me"}, "fox.png": {"caption": "y", "author": "you"}}',
  );
  edits.set(DOG, "mine");
  assert.deepEqual(JSON.parse(widget.value), {
    "fox.png": { caption: "y", author: "you" },
    [DOG.sha256]: { caption: "mine", author: "me", incoming: "a dog" },
  });
});

test("edits for other images stay until they are forgotten", () => {
  const { widget, edits } = makeEdits('{"gone.png": "x", "cat.png": "mine"}');
  edits.set(DOG, "mine too");
  assert.deepEqual(edits.unknownKeys([CAT, DOG]), ["gone.png"]);
  edits.forget(["gone.png"]);
  assert.deepEqual(Object.keys(JSON.parse(widget.value)), ["cat.png", DOG.sha256]);
});

test("undo restores what a change of many captions replaced, byte for byte", () => {
  const before = '{"cat.png":"mine","gone.png":"x"}';
  const { widget, edits } = makeEdits(before);
  const step = edits.change([CAT, DOG].map((image) => ({ image, caption: "changed" })));
  assert.equal(edits.count, 3);
  edits.undo(step);
  assert.deepEqual(parseEdits(widget.value), parseEdits(before));
});

test("undo keeps a caption that was edited after the change", () => {
  const { widget, edits } = makeEdits('{"cat.png": "mine"}');
  const step = edits.change([CAT, DOG].map((image) => ({ image, caption: "changed" })));
  edits.set(CAT, "edited later");
  widget.value = ` ${widget.value}`; // as if changed from outside, so that it is parsed again
  edits.undo(step);
  assert.equal(edits.find(CAT)?.caption, "edited later");
  assert.equal(edits.find(DOG), undefined);
});

test("the text is parsed once, and again only after a change from outside", (t) => {
  const { widget, edits } = makeEdits('{"cat.png": "mine"}');
  const parse = t.mock.method(JSON, "parse");
  for (let key = 0; key < 100; key++) {
    edits.set(CAT, `mine ${key}`);
    edits.find(CAT);
    edits.find(DOG);
  }
  assert.equal(parse.mock.callCount(), 1);
  widget.value = '{"dog.png": "theirs"}';
  assert.equal(edits.find(DOG)?.caption, "theirs");
  assert.equal(edits.find(CAT), undefined);
  assert.equal(parse.mock.callCount(), 2);
});
