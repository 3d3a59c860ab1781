/** Token counts: one request for each caption, a moment after the last key. */

import assert from "node:assert/strict";
import test from "node:test";

import { CaptionFacts } from "../../web/review_captions/caption_facts.js";

const FACTS = { num_tokens: 1, num_chunks: 1, has_trigger_word: true };
const image = { trigger_word: "sks" };

/** @param {import("node:test").TestContext} t */
function makeFacts(t) {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const asked = [];
  const facts = new CaptionFacts((subjects) => {
    asked.push(subjects.map(([caption]) => caption));
    facts.add(
      subjects,
      subjects.map(() => FACTS),
    );
  });
  return { facts, asked, wait: () => t.mock.timers.tick(1000) };
}

test("each caption is requested once, however many images have it", (t) => {
  const { facts, asked, wait } = makeFacts(t);
  for (const caption of ["cat", "dog", "cat"])
    assert.equal(facts.find({ caption, image }), undefined);
  wait();
  assert.deepEqual(asked, [["cat", "dog"]]);
  assert.equal(facts.find({ caption: "cat", image }), FACTS);
  wait();
  assert.equal(asked.length, 1);
});

test("while the user types, only the last caption is requested", (t) => {
  const { facts, asked, wait } = makeFacts(t);
  const typed = { caption: "", image };
  for (const caption of ["c", "ca", "cat"]) {
    typed.caption = caption;
    facts.find(typed);
  }
  wait();
  assert.deepEqual(asked, [["cat"]]);
});

test("a caption that one image no longer has is requested as long as another has it", (t) => {
  const { facts, asked, wait } = makeFacts(t);
  const [other, typed] = [
    { caption: "cat", image },
    { caption: "cat", image },
  ];
  facts.find(other);
  facts.find(typed);
  typed.caption = "cats";
  facts.find(typed);
  wait();
  assert.deepEqual(asked, [["cat", "cats"]]);
});

test("nothing is requested after the widget is removed", (t) => {
  const { facts, asked, wait } = makeFacts(t);
  facts.find({ caption: "cat", image });
  facts.stop();
  wait();
  assert.deepEqual(asked, []);
});
