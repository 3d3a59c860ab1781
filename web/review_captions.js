/** The Review Captions node: its pictures with an editable caption each. Which captions count is decided in trainers/caption_edits.py. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const NODE_TYPE = "LoRATrainer_ReviewCaptions";
const KEY_PROPERTY = "caption_review"; // saved with the workflow: what the server finds the last run's captions by
const TOKENS_PER_CHUNK = 75;
const USE_AND_RUN = "Use these captions and run";
const NODE_SIZE = [760, 720];
const MIN_HEIGHT = 320;
const OPERATIONS = ["add in front", "add at the end", "remove", "replace"];
const FILTERS = {
    all: { label: "All", fits: () => true },
    edited: { label: "Edited", fits: (row) => row.edit !== undefined },
    conflict: { label: "Changed since edited", fits: (row) => row.isOutdated },
    empty: { label: "Empty", fits: (row) => !row.caption.trim() },
    trigger: { label: "No trigger word", fits: (row) => row.lacksTriggerWord },
    long: { label: `Over ${TOKENS_PER_CHUNK} tokens`, fits: (row) => row.facts?.num_chunks > 1 },
};

app.registerExtension({
    name: "lora_trainer.review_captions",
    nodeCreated(node) {
        if (node.comfyClass === NODE_TYPE) addReview(node);
    },
});

function addReview(node) {
    loadStyles();
    const review = new CaptionReview(node);
    const widget = node.addDOMWidget("caption_review", "caption_review", review.element, {
        serialize: false,
        hideOnZoom: false,
        getMinHeight: () => MIN_HEIGHT,
    });
    widget.serialize = false;
    chain(widget, "onRemove", () => review.remove());
    chain(node, "onConfigure", () => review.restore());
    chain(node, "onExecuted", (output) => review.show(output?.lora_trainer_review?.[0]));
    chain(findWidget(node, "wait_for_review"), "callback", () => review.updateConfirmation());
    node.setSize([Math.max(node.size[0], NODE_SIZE[0]), Math.max(node.size[1], NODE_SIZE[1])]);
}

/** After `object[name]`, if there is one, also call `then` with the same arguments. */
function chain(object, name, then) {
    const original = object[name];
    object[name] = function (...values) {
        const result = original?.apply(this, values);
        then(...values);
        return result;
    };
}

function findWidget(node, name) {
    return node.widgets.find((widget) => widget.name === name);
}

function loadStyles() {
    const href = new URL("./review_captions.css", import.meta.url).href;
    if (!document.querySelector(`link[href="${href}"]`)) document.head.append(element("link", { rel: "stylesheet", href }));
}

/** An element with these properties (className, textContent, ...) and children. Text never becomes HTML. */
function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
}

