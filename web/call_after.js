// @ts-check
/** Adds a call to a method that the front end or another pack may have set. */

/**
 * After `object[name]`, if there is one, also call `then` with the same arguments.
 * @param {any} object
 * @param {string} name
 * @param {(...values: any[]) => void} then
 */
export function callAfter(object, name, then) {
  const original = object[name];
  object[name] = function (/** @type {any[]} */ ...values) {
    const result = original?.apply(this, values);
    then(...values);
    return result;
  };
}
