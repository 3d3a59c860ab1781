// @ts-check
/**
 * Every word that the panel shows, in English.
 * Translations are in locales/<language>/main.json, under LoRATrainer.TrainingPanel.
 */

/** @typedef {keyof typeof ENGLISH} WordKey */
/** @typedef {import("../shared/translation.js").Translate<WordKey>} Translate */

export const ENGLISH = {
  panel: "Training",
  noRun: "No training yet",
  show: "Show the training",
  hide: "Hide the training",
  noAnswer: "ComfyUI does not answer as expected: {reason}",

  loading: "Loading the model",
  caching: "Preparing the images",
  training: "Training",
  saving: "Saving",
  finished: "Finished",
  finishedEarly: "Finished early",
  cancelled: "Cancelled",
  paused: "Paused",
  failed: "Failed",
  stopped: "Ended unexpectedly",
  stepOf: "step {step} of {total}",
  announced: "{status}, {percent}",

  loss: "Loss",
  lossHint: "Mean loss of the last 100 steps",
  validation: "Validation",
  validationOfEma: "Validation (EMA)",
  bestAt: "best at step {step}",
  stableLoss: "Stable loss",
  learningRate: "Learning rate",
  speed: "Speed",
  timeLeft: "Time left",
  timeTaken: "Time taken",
  memory: "Memory",
  memoryOf: "of {budget}",
  unknown: "–",

  step: "Step {step}",
  eachStep: "Loss",
  smoothed: "Smoothed",
  valuesAtStep: "Values of the curves at a step",
  noCurve: "The curves begin with the first step.",
  chartSummary:
    "Loss over {step} steps: smoothed, it was {first} at first and is {last} now; " +
    "it was lowest at step {lowestStep}, with {lowest}.",

  run: "Run",
  latestRun: "Latest of this node",
  compare: "Compare with",
  noOtherRun: "No other run",

  samples: "Samples",
  samplesOf: "Samples of step {step}",
  openSamples: "Open the samples of step {step}",

  loraFiles: "LoRA files",
  result: "Result",
  resultOfEma: "Result, averaged (EMA)",
  epoch: "Epoch {epoch}",
  best: "best",
  moreFiles: { one: "{count} more in its folder", other: "{count} more in its folder" },
  useLora: "Use",
  useLoraHint: "Choose {name} in the selected Load LoRA, or in a new one below this node",
  used: "{node} loads it now.",
  copyPath: "Copy path",
  copyPathHint: "Copy the path of {name} and say where it can be used",
  copied: "Path copied",
  listed: "Load LoRA lists it as {name}.",
  notListed:
    "Paste it into loras of Compare Checkpoints. Load LoRA does not list this folder: copy the " +
    "file into models/loras. To train on from it, choose it in network_weights.",

  settings: "Settings",
  finishNow: "Finish now",
  finishNowHint: "After this step, save the LoRA and go on with the next node",
  pause: "Pause",
  pauseHint: "After this step, keep everything and stop; Resume goes on from there",
  cancel: "Cancel",
  cancelHint: "Stop the prompt; the weights of the last step are kept",
  resume: "Resume",
  resumeHint: "Queue the prompt again; the training goes on where it was",
  finishAsked: "Finishes after this step",
  pauseAsked: "Pauses after this step",
  cancelAsked: "Cancelling",
  notify: "Notify me at the end",
  notifyHint: "Show a notification of the browser when a training ends or fails",
  notifyDenied: "The browser does not allow notifications of this page",
};
