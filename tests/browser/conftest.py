"""Fixtures that open ComfyUI's own front end in a headless Chromium, in both of its renderers.
Tests are skipped, with a reason, if something is missing.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.editor import READY, RECORD_EVENTS, TIMEOUT, Editor
from trainers.comfyui.find import NoComfyUI, find_comfyui
from trainers.comfyui.server import ComfyServer
from trainers.demo.in_comfyui import prepare_demo_directory

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

TINY_FLORENCE2 = Path(__file__).parents[1] / "data" / "tiny_florence2"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # the templates would cover the graph of a new user
    "Comfy.Validation.Workflows": True,
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # titles in screenshots, however small
}


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """Start a separate server, because the front end stores its settings there."""
    try:
        installation = find_comfyui()
    except NoComfyUI as reason:
        pytest.skip(str(reason))
    folder = tmp_path_factory.mktemp("comfyui")
    prepare_demo_directory(folder)
    shutil.copytree(TINY_FLORENCE2, folder / "models" / "LLM" / TINY_FLORENCE2.name)
    with ComfyServer(installation, base_directory=folder, log=folder / "server.log", cpu=True) as server:
        yield server


@pytest.fixture(scope="package", params=["canvas", "vue"])
def renderer(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory, renderer: str) -> "Iterator[BrowserContext]":
    """Start one browser per renderer, because the front end opens the last workflow of its browser.
    The browser ends with this folder's tests: no other event loop can run in this thread while
    Playwright's runs.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if chromium is None:
        pytest.skip(f"no {', '.join(CHROMIUMS)} on the PATH: install Chromium, or set CHROMIUM to its executable")
    with playwright.sync_playwright() as driver:
        profile = tmp_path_factory.mktemp(f"profile-{renderer}")
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=chromium, headless=True, args=FLAGS, viewport={"width": 1600, "height": 1000}
        )
        yield context
        context.close()


@pytest.fixture(scope="package")
def page(server: ComfyServer, browser: "BrowserContext", renderer: str) -> "Iterator[Page]":
    """Loading takes seconds, so one page serves all tests of a renderer."""
    server.client.post("/settings", {**SETTINGS, "Comfy.VueNodes.Enabled": renderer == "vue"})
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT)
    page.goto(server.url, wait_until="domcontentloaded")
    page.wait_for_function(READY)
    page.wait_for_function("() => app.graph.nodes.length > 0")  # the front end's default workflow is loaded
    page.evaluate(RECORD_EVENTS)
    yield page
    page.close()


@pytest.fixture
def editor(page: "Page", renderer: str, tmp_path: Path) -> Editor:
    """Return the editor. Its screenshots go to the test's temporary folder, or to a folder per
    renderer in SCREENSHOTS.
    """
    chosen = os.environ.get("SCREENSHOTS")
    folder = Path(chosen) / renderer if chosen else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    return Editor(page, renderer=renderer, screenshots=folder)
