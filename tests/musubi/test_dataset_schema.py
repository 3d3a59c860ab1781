"""Our schema of dataset.toml, and the text that we write, compared with Musubi Tuner's own schema
and reader.

Needs Musubi Tuner and an interpreter with its packages, found as the trainer finds them.
"""

import json
import subprocess

import pytest

from tests.limits import TIME_LIMIT
from trainers.musubi.dataset_toml import GENERAL_KEYS, IMAGE_KEYS, KINDS, VIDEO_KEYS, write_toml
from trainers.musubi.installation import NoMusubi, find_installation
from trainers.musubi.process import build_environment

try:
    INSTALLATION = find_installation()
except NoMusubi as error:
    pytest.skip(str(error), allow_module_level=True)

# Reads JSON documents and TOML texts, and prints how Musubi reads them.
SCRIPT = """
import json, sys
import toml
from musubi_tuner.dataset.config_utils import ConfigSanitizer
sanitizer = ConfigSanitizer()
given = json.load(sys.stdin)
def is_accepted(document):
    try:
        sanitizer.sanitize_user_config(document)
        return True
    except Exception:
        return False
answer = {
    "keys": [
        sorted(schema)
        for schema in (sanitizer.general_schema, sanitizer.image_dataset_schema, sanitizer.video_dataset_schema)
    ],
    "accepted": [is_accepted(document) for document in given["documents"]],
    "read": [toml.loads(text) for text in given["texts"]],
}
print("@@" + json.dumps(answer))
"""
SAMPLES: dict[str, tuple[list[object], list[object]]] = {  # kind: (right, wrong)
    "text": (["", "/x y/é"], [1, True, ["a"]]),
    "true or false": ([True, False], ["true", 1.5, []]),
    "a whole number": ([1, 0, -5], ["1", 1.5, [1]]),
    "a number with a point, such as 24.0": ([24.0], [24, "24.0"]),
    "a whole number or [width, height]": ([64, [64, 32]], ["64", [64], [64, 64, 64], [64, 0.5], 64.0]),
    "a list of whole numbers": ([[1, 25], [1]], [1, ["1"], [1.5]]),
}
NAMES = [
    "/plain",
    "/with space/été",
    "/brackets [1]",
    "/quotes \" and ' and #",
    "/a = b",
    "/日本語/🎨",
    "C:/Users/me",
    "/back\\slash\\new\\u0041",
]


@pytest.fixture(scope="module")
def cases() -> list[tuple[str, str, object, bool]]:
    """Return (table, key, value, whether our schema accepts it) for every key and every kind of
    value, right and wrong.
    """
    tables = {"general": GENERAL_KEYS, "image": IMAGE_KEYS, "video": VIDEO_KEYS}
    return [
        (table, key, value, KINDS[kind](value))
        for table, keys in tables.items()
        for key, kind in keys.items()
        for values in SAMPLES[kind]
        for value in values
    ]


@pytest.fixture(scope="module")
def answer(cases) -> dict:
    documents = [_make_document(table, key, value) for table, key, value, _ in cases]
    texts = [
        write_toml({"caption_extension": name}, [{"image_directory": name, "resolution": [64, 32]}]) for name in NAMES
    ]
    result = subprocess.run(
        [str(INSTALLATION.python), "-c", SCRIPT],
        input=json.dumps({"documents": documents, "texts": texts}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=build_environment(INSTALLATION),
        timeout=TIME_LIMIT,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.split("@@")[1])


def _make_document(table: str, key: str, value: object) -> dict:
    if table == "general":
        return {"general": {key: value}, "datasets": []}
    source = {} if table == "image" or key.startswith("video_") else {"video_directory": "/x"}
    return {"datasets": [{**source, key: value}]}


def test_musubi_knows_the_same_keys(answer):
    assert answer["keys"] == [sorted(keys) for keys in (GENERAL_KEYS, IMAGE_KEYS, VIDEO_KEYS)]


def test_musubi_accepts_and_refuses_the_same_values(answer, cases):
    different = [
        (table, key, value)
        for (table, key, value, ours), theirs in zip(cases, answer["accepted"], strict=True)
        if ours != theirs
    ]
    assert different == []


def test_musubis_toml_reader_reads_what_we_write(answer):
    expected = [
        {"general": {"caption_extension": name}, "datasets": [{"image_directory": name, "resolution": [64, 32]}]}
        for name in NAMES
    ]
    assert answer["read"] == expected
