// @ts-check
/**
 * Edited captions as the node's `edits` widget, and so the workflow, keeps them.
 * trainers/captions/edits.py reads the same JSON and decides which captions count.
 */

/** @typedef {{ name: string, sha256: string, caption: string, isCopy: boolean }} EditableImage */
/** @typedef {{ caption: string, incoming?: string | null }} Edit */
/** @typedef {{ image: EditableImage, caption: string }} CaptionChange */
/** @typedef {(Edit | undefined)[]} EditsOfKeys */
/** @typedef {{ keys: string[], before: EditsOfKeys, after: EditsOfKeys }[]} UndoStep */

/** The text is not what this version reads. `entry` is the part at fault; without it, no JSON. */
export class UnreadableEdits extends Error {
  /**
   * @param {string} message
   * @param {string} [entry]
   */
  constructor(message, entry) {
    super(message);
    this.entry = entry;
  }
}

/**
 * Edits by the image's sha256 or its name.
 * @param {string} text
 * @returns {Map<string, Edit>}
 */
export function parseEdits(text) {
  if (!text.trim()) return new Map();
  const entries = parseJson(text);
  if (typeof entries !== "object" || entries === null || Array.isArray(entries)) {
    throw new UnreadableEdits("not a JSON object", text.trim().slice(0, 40));
  }
  return new Map(Object.entries(entries).map(([key, entry]) => [key, parseEdit(key, entry)]));
}

/** @param {string} text */
function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new UnreadableEdits(/** @type {Error} */ (error).message);
  }
}

/**
 * @param {string} key
 * @param {any} entry
 * @returns {Edit}
 */
function parseEdit(key, entry) {
  if (typeof entry === "string") return { caption: entry };
  const isEdit = typeof entry?.caption === "string";
  if (isEdit && ["string", "undefined"].includes(typeof (entry.incoming ?? undefined)))
    return entry;
  throw new UnreadableEdits(`${key}: ${JSON.stringify(entry).slice(0, 40)}`, key);
}

/** @param {Map<string, Edit>} edits */
export function serializeEdits(edits) {
  return edits.size ? JSON.stringify(Object.fromEntries(edits)) : "";
}

/** The edits of one node. Parses the widget's text only after somebody else has changed it. */
export class Edits {
  /** @type {string | undefined} */
  #text;
  /** @type {Map<string, Edit>} */
  #edits = new Map();
  /** @type {UnreadableEdits | undefined} */
  #problem;

  /** @param {{ value: unknown }} widget */
  constructor(widget) {
    this.widget = widget;
  }

  /** Why the text cannot be read. While there is a problem, only `discard` changes the text. */
  get problem() {
    this.#read();
    return this.#problem;
  }

  get count() {
    return this.#read().size;
  }

  /**
   * The edit that counts for this image. One that repeats the incoming caption is none.
   * @param {EditableImage} image
   */
  find(image) {
    const edits = this.#read();
    const edit = edits.get(image.name) ?? edits.get(image.sha256);
    return edit && edit.caption !== image.caption ? edit : undefined;
  }

  /**
   * @param {EditableImage} image
   * @param {string} caption
   */
  set(image, caption) {
    this.change([{ image, caption }]);
  }

  /**
   * Changes several captions at once.
   * @param {CaptionChange[]} changes
   * @returns {UndoStep}
   */
  change(changes) {
    const edits = this.#readForChange();
    const step = changes.map(({ image, caption }) => {
      const keys = ownKeys(image);
      const before = keys.map((key) => edits.get(key));
      setEdit(edits, image, caption);
      return { keys, before, after: keys.map((key) => edits.get(key)) };
    });
    this.#write(edits);
    return step;
  }

  /**
   * Takes a change back, except for captions that were edited again after it.
   * @param {UndoStep} step
   */
  undo(step) {
    const edits = this.#readForChange();
    for (const { keys, before, after } of step) {
      if (JSON.stringify(keys.map((key) => edits.get(key))) !== JSON.stringify(after)) continue;
      keys.forEach((key, index) => restore(edits, key, before[index]));
    }
    this.#write(edits);
  }

  /**
   * Keys that none of these images has.
   * @param {EditableImage[]} images
   */
  unknownKeys(images) {
    const known = new Set(images.flatMap((image) => [image.name, image.sha256]));
    return [...this.#read().keys()].filter((key) => !known.has(key));
  }

  /** @param {string[]} keys */
  forget(keys) {
    const edits = this.#readForChange();
    for (const key of keys) edits.delete(key);
    this.#write(edits);
  }

  discard() {
    this.#write(new Map());
  }

  #read() {
    const text = String(this.widget.value ?? "");
    if (text === this.#text) return this.#edits;
    this.#text = text;
    this.#problem = undefined;
    try {
      this.#edits = parseEdits(text);
    } catch (error) {
      if (!(error instanceof UnreadableEdits)) throw error;
      this.#problem = error;
      this.#edits = new Map();
    }
    return this.#edits;
  }

  #readForChange() {
    const edits = this.#read();
    if (this.#problem) throw this.#problem;
    return edits;
  }

  /** @param {Map<string, Edit>} edits */
  #write(edits) {
    this.#edits = edits;
    this.#problem = undefined;
    this.#text = serializeEdits(edits);
    this.widget.value = this.#text;
  }
}

/**
 * The keys that belong to this image alone: two files with the same content share their sha256.
 * @param {EditableImage} image
 */
function ownKeys(image) {
  return image.isCopy ? [image.name] : [image.sha256, image.name];
}

/**
 * Writes the edit under the sha256, so that a renamed file keeps it; under the name for a copy.
 * @param {Map<string, Edit>} edits
 * @param {EditableImage} image
 * @param {string} caption
 */
function setEdit(edits, image, caption) {
  const keys = ownKeys(image);
  const previous = keys.map((key) => edits.get(key)).find((edit) => edit !== undefined);
  for (const key of keys) edits.delete(key);
  const isShadowed = image.isCopy && edits.has(image.sha256);
  if (caption === image.caption && !isShadowed) return;
  edits.set(keys[0], { ...previous, caption, incoming: image.caption });
}

/**
 * @param {Map<string, Edit>} edits
 * @param {string} key
 * @param {Edit | undefined} edit
 */
function restore(edits, key, edit) {
  if (edit === undefined) edits.delete(key);
  else edits.set(key, edit);
}
