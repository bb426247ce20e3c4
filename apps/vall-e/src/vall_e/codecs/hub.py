"""Published weights from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path


def folder_of(repository: str, files: tuple[str, ...]) -> Path:
    """The folder that holds these files of a repository, downloaded where they are not in the hub's cache.

    The hub's client tries each file six times, which takes a minute where there is no network; here it is asked once
    whether it can be reached.

    Raises:
        Exception: what the client raises when it cannot be reached or has no such file.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import LocalEntryNotFoundError, get_session

    try:
        paths = [hf_hub_download(repository, name, local_files_only=True) for name in files]
    except LocalEntryNotFoundError:
        get_session().head(constants.ENDPOINT, timeout=10)
        paths = [hf_hub_download(repository, name) for name in files]
    return Path(paths[0]).parent
