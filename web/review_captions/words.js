// @ts-check
/**
 * Every word that the widget shows, in English.
 * Translations are in locales/<language>/main.json, under LoRATrainer.ReviewCaptions.
 */

/** @typedef {keyof typeof ENGLISH} WordKey */
/** @typedef {import("../shared/translation.js").Translate<WordKey>} Translate */

export const ENGLISH = {
  noImagesYet: "No captions yet",
  connectAndRun: "Connect a dataset and run once: its images appear here with their captions.",
  keptEdits: {
    one: "This workflow has {count} edited caption, which will be used.",
    other: "This workflow has {count} edited captions, which will be used.",
  },
  noMatch: "No caption matches the search.",
  serverFailed: "ComfyUI did not answer as expected: {reason}",

  unreadable: "This workflow’s edited captions cannot be read: {reason}",
  unreadableEntry:
    "This workflow’s edited captions cannot be read: “{entry}” is not an edited caption",
  unreadableAdvice:
    "A newer version of ComfyUI-LoRA-Trainer may have written them. They stay as they are " +
    "until you discard them; copy them first if you need them.",
  copyEdits: "Copy the edits",
  copied: "Copied",
  discardEdits: "Discard the edits",

  search: "Search captions and names",
  searchHint: "Search captions and names (Ctrl+F)",
  filter: "Captions to show",
  filterOption: "{filter} ({count})",
  filterAll: "All",
  filterEdited: "Edited",
  filterOutdated: "Changed since edited",
  filterEmpty: "Empty",
  filterNoTriggerWord: "No trigger word",
  filterLong: "Over {max} tokens",

  bulkChange: "Change all shown captions",
  operation: "What to do with all shown captions",
  addInFront: "Add in front",
  addAtTheEnd: "Add at the end",
  remove: "Remove",
  replace: "Replace",
  text: "Text",
  textToAdd: "tag or words to add",
  textToRemove: "text to remove",
  textToReplace: "text to replace",
  replacement: "Replace with",
  replacementHint: "with",
  matchCase: "Match case",
  wholeWords: "Whole words only",
  preview: "Preview",
  previewHint: "See what would change in the captions shown",
  undo: "Undo",
  undoHint: "Undo: {change}",

  namedAddInFront: "Add “{text}” in front",
  namedAddAtTheEnd: "Add “{text}” at the end",
  namedRemove: "Remove “{text}”",
  namedReplace: "Replace “{text}” with “{replacement}”",
  wouldChange: {
    one: "{changed} of {count} shown caption would change",
    other: "{changed} of {count} shown captions would change",
  },
  changes: "Changes",
  apply: { one: "Change {count} caption", other: "Change {count} captions" },
  cancel: "Cancel",
  close: "Close",

  captionOf: "Caption of {name}",
  noCaption: "No caption",
  imageSize: "{name}, {width} × {height}",
  empty: "empty",
  emptyHint: "Training leaves out images without a caption",
  noTriggerWord: "no trigger word",
  noTriggerWordHint: "{word} is missing. A run puts it in front",
  edited: "edited",
  editedHint: "Came in as: {caption}",
  emptyCaption: "(empty)",
  tokensHint: "CLIP tokens. {max} fit into one chunk",
  revert: "Revert",
  revertHint: "Go back to the caption that came in",
  outdated: "Since your edit, this caption came in:",
  keepEdit: "Keep my edit",
  takeIncoming: "Take the new one",

  numImages: { one: "{count} image", other: "{count} images" },
  numEdited: { one: "{count} edited", other: "{count} edited" },
  numShown: { one: "{count} shown", other: "{count} shown" },
  forgetUnknown: {
    one: "Forget {count} edit of other images",
    other: "Forget {count} edits of other images",
  },
  forgetUnknownHint: "Forget the edits of images that are not in this dataset",
  useAndRun: "Use these captions and run",
  waits: "Nothing after this node runs until you review the captions",
  reviewed: "✓ Reviewed",
  reviewWanted: "The captions wait for your review",
  reviewWantedHint: "Read them on {node}, then press {button}.",
};
