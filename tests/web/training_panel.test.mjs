/** The training panel's modules that need no browser: numbers, curves, scales, whom it follows. */

import assert from "node:assert/strict";
import test from "node:test";

import { createTranslate } from "../../web/shared/translation.js";
import { Announcer } from "../../web/training_panel/announcer.js";
import {
  createScale,
  drawArea,
  drawLine,
  findNearest,
  findRange,
  findTicks,
} from "../../web/training_panel/chart_scale.js";
import { prepareCurves, readValues } from "../../web/training_panel/curves.js";
import { findExecutionIds } from "../../web/training_panel/execution_ids.js";
import {
  RUNNING_INTERVAL,
  RunFollower,
  WAITING_INTERVAL,
} from "../../web/training_panel/follower.js";
import { Formats } from "../../web/training_panel/formats.js";
import { canResume, measureProgress, nameStatus } from "../../web/training_panel/run.js";
import { smooth } from "../../web/training_panel/smoothing.js";
import { ENGLISH } from "../../web/training_panel/words.js";

const formats = new Formats("en", createTranslate("en", ENGLISH));

function describeRun(name, status, changes = {}) {
  return {
    summary: { name, status, stage: "training", step: 5, total: 10, updated_at: 1, ...changes },
    curve: { step: [], loss: [], low: [], high: [], average: [], learning_rate: [] },
    validation: { step: [], loss: [], ema_loss: [] },
  };
}

// ---- execution ids ----

test("a node has the id of its path, one per use of its subgraph", () => {
  const trainer = { id: 5 };
  const inner = { nodes: [{ id: 4 }, trainer] };
  const outer = { nodes: [{ id: 7, subgraph: inner }] };
  const graph = { nodes: [{ id: 1 }, { id: 12, subgraph: inner }, { id: 13, subgraph: outer }] };
  assert.deepEqual(findExecutionIds(graph, trainer), ["12:5", "13:7:5"]);
  assert.deepEqual(findExecutionIds(graph, graph.nodes[0]), ["1"]);
  assert.deepEqual(findExecutionIds(graph, { id: 5 }), [], "another node with the same number");
});

test("a subgraph that contains itself ends", () => {
  const graph = { nodes: [] };
  graph.nodes.push({ id: 1, subgraph: graph });
  assert.ok(findExecutionIds(graph, graph.nodes[0]).length < 100);
});

// ---- numbers ----

test("numbers are short and keep their digits", () => {
  assert.deepEqual(
    [0.10437, 0, 12.5, 1234.56, 0.00012].map((each) => formats.loss(each)),
    ["0.1044", "0.0000", "12.5000", "1,234.6", "1.20e-4"],
  );
  const rates = [1e-4, 9.75e-5, 2e-4, 0, 1];
  assert.deepEqual(
    rates.map((each) => formats.learningRate(each)),
    ["1e-4", "9.75e-5", "2e-4", "0", "1e+0"],
  );
  assert.deepEqual(
    [1.6, 123.456, 0.25, 0, null].map((each) => formats.speed(each)),
    ["1.60 it/s", "123.46 it/s", "4.0 s/it", "–", "–"],
  );
  assert.deepEqual(
    [0, 59.6, 250, 3600, 90_061, -1, undefined].map((each) => formats.duration(each)),
    ["0:00", "1:00", "4:10", "1:00:00", "25:01:01", "–", "–"],
  );
  assert.deepEqual(
    [0, 700_000, 8.4 * 2 ** 30].map((each) => formats.bytes(each)),
    ["–", "0.7 MB", "8.4 GB"],
  );
});

test("a hundred percent are only said at the end", () => {
  assert.deepEqual(
    [0, 0.999, 1].map((each) => formats.percent(each)),
    ["0%", "99%", "100%"],
  );
  assert.equal(new Formats("fr", () => "").loss(0.5), "0,5000");
});

// ---- curves ----

test("a constant curve stays as it is", () => {
  for (const value of smooth(Array(50).fill(0.3))) assert.ok(Math.abs(value - 0.3) < 1e-12);
});

test("smoothing starts without a pull, is calmer, and follows", () => {
  const values = Array.from(
    { length: 200 },
    (_, index) => 1 - index / 200 + (index % 2 ? 0.2 : -0.2),
  );
  const smoothed = smooth(values);
  const jumps = (curve) =>
    curve.slice(1).reduce((sum, value, index) => sum + Math.abs(value - curve[index]), 0);
  assert.equal(smoothed[0], values[0]);
  assert.ok(jumps(smoothed.slice(20)) < jumps(values.slice(20)) / 10);
  assert.ok(Math.abs(smoothed.at(-1) - 0.05) < 0.06);
  assert.deepEqual(smooth([]), []);
  assert.deepEqual(smooth([1, 2, 3]), [1, 2, 3], "a few points are not smoothed");
});

