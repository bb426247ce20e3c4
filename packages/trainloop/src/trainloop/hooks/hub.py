"""Repositories of a hub, in the local cache: resumed, verified, never torn.

`huggingface_hub` checks the size of what it downloads over HTTP, not its hash, and drops a file that was cut off
for good. So the bytes are fetched here: onto the part that is there already, hashed, and only then renamed to the
place in the hub's own cache where every other program looks for them. That cache names a file by its hash, and
`huggingface_hub` lays out the rest.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainloop.hooks.extras import require
from trainloop.manifest import fsync

_log = logging.getLogger(__name__)
_DOWNLOADS = 4  # files at a time

Choose = Callable[[list[str]], list[str]]  # from all paths of a repository to those that are wanted


class DownloadError(RuntimeError):
    """A repository or a file of it could not be had; says what to do."""


@dataclass(frozen=True)
class Hub:
    """A hub and the local cache of its repositories.

    Attributes:
        endpoint: address of the hub; None for that of `HF_ENDPOINT`, or the public one.
        cache_dir: None for the cache that every program of this user shares (`HF_HUB_CACHE`).
        token: for private repositories; None for the one that was logged in with.
        offline: never ask the hub, use what the cache has.

    Raises:
        ImportError: huggingface_hub is not installed (`pip install trainloop[hub]`).
    """

    endpoint: str | None = None
    cache_dir: Path | str | None = None
    token: str | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        require("huggingface_hub", "a hub repository")

    def snapshot(
        self,
        repo: str,
        revision: str = "main",
        *,
        kind: Literal["model", "dataset"] = "model",
        choose: Choose | None = None,
    ) -> Path:
        """A folder with the files of `repo` at `revision`, whole and as the hub has them.

        A connection that is cut goes on from the byte it had come to; so does the next call after a failure,
        also in another process. When the hub cannot be reached, the cache answers, with a warning.

        Args:
            repo: `organisation/name`.
            revision: branch, tag or commit.
            kind: of repository.
            choose: which of its files; None for all.

        Raises:
            DownloadError: no such repository or revision, no network and nothing in the cache, an answer that
                is an error, or a file whose hash is not the one the hub names.
        """
        if self.offline:
            return self._from_cache(repo, revision, kind, choose, "offline=True")
        import huggingface_hub as hub

        api = hub.HfApi(endpoint=self.endpoint, token=self.token)
        try:
            with _explained(repo, revision, api.endpoint):
                commit = api.repo_info(repo, revision=revision, repo_type=kind).sha
                assert commit is not None
                tree = api.list_repo_tree(repo, recursive=True, revision=commit, repo_type=kind)
                files = {entry.path: entry for entry in tree if isinstance(entry, hub.hf_api.RepoFile)}
        except _Unreachable as e:
            folder = self._from_cache(repo, revision, kind, choose, str(e))
            _log.warning("%s; using the copy in the cache, %s", e, folder)
            return folder
        paths = list(files) if choose is None else choose(list(files))
        self._fetch([files[p] for p in paths], repo, commit, kind, api)
        with _explained(repo, revision, api.endpoint):
            # Every blob is there: this lays out the folder of this commit.
            folder = hub.snapshot_download(
                repo,
                revision=commit,
                repo_type=kind,
                cache_dir=self.cache_dir,
                endpoint=self.endpoint,
                token=self.token,
                allow_patterns=_exactly(paths),
            )
        _write_atomically(self._home(repo, kind) / "refs" / revision, commit)
        return Path(folder)

    def _fetch(self, files: list[Any], repo: str, commit: str, kind: str, api: Any) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        headers = build_hf_headers(token=self.token) | {"Accept-Encoding": "identity"}
        home = self._home(repo, kind)

        def one(file: Any) -> None:
            digest = file.lfs.sha256 if file.lfs is not None else file.blob_id
            url = hf_hub_url(repo, file.path, repo_type=kind, revision=commit, endpoint=self.endpoint)
            with _explained(f"{repo}/{file.path}", commit, api.endpoint):
                _fetch_blob(url, headers, home, digest, file.size, file.path)

        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            list(pool.map(one, files))

    def _from_cache(self, repo: str, revision: str, kind: str, choose: Choose | None, why: str) -> Path:
        import huggingface_hub as hub
        from huggingface_hub.errors import LocalEntryNotFoundError

        where: dict[str, Any] = {"repo_type": kind, "revision": revision, "cache_dir": self.cache_dir}
        wanted = None
        if choose is not None and hasattr(hub, "get_cached_repo_tree"):  # an older hub does not look for gaps
            with suppress(hub.errors.CachedRepoTreeNotFoundError):
                wanted = _exactly(choose([f.path for f in hub.get_cached_repo_tree(repo, **where)]))
        try:
            return Path(hub.snapshot_download(repo, **where, allow_patterns=wanted, local_files_only=True))
        except LocalEntryNotFoundError as e:
            raise DownloadError(
                f"{repo} at {revision!r}: {why}, and the cache {self._cache} has no whole copy of it. Load it once "
                "with a network, point cache_dir= to a cache that has it, or give a local folder"
            ) from e

    @property
    def _cache(self) -> Path:
        from huggingface_hub import constants

        return Path(self.cache_dir or constants.HF_HUB_CACHE).expanduser()

    def _home(self, repo: str, kind: str) -> Path:
        from huggingface_hub.file_download import repo_folder_name

        return self._cache / repo_folder_name(repo_id=repo, repo_type=kind)


def _exactly(paths: list[str]) -> list[str]:
    return [glob.escape(p) for p in paths]


class _Unreachable(DownloadError):
    """The hub did not answer at all."""


@contextmanager
def _explained(what: str, revision: str, endpoint: str) -> Iterator[None]:
    """Errors of the client, in words that say what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as e:
        raise DownloadError(f"{what} at {endpoint} is gated: accept its terms there, then pass token=") from e
    except errors.RepositoryNotFoundError as e:
        raise DownloadError(
            f"there is no repository {what} at {endpoint}, or it is private: check the spelling "
            "(organisation/name; a local folder must exist), or pass token="
        ) from e
    except errors.RevisionNotFoundError as e:
        raise DownloadError(f"{what} at {endpoint} has no revision {revision!r} (branch, tag or commit)") from e
    except errors.HFValidationError as e:
        raise DownloadError(f"{what!r} is neither a local path that exists nor a repository's name: {e}") from e
    except errors.HfHubHTTPError as e:
        raise DownloadError(f"{what}: {endpoint} answered {e.response.status_code}; try again later ({e})") from e
    except _transport() as e:
        if getattr(e, "errno", None) is not None:
            raise  # of this machine, such as a full disk
        raise _Unreachable(f"{what}: {endpoint} cannot be reached ({type(e).__name__}: {e})") from e


