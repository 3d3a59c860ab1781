// @ts-check
/** Makes elements and keeps the keyboard's focus. */

/**
 * An element with these properties (className, textContent, ariaLabel, ...) and children.
 * Text never becomes HTML.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Partial<HTMLElementTagNameMap[Tag]>} [properties]
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function createElement(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/**
 * @param {string} textContent
 * @param {() => void} onClick
 * @param {Partial<HTMLButtonElement>} [properties]
 */
export function createButton(textContent, onClick, properties = {}) {
  const button = createElement("button", { type: "button", textContent, ...properties });
  button.addEventListener("click", onClick);
  return button;
}

/**
 * A button that stays pressed.
 * @param {string} textContent
 * @param {string} label
 * @param {boolean} isPressed
 */
export function createToggle(textContent, label, isPressed) {
  const button = createButton(textContent, () => setPressed(button, !getPressed(button)), {
    className: "ltw-toggle",
    title: label,
    ariaLabel: label,
  });
  setPressed(button, isPressed);
  return button;
}

/** @param {HTMLButtonElement} toggle */
export function getPressed(toggle) {
  return toggle.ariaPressed === "true";
}

/**
 * @param {HTMLButtonElement} toggle
 * @param {boolean} isPressed
 */
function setPressed(toggle, isPressed) {
  toggle.ariaPressed = String(isPressed);
}

/**
 * Writes only what has changed: a live region repeats whatever is written into it.
 * @param {HTMLElement} element
 * @param {string} text
 */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** @param {HTMLElement | undefined} element */
export function focusAndShow(element) {
  element?.focus();
  element?.scrollIntoView({ block: "nearest" });
}

/**
 * Keeps Tab inside the dialog.
 * @param {KeyboardEvent} event
 * @param {HTMLElement} dialog
 */
export function trapFocus(event, dialog) {
  if (event.key !== "Tab") return;
  /** @type {HTMLElement[]} */
  const stops = [
    ...dialog.querySelectorAll(/** @type {"button"} */ ("button:enabled, [tabindex='0']")),
  ];
  const [first, last] = [stops[0], stops[stops.length - 1]];
  if (document.activeElement !== (event.shiftKey ? first : last)) return;
  event.preventDefault();
  (event.shiftKey ? last : first)?.focus();
}

/**
 * Loads a style sheet, once for all who ask.
 * @param {string} href
 */
export function loadStyles(href) {
  if (document.querySelector(`link[href="${href}"]`)) return;
  document.head.append(createElement("link", { rel: "stylesheet", href }));
}