test("single jumps do not stretch the chart, and what is certain is never outside of it", () => {
  const noisy = Array.from({ length: 1000 }, (_, index) => 0.1 + (index % 10) / 100);
  noisy[500] = 50;
  const [low, high] = findRange([0.3], noisy);
  assert.ok(low >= 0 && low < 0.1 && high > 0.3 && high < 0.4);
  assert.deepEqual(findRange([], []), [0, 1]);
  const [flatLow, flatHigh] = findRange([0.5], [0.5, 0.5]);
  assert.ok(flatLow < 0.5 && flatHigh > 0.5);
});

test("ticks are round numbers inside of the range", () => {
  assert.deepEqual(findTicks(0.07, 0.19, 4), [0.1, 0.15]);
  assert.deepEqual(findTicks(0, 1000, 5), [0, 200, 400, 600, 800, 1000]);
  assert.deepEqual(findTicks(0, 1, 2), [0, 0.5, 1]);
  for (const [low, high] of [
    [1, 1],
    [0, Infinity],
    [NaN, 1],
    [2, 1],
  ])
    assert.deepEqual(findTicks(low, high, 5), []);
});

test("scales and paths put values in their places", () => {
  const y = createScale([0, 2], [100, 0]);
  assert.deepEqual([0, 1, 2].map(y), [100, 50, 0]);
  assert.equal(createScale([1, 1], [0, 100])(1), 0);
  assert.equal(drawLine([0, 1, 2, 3], [5, null, 6, 7]), "M0.0 5.0M2.0 6.0L3.0 7.0");
  assert.equal(drawArea([0, 1], [1, 2], [3, 4]), "M0.0 3.0L1.0 4.0L1.0 2.0L0.0 1.0Z");
  assert.equal(drawArea([], [], []), "");
  assert.deepEqual(
    [-1, 1, 14, 16, 99].map((step) => findNearest([1, 10, 20], step)),
    [0, 0, 1, 2, 2],
  );
});

test("the values at a step are those of its point, and of the other run nearby", () => {
  const run = describeRun("a", "running");
  const [step, loss] = [
    [1, 2, 3, 4],
    [4, 3, 2, 1],
  ];
  run.curve = { step, loss, low: loss, high: loss, average: loss, learning_rate: [null, 1, 2, 3] };
  run.validation = { step: [2, 4], loss: [9, 8], ema_loss: [null, 12] };
  const other = describeRun("b", "finished");
  other.curve = { ...run.curve, step: [1, 9], loss: [7, 6], low: [7, 6], high: [7, 6] };
  const curves = prepareCurves(run, other);
  assert.equal(curves.lastStep, 9);
  assert.equal(curves.maxLearningRate, 3);
  const first = readValues(curves, 0);
  assert.deepEqual(
    [first.step, first.loss, first.learningRate, first.validation, first.other],
    [1, 4, null, undefined, 7],
  );
  assert.deepEqual([readValues(curves, 2).validation, readValues(curves, 3).validation], [9, 8]);
  const averaged = [0, 2, 3].map((index) => readValues(curves, index).emaValidation);
  assert.deepEqual(averaged, [undefined, undefined, 12]);
  assert.ok(curves.range[1] > 12, "its line is inside of the chart");
  assert.equal(readValues(prepareCurves(run), 3).other, undefined);
  assert.equal(prepareCurves(describeRun("empty", "running")).lastStep, 1);
});

// ---- states ----

test("a status has a name, and a run that was cut off can go on", () => {
  const name = (status, stage = "training") => nameStatus({ status, stage });
  assert.deepEqual(
    [name("running", "caching"), name("running", "new"), name("finished early"), name("stopped")],
    ["caching", "training", "finishedEarly", "stopped"],
  );
  assert.deepEqual(
    ["running", "paused", "stopped", "cancelled", "finished", "failed"].filter((status) =>
      canResume({ status }),
    ),
    ["paused", "stopped", "cancelled", "failed"],
  );
  assert.equal(measureProgress({ step: 5, total: 0 }), 0);
  assert.equal(measureProgress({ step: 12, total: 10 }), 1);
});

