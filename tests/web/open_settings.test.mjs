/** What the widgets of settings that were left open show. */

import assert from "node:assert/strict";
import test from "node:test";

import {
  addChoice,
  answersWidgets,
  chooseFor,
  removeChoice,
} from "../../web/open_settings/choices.js";

const WIDGETS = { goal: "object", memory: "auto", rank: 0, train_batch_size: 2, optimizer: "auto" };
const RUN = {
  goal: "object",
  memory: "auto",
  given: { train_batch_size: 2 },
  chosen: { rank: 16, optimizer: "AdamW", max_train_steps: 400 },
};
const RUN_WIDGETS = { ...WIDGETS, max_train_steps: 0 };

test("a run answers the widgets that it was started with", () => {
  assert.ok(answersWidgets(RUN, RUN_WIDGETS));
  assert.ok(answersWidgets(RUN, { ...RUN_WIDGETS, seed: 7 }));
});

test("a run does not answer widgets that have changed since", () => {
  for (const change of [
    { goal: "style" },
    { memory: "8 GB" },
    { train_batch_size: 4 },
    { train_batch_size: 0 },
    { rank: 8 },
    { goal: undefined },
  ])
    assert.ok(!answersWidgets(RUN, { ...RUN_WIDGETS, ...change }), JSON.stringify(change));
});

test("open widgets show what was chosen, and others nothing", () => {
  const presets = { rank: 16, train_batch_size: 1, gradient_checkpointing: false };
  const values = { ...RUN_WIDGETS, gradient_checkpointing: "auto" };
  assert.deepEqual(chooseFor(values, presets), { rank: "16", gradient_checkpointing: "off" });
  assert.deepEqual(chooseFor(values, presets, RUN), {
    rank: "16",
    gradient_checkpointing: "off",
    optimizer: "AdamW",
    max_train_steps: "400",
  });
  assert.deepEqual(chooseFor({ ...values, goal: "style" }, presets, RUN), {
    rank: "16",
    gradient_checkpointing: "off",
  });
  assert.deepEqual(chooseFor({ learning_rate: 0 }, { learning_rate: 0.0001 }), {
    learning_rate: "0.0001",
  });
});

test("the choice is added to a label and removed again", () => {
  for (const label of ["rank", "最大学習ステップ数"]) {
    assert.equal(addChoice(label, "16"), `${label} → 16`);
    assert.equal(addChoice(addChoice(label, "16"), "32"), `${label} → 32`);
    assert.equal(removeChoice(addChoice(label, "16")), label);
    assert.equal(addChoice(`${label} → 16`, undefined), label);
  }
});
