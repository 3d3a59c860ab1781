"""The environment of every test: one thread, and no network for models. With pytest-xdist (`make
test`) each worker has its own cache folder and range of ports.
"""

import os
import socket
from collections.abc import Iterator
from importlib.metadata import version
from itertools import count
from random import randrange

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start, too
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import pytest
import torch

import trainers.comfyui.server

torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from tests.distribution import Distribution

    return Distribution(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        from tests.distribution import rank

        items.sort(key=rank)


def pytest_report_header() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "peft"))


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Replace the user's cache and config folders, for the processes that tests start too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("APPDATA" if os.name == "nt" else "XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session", autouse=True)
def prior_preservation_looks_at_every_sample() -> Iterator[None]:
    """The few samples of a test might have none that it looks at. tests/unit/training/
    test_prior_preservation.py tests the share.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainers.training.prior_preservation.PRIOR_SHARE", 1.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_ports() -> Iterator[None]:
    """Give each worker its own ports. A server binds its port seconds after it was chosen, and no
    other worker or client may take it in between.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = count(20_000 + 3_000 * (worker % 4) + randrange(2_000))  # below the ports that the system gives to clients
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainers.comfyui.server, "_find_free_port", lambda: next(filter(_is_free, ports)))
        yield


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
