"""The nodes on a stand-in for ComfyUI: the order of their settings, and that all are registered."""

import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from docs.schemas import ROOT, stand_in_host
from trainers.config import param
from trainers.training.earlier_settings import EarlierSettings


@dataclass(frozen=True)
class Config:
    first: int = param(1, "First.")
    second: int = param(2, "Second.")


@pytest.fixture(scope="module")
def check_settings_order() -> Iterator[Callable[..., tuple[str, ...]]]:
    with stand_in_host() as pack:
        yield importlib.import_module(f"{pack}.nodes.config_inputs").check_settings_order


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (["first"], "append second to SETTINGS_ORDER, at its very end"),
        (["first", "second", "third"], "SETTINGS_ORDER has third, which is in no config of the node"),
        (["first", "second", "first"], "SETTINGS_ORDER has first twice"),
    ],
)
def test_a_setting_has_exactly_one_place_on_a_node(check_settings_order, order, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_settings_order(order, Config)


def test_a_node_may_take_settings_elsewhere_only_some_of_a_config_and_its_own_inputs(check_settings_order):
    assert check_settings_order(["second"], Config, elsewhere={"first"}) == ("second",)
    assert check_settings_order(["own"], some_of=(Config,), also={"own"}) == ("own",)
    assert check_settings_order(["second", "own"], some_of=(Config,), also={"own"}) == ("second", "own")


def test_every_node_class_is_registered():
    declared = {
        name
        for path in (ROOT / "nodes").glob("*.py")
        for name in re.findall(r"^class (\w+)\(io\.ComfyNode\)", path.read_text(), re.M)
    }
    with stand_in_host() as pack:
        registered = {node.__name__ for node in importlib.import_module(f"{pack}.nodes.extension").NODES}
    assert registered == declared, "every node must be in NODES of nodes/extension.py, at its end"


def test_settings_of_a_lora_replace_the_widgets_but_not_what_belongs_to_the_run():
    widgets = {"rank": 0, "seed": 7, "gradient_checkpointing": "auto", "sample_prompt": "a", "resolution": 512}
    earlier = EarlierSettings(
        "x.safetensors",
        "this trainer",
        {"rank": 8, "seed": 1, "gradient_checkpointing": False, "sample_prompt": "b", "save_dtype": "fp32"},
    )
    with stand_in_host() as pack:
        module = importlib.import_module(f"{pack}.nodes.open_settings")
    replaced = module.replace_by_earlier(widgets, earlier)
    assert replaced == {**widgets, "rank": 8, "gradient_checkpointing": "off"}
    assert module.drop_open_settings(replaced)["gradient_checkpointing"] is False, "off is not left open"
    assert module.replace_by_earlier(widgets, None) == widgets