function counted(number, noun) {
    return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

async function ask(path, body) {
    const answer = await api.fetchApi(`/lora_trainer/${path}`, body && { method: "POST", body: JSON.stringify(body) });
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
}

/** The captions that the node sends on, as the user has edited them: kept in its `edits` widget, and so in the workflow. */
class Edits {
    constructor(widget) {
        this.widget = widget;
    }

    /** By picture: { caption, incoming }; incoming is undefined where the edit came as plain text. */
    read() {
        if (!this.widget.value?.trim()) return {};
        const entries = Object.entries(JSON.parse(this.widget.value));
        return Object.fromEntries(entries.map(([key, edit]) => [key, typeof edit === "string" ? { caption: edit } : edit]));
    }

    write(edits) {
        this.widget.value = Object.keys(edits).length ? JSON.stringify(edits) : "";
    }
}

/** One picture: what came in, what the user made of it, and its card. */
class Row {
    constructor(picture, review) {
        this.picture = picture;
        this.review = review;
        this.edit = undefined;
        this.facts = undefined;
        this.card = this.buildCard();
    }

    get incoming() {
        return this.picture.caption;
    }

    get caption() {
        return this.edit?.caption ?? this.incoming;
    }

    get isOutdated() {
        return this.edit?.incoming !== undefined && this.edit.incoming !== null && this.edit.incoming !== this.incoming;
    }

    /** The sha256, so that a renamed file keeps its edit; the name where the same file stands twice. */
    get key() {
        return this.picture.isCopy ? this.picture.name : this.picture.sha256;
    }

    /** What token counts and the like are kept by. */
    get question() {
        return JSON.stringify([this.caption, this.picture.trigger_word]);
    }

    get lacksTriggerWord() {
        return Boolean(this.caption.trim()) && this.facts?.has_trigger_word === false;
    }

    buildCard() {
        const { name, thumbnail, width, height } = this.picture;
        this.text = element("textarea", { rows: 4, spellcheck: false, placeholder: "No caption", ariaLabel: `Caption of ${name}` });
        this.text.addEventListener("input", () => this.review.editCaption(this, this.text.value));
        this.text.addEventListener("blur", () => this.review.remember());
        this.marks = element("span", { className: "ltr-marks" });
        this.tokens = element("span", { className: "ltr-tokens", title: `CLIP tokens. ${TOKENS_PER_CHUNK} fit into one chunk` });
        this.revert = element("button", { textContent: "Revert", tabIndex: -1, title: "Back to the caption that came in" });
        this.revert.addEventListener("click", () => this.review.revert(this));
        this.conflict = element("div", { className: "ltr-conflict" });
        const picture = element("img", { loading: "lazy", decoding: "async", alt: name, src: api.apiURL(`/lora_trainer/thumbnails/${thumbnail}`) });
        const title = element("div", { className: "ltr-name", textContent: name, title: `${name}, ${width} × ${height}` });
        const foot = element("div", { className: "ltr-foot" }, this.marks, this.revert, this.tokens);
        return element("div", { className: "ltr-card" }, picture, element("div", { className: "ltr-body" }, title, this.conflict, this.text, foot));
    }

    update() {
        if (this.text.value !== this.caption) this.text.value = this.caption;
        const isEmpty = !this.caption.trim();
        this.card.classList.toggle("ltr-edited", this.edit !== undefined);
        this.card.classList.toggle("ltr-empty", isEmpty);
        this.revert.hidden = this.edit === undefined;
        this.updateMarks(isEmpty);
        this.updateTokens();
        this.updateConflict();
    }

    updateMarks(isEmpty) {
        const marks = [];
        if (isEmpty) marks.push(element("span", { className: "ltr-bad", textContent: "empty", title: "Pictures without a caption are left out of the training" }));
        if (this.lacksTriggerWord) {
            const title = `${this.picture.trigger_word} is missing. It will be put in front when the prompt runs`;
            marks.push(element("span", { className: "ltr-warn", textContent: "no trigger word", title }));
        }
        if (this.edit) marks.push(element("span", { className: "ltr-note", textContent: "edited", title: `Came in as: ${this.incoming || "(empty)"}` }));
        this.marks.replaceChildren(...marks);
    }

    updateTokens() {
        const { num_tokens: count, num_chunks: chunks } = this.facts ?? {};
        this.tokens.textContent = count === undefined ? "…" : `${count} / ${TOKENS_PER_CHUNK * chunks}`;
        this.tokens.classList.toggle("ltr-warn", chunks > 1);
    }

    updateConflict() {
        this.conflict.hidden = !this.isOutdated;
        if (!this.isOutdated) return this.conflict.replaceChildren();
        const keep = element("button", { textContent: "Keep my edit" });
        const take = element("button", { textContent: "Take the new one" });
        keep.addEventListener("click", () => this.review.keepEdit(this));
        take.addEventListener("click", () => this.review.revert(this));
        const incoming = element("div", { className: "ltr-incoming", textContent: this.incoming || "(empty)" });
        this.conflict.replaceChildren(element("div", { textContent: "Since your edit this caption came in:" }), incoming, element("div", {}, keep, take));
    }
}

/** The widget of one node. */
class CaptionReview {
    constructor(node) {
        this.node = node;
        this.edits = new Edits(findWidget(node, "edits"));
        this.rows = [];
        this.key = "";
        this.undoSteps = [];
        this.facts = new Map(); // by Row.question
        this.timers = {};
        this.requested = 0;
        this.element = this.build();
        this.update();
    }

    remove() {
        this.isRemoved = true;
        Object.values(this.timers).forEach(clearTimeout);
        this.rows = [];
        this.element.replaceChildren();
    }

    // ---- what is on the screen ----

    build() {
        this.message = element("div", { className: "ltr-message" });
        this.list = element("div", { className: "ltr-list" });
        this.preview = element("div", { className: "ltr-preview", hidden: true });
        this.bars = [this.buildSearch(), this.buildBulk()];
        const root = element("div", { className: "ltr" }, ...this.bars, this.message, this.list, this.preview, this.buildFoot());
        root.dataset.captureWheel = "true";
        root.addEventListener("keydown", (event) => this.onKey(event));
        root.addEventListener("wheel", onWheel, { passive: false });
        root.addEventListener("pointerdown", onMiddleButton);
        return root;
    }

    buildSearch() {
        this.search = element("input", { type: "search", placeholder: "Search captions and names (Ctrl+F)", ariaLabel: "Search captions and names" });
        this.search.addEventListener("input", () => this.applyFilter());
        this.filter = element("select", { ariaLabel: "Which captions to show" });
        this.filter.append(...Object.entries(FILTERS).map(([value, { label }]) => element("option", { value, textContent: label })));
        this.filter.addEventListener("change", () => this.applyFilter());
        return element("div", { className: "ltr-bar" }, this.search, this.filter);
    }

    buildBulk() {
        this.operation = element("select", { ariaLabel: "What to do with all shown captions" });
        this.operation.append(...OPERATIONS.map((value) => element("option", { value, textContent: value[0].toUpperCase() + value.slice(1) })));
        this.bulkText = element("input", { type: "text", ariaLabel: "Text" });
        this.replacement = element("input", { type: "text", placeholder: "with", ariaLabel: "Replace with" });
        this.matchCase = toggle("Aa", "Match case");
        this.wholeWords = toggle("ab|", "Whole words only", true);
        this.previewButton = element("button", { textContent: "Preview", title: "See what would change in the captions shown" });
        this.undoButton = element("button", { textContent: "Undo" });
        this.operation.addEventListener("change", () => this.updateBulk());
        this.bulkText.addEventListener("input", () => this.updateBulk());
        this.previewButton.addEventListener("click", () => this.previewChange());
        this.undoButton.addEventListener("click", () => this.undo());
        for (const input of [this.bulkText, this.replacement]) {
            input.addEventListener("keydown", (event) => event.key === "Enter" && this.previewChange());
        }
        const parts = [this.operation, this.bulkText, this.replacement, this.matchCase, this.wholeWords, this.previewButton, this.undoButton];
        return element("div", { className: "ltr-bar" }, ...parts);
    }

    buildFoot() {
        this.status = element("span", { className: "ltr-status" });
        this.dropUnknown = element("button", { title: "Forget the edits for pictures that are not in this dataset" });
        this.dropUnknown.addEventListener("click", () => this.forgetUnknown());
        this.confirm = element("button", { textContent: USE_AND_RUN, className: "ltr-primary" });
        this.confirm.addEventListener("click", () => this.confirmReview());
        this.wait = element("span");
        return element("div", { className: "ltr-bar ltr-bottom" }, this.status, this.dropUnknown, this.wait, this.confirm);
    }

    /** Bring everything into line with the rows and the edits. */
    update() {
        let edits = {};
        this.problem = "";
        try {
            edits = this.edits.read();
        } catch {
            this.problem = "The edits stored in this workflow are not valid JSON. Editing a caption replaces them.";
        }
        for (const row of this.rows) row.edit = edits[row.picture.name] ?? edits[row.picture.sha256];
        for (const row of this.rows) row.facts = this.facts.get(row.question) ?? row.facts;
        for (const row of this.rows) row.update();
        this.updateFilterCounts();
        this.updateBulk();
        this.updateConfirmation();
        this.updateStatus(edits);
        this.inspectSoon();
    }

    updateStatus(edits) {
        const known = new Set(this.rows.flatMap((row) => [row.picture.sha256, row.picture.name]));
        const numEdits = Object.keys(edits).length;
        this.unknown = this.rows.length ? Object.keys(edits).filter((key) => !known.has(key)) : [];
        this.dropUnknown.hidden = !this.unknown.length;
        this.dropUnknown.textContent = `Forget ${counted(this.unknown.length, "edit")} of other pictures`;
        const edited = this.rows.filter((row) => row.edit).length;
        const shown = this.rows.filter((row) => !row.card.hidden).length;
        const parts = [counted(this.rows.length, "picture"), edited && `${edited} edited`, shown < this.rows.length && `${shown} shown`];
        this.status.textContent = this.rows.length ? parts.filter(Boolean).join(" · ") : "";
        this.showMessage(this.problem || this.failure || this.hint(numEdits));
    }

    /** What to do where there is nothing to see yet. */
    hint(numEdits) {
        if (this.rows.length) return this.rows.every((row) => row.card.hidden) ? "No caption fits the search." : "";
        const kept = numEdits ? ` ${counted(numEdits, "edited caption")} of this workflow will be used.` : "";
        return `Connect a dataset and run once: its pictures appear here with their captions.${kept}`;
    }

    showMessage(text) {
        this.message.textContent = text;
        this.message.hidden = !text;
        this.message.classList.toggle("ltr-bad", Boolean(this.problem || this.failure));
        this.element.classList.toggle("ltr-blank", !this.rows.length);
        for (const bar of this.bars) bar.hidden = !this.rows.length;
    }

    updateFilterCounts() {
        for (const option of this.filter.options) {
            const { label, fits } = FILTERS[option.value];
            const count = this.rows.filter(fits).length;
            option.textContent = `${label} (${count})`;
            option.disabled = !count && option.value !== "all" && option.value !== this.filter.value;
        }
    }

    updateBulk() {
        const operation = this.operation.value;
        const isSearch = operation === "remove" || operation === "replace";
        this.replacement.hidden = operation !== "replace";
        this.matchCase.hidden = this.wholeWords.hidden = !isSearch;
        this.bulkText.placeholder = isSearch ? `text to ${operation}` : "tag or words to add";
        this.previewButton.disabled = !this.rows.length || !this.bulkText.value.trim();
        this.undoButton.hidden = !this.undoSteps.length;
        this.undoButton.title = `Undo: ${this.undoSteps.at(-1)?.name}`;
    }

    updateConfirmation() {
        const waits = findWidget(this.node, "wait_for_review").value === true;
        const isReviewed = this.rows.length > 0 && findWidget(this.node, "reviewed").value === this.key;
        this.confirm.hidden = !waits || isReviewed;
        this.confirm.disabled = !this.rows.length;
        this.wait.textContent = isReviewed ? "✓ Reviewed" : "Nothing behind this node runs before your review";
        this.wait.className = isReviewed ? "ltr-good" : "ltr-warn";
        this.wait.hidden = !waits || !this.rows.length;
    }

    applyFilter() {
        const words = this.search.value.trim().toLocaleLowerCase();
        const { fits } = FILTERS[this.filter.value];
        for (const row of this.rows) row.card.hidden = !(fits(row) && `${row.picture.name}\n${row.caption}`.toLocaleLowerCase().includes(words));
        this.update();
    }

    // ---- what comes from the server ----

    /** From a saved workflow, or after a refresh of the page. */
    restore() {
        const key = this.node.properties?.[KEY_PROPERTY];
        if (key) this.load(key);
        else this.update();
    }

    /** What the node said when it ran. */
    show(result) {
        if (!result) return;
        this.node.properties[KEY_PROPERTY] = result.key;
        const reviewed = findWidget(this.node, "reviewed");
        if (reviewed.value && reviewed.value !== result.key) reviewed.value = ""; // other captions: they have not been seen yet
        this.remember();
        this.load(result.key);
        if (result.waits) this.askForReview();
    }

    /** What stands behind the node did not run, and nothing else would say so. */
    askForReview() {
        app.extensionManager.toast.add({
            severity: "info",
            summary: "The captions wait for your review",
            detail: `Read them on ${this.node.title}, and press ${USE_AND_RUN}.`,
            life: 10_000,
        });
    }

    async load(key) {
        const request = ++this.requested;
        let review;
        try {
            review = await ask(`reviews/${encodeURIComponent(key)}`);
        } catch {
            review = { key: "", pictures: [] }; // another machine, or an emptied cache: until the next run
        }
        if (this.isRemoved || request !== this.requested) return;
        this.take(review);
    }

    take({ key, pictures }) {
        if (key && key === this.key) return this.update();
        this.key = key;
        this.closePreview();
        const hashes = pictures.map((picture) => picture.sha256);
        for (const picture of pictures) picture.isCopy = hashes.indexOf(picture.sha256) !== hashes.lastIndexOf(picture.sha256);
        this.rows = pictures.map((picture) => new Row(picture, this));
        this.list.replaceChildren(...this.rows.map((row) => row.card));
        this.update();
        this.applyFilter();
    }

    inspectSoon() {
        clearTimeout(this.timers.inspect);
        const questions = [...new Set(this.rows.map((row) => row.question))].filter((question) => !this.facts.has(question));
        if (questions.length) this.timers.inspect = setTimeout(() => this.inspect(questions), 250);
    }

    async inspect(questions) {
        const pairs = questions.map((question) => JSON.parse(question));
        const request = { captions: pairs.map(([caption]) => caption), trigger_words: pairs.map(([, word]) => word) };
        const facts = await this.tryTo(() => ask("captions/inspect", request));
        if (!facts || this.isRemoved) return;
        questions.forEach((question, index) => this.facts.set(question, facts[index]));
        this.update();
    }

    /** The answer, or undefined when there is none, which is then shown. */
    async tryTo(action) {
        try {
            const answer = await action();
            this.failure = "";
            return answer;
        } catch (error) {
            this.failure = `${error.message}`;
            this.showMessage(this.failure);
        }
    }

    // ---- what the user does ----

    editCaption(row, caption) {
        const edits = this.readForChange();
        setEdit(edits, row, caption);
        this.edits.write(edits);
        this.update();
        this.rememberSoon();
    }

    revert(row) {
        this.editCaption(row, row.incoming);
        this.remember();
        row.text.focus();
    }

    keepEdit(row) {
        const edits = this.readForChange();
        setEdit(edits, row, row.caption);
        this.edits.write(edits);
        this.update();
        this.remember();
        row.text.focus();
    }

    forgetUnknown() {
        const edits = this.readForChange();
        for (const key of this.unknown) delete edits[key];
        this.edits.write(edits);
        this.update();
        this.remember();
    }

    readForChange() {
        return this.problem ? {} : this.edits.read();
    }

    confirmReview() {
        findWidget(this.node, "reviewed").value = this.key;
        this.updateConfirmation();
        this.remember();
        app.queuePrompt(0);
    }

    async previewChange() {
        const rows = this.rows.filter((row) => !row.card.hidden);
        if (this.previewButton.disabled || !rows.length) return;
        const change = {
            captions: rows.map((row) => row.caption),
            operation: this.operation.value,
            text: this.bulkText.value,
            replacement: this.replacement.value,
            match_case: this.matchCase.ariaPressed === "true",
            whole_words: this.wholeWords.ariaPressed === "true",
        };
        const captions = await this.tryTo(() => ask("captions/change", change));
        if (!captions || this.isRemoved) return;
        const changes = rows.map((row, index) => ({ row, before: row.caption, after: captions[index] })).filter(({ before, after }) => before !== after);
        this.showPreview(changes, `${change.operation} “${change.text.trim()}”`, rows.length);
    }

    showPreview(changes, name, numLooked) {
        const apply = element("button", { textContent: `Change ${counted(changes.length, "caption")}`, className: "ltr-primary", disabled: !changes.length });
        const cancel = element("button", { textContent: changes.length ? "Cancel" : "Close" });
        apply.addEventListener("click", () => this.applyChanges(changes, name));
        cancel.addEventListener("click", () => this.closePreview());
        const title = `${name}: ${changes.length} of ${counted(numLooked, "shown caption")} would change`;
        const head = element("div", { className: "ltr-bar" }, element("span", { className: "ltr-status", textContent: title }), cancel, apply);
        const list = element("div", { className: "ltr-changes" }, ...changes.map(describeChange));
        this.preview.replaceChildren(head, list);
        this.preview.hidden = false;
        this.list.hidden = true;
        (changes.length ? apply : cancel).focus();
    }

    closePreview() {
        this.preview.hidden = true;
        this.list.hidden = false;
        this.preview.replaceChildren();
    }

    applyChanges(changes, name) {
        this.undoSteps.push({ name, value: this.edits.widget.value });
        const edits = this.readForChange();
        for (const { row, after } of changes) setEdit(edits, row, after);
        this.edits.write(edits);
        this.closePreview();
        this.update();
        this.remember();
        this.bulkText.focus();
    }

    undo() {
        const step = this.undoSteps.pop();
        if (!step) return;
        this.edits.widget.value = step.value;
        this.closePreview();
        this.update();
        this.remember();
    }

    /** Let the editor notice the change, for its own undo and for what it keeps over a refresh. */
    remember() {
        clearTimeout(this.timers.remember);
        const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
        (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
        app.graph?.setDirtyCanvas(true);
    }

    rememberSoon() {
        clearTimeout(this.timers.remember);
        this.timers.remember = setTimeout(() => this.remember(), 400);
    }

    // ---- keys ----

    /** ComfyUI has shortcuts of its own, such as Ctrl+Enter for Run: a key that means something here goes no further. */
    onKey(event) {
        const isControl = event.ctrlKey || event.metaKey;
        const isOurs =
            (isControl && event.key === "f" && this.focusSearch()) ||
            (isControl && event.key === "Enter" && this.focusNext(event)) ||
            (isControl && event.key === "z" && this.undoByKey(event)) ||
            (event.key === "Escape" && this.leave(event));
        if (!isOurs) return;
        event.preventDefault();
        event.stopPropagation();
    }

    focusSearch() {
        this.lastText = this.rows.find((row) => row.text === document.activeElement)?.text ?? this.lastText;
        this.search.focus();
        this.search.select();
        return true;
    }

    focusNext(event) {
        const texts = this.rows.filter((row) => !row.card.hidden).map((row) => row.text);
        const next = texts[texts.indexOf(event.target) + 1]; // from the search: the first one
        if (next && !this.list.hidden) focusText(next);
        return true;
    }

    /** In a text the browser's own undo is meant. */
    undoByKey(event) {
        if (["TEXTAREA", "INPUT"].includes(event.target.tagName) || !this.undoSteps.length) return false;
        this.undo();
        return true;
    }

    leave(event) {
        if (!this.preview.hidden) {
            this.closePreview();
            this.bulkText.focus();
            return true;
        }
        if (event.target !== this.search) return false;
        this.search.value = "";
        this.applyFilter();
        focusText(this.lastText?.isConnected ? this.lastText : this.rows[0]?.text);
        return true;
    }
}

/** An edit that says the same as what came in is none. */
function setEdit(edits, row, caption) {
    delete edits[row.picture.name];
    if (!row.picture.isCopy) delete edits[row.picture.sha256];
    if (caption !== row.incoming) edits[row.key] = { caption, incoming: row.incoming };
}

function focusText(text) {
    text?.focus();
    text?.scrollIntoView({ block: "nearest" });
}

function toggle(textContent, title, isOn = false) {
    const button = element("button", { textContent, title, ariaLabel: title, ariaPressed: String(isOn), className: "ltr-toggle" });
    button.addEventListener("click", () => (button.ariaPressed = String(button.ariaPressed !== "true")));
    return button;
}

function describeChange({ row, before, after }) {
    const picture = element("img", { loading: "lazy", alt: "", src: api.apiURL(`/lora_trainer/thumbnails/${row.picture.thumbnail}`) });
    const name = element("div", { className: "ltr-name", textContent: row.picture.name });
    return element("div", { className: "ltr-change" }, picture, element("div", { className: "ltr-body" }, name, difference(before, after)));
}

/** The words of both captions: those that go away struck out, those that come in colour. */
function difference(before, after) {
    const [old, now] = [before.match(/\S+/g) ?? [], after.match(/\S+/g) ?? []];
    const common = commonLengths(old, now);
    const shown = element("div");
    let [i, j] = [0, 0];
    while (i < old.length || j < now.length) {
        if (i < old.length && j < now.length && old[i] === now[j]) {
            shown.append(`${old[i++]} `);
            j++;
        } else if (j >= now.length || (i < old.length && common[i + 1][j] >= common[i][j + 1])) {
            shown.append(element("del", { textContent: old[i++] }), " ");
        } else {
            shown.append(element("ins", { textContent: now[j++] }), " ");
        }
    }
    return shown;
}

/** [i][j]: how many words the longest common subsequence of old.slice(i) and now.slice(j) has. */
function commonLengths(old, now) {
    const lengths = Array.from({ length: old.length + 1 }, () => new Uint16Array(now.length + 1));
    for (let i = old.length - 1; i >= 0; i--) {
        for (let j = now.length - 1; j >= 0; j--) {
            lengths[i][j] = old[i] === now[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
        }
    }
    return lengths;
}

/** The list scrolls; Ctrl and the wheel zoom the canvas, as everywhere. */
function onWheel(event) {
    event.stopPropagation();
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    app.canvas.processMouseWheel(event);
}

/** The middle button moves the canvas, as it does over ComfyUI's own text boxes. */
function onMiddleButton(event) {
    if (event.button !== 1) return;
    event.preventDefault();
    app.canvas.processMouseDown(event);
}
