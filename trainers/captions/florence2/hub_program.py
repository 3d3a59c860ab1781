"""Asks huggingface.co for a model's files, or downloads them: the program of a process that
download.py starts, and ends when the user cancels. Imports nothing of this pack.
"""

import json
import os
import sys
import threading
from typing import Any


def main() -> None:
    """Print the answer as JSON: the files with their sizes; {} once they are downloaded; or the
    kind of the problem and its reason.
    """
    task = json.loads(sys.argv[1])
    sys.path[:] = task["path"]
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    print(json.dumps(_answer(task)))


def _end_with_the_caller() -> None:
    """Standard input ends when the caller does, however it ends."""
    os.read(0, 1)
    os._exit(1)


def _answer(task: dict[str, Any]) -> dict[str, Any]:
    from huggingface_hub import errors

    # The bases are the errors of its HTTP library, which differs between its major versions.
    unreachable: Any = (OSError, errors.LocalEntryNotFoundError, *errors.HfHubHTTPError.__bases__)
    try:
        return _download(task) if task["folder"] else _list_files(task)
    except errors.GatedRepoError:
        return {"problem": "gated"}
    except errors.RepositoryNotFoundError:
        return {"problem": "missing"}
    except errors.OfflineModeIsEnabled:
        return {"problem": "offline"}
    except unreachable as error:
        return {"problem": "unreachable", "reason": next(iter(str(error).splitlines()), type(error).__name__)}


def _list_files(task: dict[str, Any]) -> dict[str, Any]:
    from huggingface_hub import HfApi

    info = HfApi().model_info(task["model_id"], files_metadata=True)
    return {"files": {file.rfilename: file.size or 0 for file in info.siblings or []}}


def _download(task: dict[str, Any]) -> dict[str, Any]:
    from huggingface_hub import snapshot_download

    snapshot_download(task["model_id"], local_dir=task["folder"], allow_patterns=task["patterns"])
    return {}


if __name__ == "__main__":
    main()