test("an end is announced once, and only if the run was seen going on", () => {
  const announced = [];
  const announcer = new Announcer((severity, run) => announced.push([severity, run.summary.name]));
  const running = describeRun("a", "running");
  const failed = describeRun("a", "failed", { updated_at: 5 });
  announcer.notice(undefined, describeRun("old", "finished"));
  announcer.notice(undefined, undefined);
  announcer.notice(running, running);
  announcer.notice(running, describeRun("b", "finished"));
  assert.deepEqual(announced, []);
  announcer.notice(running, failed);
  announcer.notice(running, failed); // another panel
  announcer.notice(running, describeRun("a", "finished", { updated_at: 9 })); // it went on
  assert.deepEqual(announced, [
    ["error", "a"],
    ["success", "a"],
  ]);
});

/** A server with these runs, whose timer is turned by hand. */
function createWorld(runs) {
  const world = {
    runs,
    asked: [],
    timers: [],
    listOwn: async () => {
      world.asked.push("list");
      return world.runs.map((run) => run.summary);
    },
    read: async (name) => {
      world.asked.push(name);
      const found = world.runs.find((run) => run.summary.name === name);
      if (!found) throw new Error("There is no run of this name");
      return found;
    },
    setTimer: (then, milliseconds) => world.timers.push({ then, milliseconds }),
    clearTimer: () => {},
  };
  return world;
}

function follow(runs) {
  const world = createWorld(runs);
  const follower = new RunFollower(world, (previous) => world.changes.push(previous?.summary.name));
  world.changes = [];
  return { world, follower };
}

test("without a run the server is asked once", async () => {
  const { world, follower } = follow([]);
  await follower.wake();
  assert.deepEqual([world.asked, world.timers, follower.run], [["list"], [], undefined]);
});

test("a run that goes on is asked for every two seconds, and no longer when it has ended", async () => {
  const { world, follower } = follow([describeRun("a", "running")]);
  await follower.wake();
  await world.timers[0].then();
  assert.deepEqual(world.asked, ["list", "a", "a"]);
  assert.deepEqual(
    world.timers.map((timer) => timer.milliseconds),
    [RUNNING_INTERVAL, RUNNING_INTERVAL],
  );
  world.runs = [describeRun("a", "finished")];
  await world.timers[1].then();
  assert.equal(world.timers.length, 2);
  assert.equal(follower.run.summary.status, "finished");
  assert.deepEqual(world.changes, [undefined, "a", "a"]);
});

test("while the server is busy a new run is looked for", async () => {
  const { world, follower } = follow([describeRun("a", "finished")]);
  follower.isBusy = true;
  await follower.wake();
  world.runs.unshift(describeRun("b", "running"));
  await world.timers[0].then();
  assert.equal(follower.run.summary.name, "b");
  assert.deepEqual(
    world.timers.map((timer) => timer.milliseconds),
    [WAITING_INTERVAL, RUNNING_INTERVAL],
  );
});

test("a chosen run stays until a new one begins", async () => {
  const { world, follower } = follow([describeRun("b", "finished"), describeRun("a", "failed")]);
  follower.chosen = "a";
  await follower.wake();
  assert.equal(follower.run.summary.name, "a");
  world.runs.unshift(describeRun("c", "running"));
  await follower.wake();
  assert.deepEqual([follower.run.summary.name, follower.chosen], ["c", ""]);
});

test("the run laid over is read once, unless it goes on too", async () => {
  const { world, follower } = follow([describeRun("a", "running"), describeRun("b", "finished")]);
  follower.comparedName = "b";
  await follower.wake();
  await world.timers[0].then();
  assert.deepEqual(world.asked, ["list", "a", "b", "a"]);
  follower.comparedName = "gone";
  await follower.wake();
  assert.deepEqual([follower.compared, follower.failure], [undefined, ""]);
});

test("a server that does not answer is said and asked again, and the run stays", async () => {
  const { world, follower } = follow([describeRun("a", "running")]);
  await follower.wake();
  const { read } = world;
  world.read = async () => {
    throw new Error("Failed to fetch");
  };
  await world.timers[0].then();
  assert.deepEqual([follower.failure, follower.run.summary.name], ["Failed to fetch", "a"]);
  assert.equal(world.timers.at(-1).milliseconds, WAITING_INTERVAL);
  world.read = read;
  world.runs = [describeRun("a", "stopped")]; // the server was started again
  await world.timers.at(-1).then();
  assert.deepEqual([follower.failure, follower.run.summary.status], ["", "stopped"]);
});

test("waking while it asks makes it ask once more, and stopping ends everything", async () => {
  const { world, follower } = follow([describeRun("a", "running")]);
  await Promise.all([follower.wake(), follower.wake(), follower.wake()]);
  assert.deepEqual(world.asked, ["list", "a", "a"]);
  assert.equal(world.timers.length, 1);
  follower.stop();
  await world.timers[0].then();
  assert.deepEqual(world.asked, ["list", "a", "a"]);
});
