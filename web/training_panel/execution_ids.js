// @ts-check
/** Finds a node's execution ids, the server's names of it: 12:5 is node 5 in subgraph 12. Pure. */

/**
 * @typedef {object} Graph
 * @property {GraphNode[]} [nodes]
 */
/**
 * @typedef {object} GraphNode
 * @property {string | number} id
 * @property {Graph} [subgraph] of a node that is a subgraph
 */

const MAX_DEPTH = 20;

/**
 * Several if the subgraph is used several times.
 * @param {Graph} root
 * @param {object} node
 * @returns {string[]}
 */
export function findExecutionIds(root, node) {
  const found = [...walk(root, "", MAX_DEPTH)].filter(([, each]) => each === node);
  return found.map(([id]) => id);
}

/**
 * @param {Graph} graph
 * @param {string} prefix
 * @param {number} depth
 * @returns {Generator<[string, GraphNode]>}
 */
function* walk(graph, prefix, depth) {
  for (const node of graph.nodes ?? []) {
    const id = prefix + node.id;
    yield [id, node];
    if (node.subgraph && depth) yield* walk(node.subgraph, `${id}:`, depth - 1);
  }
}
