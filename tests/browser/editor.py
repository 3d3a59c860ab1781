"""Editor: a page of ComfyUI's front end for tests. conftest.py chooses the browser and the
server.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.limits import TIME_LIMIT
from trainers.comfyui.client import Prompt

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

TIMEOUT = 1000 * TIME_LIMIT  # milliseconds
READY = (
    "() => window.app?.extensionManager && window.app.graph && "
    "Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100"
)
RECORD_EVENTS = """() => {
    window.recorded = [];
    const ends = ["execution_success", "execution_error", "execution_interrupted"];
    for (const kind of ["progress", "progress_text", "executed", ...ends])
        app.api.addEventListener(kind, (event) => window.recorded.push({ kind, ...event.detail }));
    app.api.addEventListener("b_preview_with_metadata", (event) => {
        window.recorded.push({ kind: "preview", node: event.detail.nodeId });
    });
}"""
SET_WIDGET = """([id, name, value]) => {
    const node = app.graph.getNodeById(id);
    const widget = node.widgets.find((widget) => widget.name === name);
    widget.value = value;
    widget.callback?.(value);
    node.onWidgetChanged?.(name, value, undefined, widget);
}"""


IS_KEPT = """(text) => Object.entries(localStorage).some(([key, draft]) =>
    key.startsWith("Comfy.Workflow.Draft.") && JSON.parse(draft).data.includes(JSON.stringify(text)))"""


# The frontend (1.49) keeps the values of a graph without an id, which a prompt becomes, and gives
# them to inputs that the next prompt leaves out.
FORGET_EARLIER_PROMPT = """() => {
    const stores = document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia._s;
    for (const store of stores.values()) store.clearGraph?.("00000000-0000-0000-0000-000000000000");
}"""


class Editor:
    """A page with the editor. Node ids are the graph's. `events` returns what the server sent while
    a prompt ran.
    """

    def __init__(self, page: "Page", *, renderer: str, screenshots: Path) -> None:
        self.page = page
        self.renderer = renderer
        self.screenshots = screenshots

    def evaluate(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def wait_until(self, condition: str, argument: Any = None) -> None:
        self.page.wait_for_function(condition, arg=argument, timeout=TIMEOUT)

    def open_workflow(self, workflow: dict[str, Any]) -> None:
        """Open a workflow as the user opens a file."""
        self.evaluate("async (workflow) => { await app.loadGraphData(workflow) }", workflow)
        self._wait_for_nodes(len(workflow["nodes"]))

    def open_prompt(self, prompt: Prompt) -> None:
        """Open an API-format prompt as a graph, as the first one after the editor has started."""
        self.evaluate(FORGET_EARLIER_PROMPT)
        self.evaluate("async (prompt) => { await app.loadApiJson(prompt, 'prompt') }", prompt)
        self._wait_for_nodes(len(prompt))

    def wait_until_kept(self, text: str) -> None:
        """Wait until the editor has kept a graph with this widget text for the next visit, which it
        does by itself a moment after a change.
        """
        self.wait_until(IS_KEPT, text)

    def workflow(self) -> dict[str, Any]:
        """Return the workflow as it would be saved, through JSON, because the driver turns
        undefined into null.
        """
        return json.loads(self.evaluate("() => JSON.stringify(app.graph.serialize())"))

    def prompt(self) -> Prompt:
        """Return the prompt that Run would send, without titles."""
        prompt = self.evaluate("async () => (await app.graphToPrompt()).output")
        return {node: {"class_type": entry["class_type"], "inputs": entry["inputs"]} for node, entry in prompt.items()}

    def add_node(self, class_type: str) -> int:
        """Add a new node to an empty graph."""
        self.open_workflow(
            {
                "last_node_id": 0,
                "last_link_id": 0,
                "nodes": [],
                "links": [],
                "groups": [],
                "config": {},
                "extra": {},
                "version": 0.4,
            }
        )
        return self.evaluate(
            "(type) => { const node = LiteGraph.createNode(type); app.graph.add(node); return Number(node.id) }",
            class_type,
        )

    def widgets(self, node: int) -> dict[str, Any]:
        return self.evaluate(
            "(id) => Object.fromEntries(app.graph.getNodeById(id).widgets.map((widget) => [widget.name, "
            "widget.value]))",
            node,
        )

    def visible_widgets(self, node: int) -> list[str]:
        """Return the widget names that the renderer shows, without what open_settings.js adds; the
        training panel has none.
        """
        return [label.split(" → ")[0] for label in self._labels(node)]

    def _labels(self, node: int) -> list[str]:
        if self.renderer == "vue":
            return self._element(node).get_by_test_id("widget-layout-field-label").all_inner_texts()
        return self.evaluate(
            "(id) => { const node = app.graph.getNodeById(id); return node.widgets.filter((w) => "
            "node.isWidgetVisible(w) && w.name !== 'training_panel').map((w) => w.label) }",
            node,
        )

    def show_advanced(self, node: int) -> None:
        """Do what one renderer's button and the other's menu entry do."""
        if self.renderer == "vue":
            self._element(node).get_by_test_id("advanced-inputs-button").click()
        else:
            self.evaluate("(id) => app.graph.getNodeById(id).toggleAdvanced()", node)

    def height(self, node: int) -> float:
        """Return the height in the graph's units, title included, after the renderer's layout."""
        if self.renderer == "vue":
            return self._element(node).evaluate("(element) => element.offsetHeight")
        return self.evaluate(
            "(id) => { app.canvas.draw(true, true); return app.graph.getNodeById(id).boundingRect[3] }", node
        )

    def set_widgets(self, node: int, **values: Any) -> None:
        for name, value in values.items():
            self.evaluate(SET_WIDGET, [node, name, value])

    def run(self) -> None:
        """Click Run. Use `wait_for` to wait for the end."""
        self.forget_events()
        self.page.get_by_test_id("queue-button").click()

    def forget_events(self) -> None:
        self.evaluate("() => { window.recorded.length = 0 }")

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.evaluate("() => window.recorded") if event["kind"] == kind]

    def wait_for(self, kind: str) -> dict[str, Any]:
        """Return the first event of that kind, or the one that ended the prompt before it."""
        kinds = [kind, "execution_success", "execution_error", "execution_interrupted"]
        self.wait_until("(kinds) => window.recorded.some((event) => kinds.includes(event.kind))", kinds)
        return next(event for event in self.evaluate("() => window.recorded") if event["kind"] in kinds)

    def complaints(self) -> list[str]:
        """Return the messages that pop up, such as those of an invalid workflow; not those of a
        training that has finished.
        """
        messages = self.page.locator(".p-toast-message:not(.p-toast-message-success)")
        return [message.inner_text() for message in messages.all()]

    def close_messages(self) -> None:
        for message in self.page.locator(".p-toast-message").all():
            message.get_by_role("button", name="Close").click()
        self.page.locator(".p-toast-message").first.wait_for(state="detached")

    def show_node(self, node: int) -> None:
        """Zoom in on one node."""
        self.evaluate("(id) => app.canvas.select(app.graph.getNodeById(id))", node)
        self.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(1000)  # the view moves slowly

    def screenshot(self, name: str) -> Path:
        path = self.screenshots / f"{name}.png"
        self.page.screenshot(path=path)
        return path

    def _element(self, node: int) -> "Locator":
        return self.page.locator(f'[data-node-id="{node}"]')

    def _wait_for_nodes(self, count: int) -> None:
        self.wait_until("(count) => app.graph.nodes.length === count", count)