def _transport() -> tuple[type[Exception], ...]:
    """What a failing connection raises: which library carries the requests differs between versions of the client."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *HfHubHTTPError.__bases__)


def _fetch_blob(url: str, headers: dict[str, str], home: Path, digest: str, size: int, name: str) -> None:
    """Bring one file to `blobs/<digest>`.

    Raises:
        DownloadError: its hash is another one.
    """
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock

    blob = home / "blobs" / digest
    partial = blob.with_name(f"{digest}.incomplete")
    lock = home.parent / ".locks" / home.name / f"{digest}.lock"  # the hub's own name for it
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        while not blob.exists():
            had = partial.stat().st_size if partial.exists() else 0
            if had <= size:
                try:
                    with partial.open("ab") as f:
                        http_get(url, f, resume_size=had, headers=headers, expected_size=size, displayed_filename=name)
                except _transport():
                    if had < partial.stat().st_size <= size:
                        continue  # cut off, but something came: from there
                    raise
                fsync(partial)
                found = blob_digest(partial, like=digest)
                if found == digest:
                    os.replace(partial, blob)
                    return
            partial.unlink()
            if not had:
                raise DownloadError(
                    f"{name}: the bytes of {url} do not have the hash that the hub names: expected {digest}, "
                    f"found {found}. Nothing was kept; try again, and if it stays wrong, another endpoint"
                )
            # What was there before was of something else: once more, from the start.


def blob_digest(path: Path, like: str) -> str:
    """The hash under which a hub names a file: sha256 of a large one (64 hex digits), else git's (40).

    Raises:
        DownloadError: `like` is neither.
    """
    if len(like) == 64:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    if len(like) == 40:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        with path.open("rb") as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()
    raise DownloadError(f"{path}: the hub names it by {like!r}, which is no hash it could be verified with")


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
