"""Files of a repository on the Hugging Face hub: from the hub, or from its cache on this machine.

What is downloaded stays in the hub's cache, so that with HF_HUB_OFFLINE=1 the same call works
without a network. A download first says what is fetched and how large it is.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from humanize import naturalsize

from loraudit.base.errors import UNWRITABLE, UserError
from loraudit.data.sources import describe, say
from loraudit.studies.entries import HubSource

Kind = Literal["model", "dataset"]

PATIENCE = 5
"""Seconds in which the hub must say what a repository holds."""


def listed(source: HubSource, kind: Kind) -> dict[str, int] | None:
    """Return the names and sizes in bytes of a repository's files; None with HF_HUB_OFFLINE=1.

    Raises:
        UserError: the hub does not answer in a few seconds, or does not give the repository.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        found = HfApi().repo_info(
            source.hub,
            revision=source.revision,
            repo_type=kind,
            timeout=PATIENCE,
            files_metadata=True,
        )
    except Exception as error:
        raise not_got(source, kind, error) from None
    return {file.rfilename: int(file.size or 0) for file in getattr(found, "siblings", None) or ()}


def announce(
    source: HubSource, files: dict[str, int] | None, patterns: Iterable[str], folders: bool = True
) -> None:
    """Say how many bytes `download` will fetch at most, with the same arguments."""
    from huggingface_hub import constants
    from huggingface_hub.utils import filter_repo_objects

    if files is None:
        say(f"{describe(source)}: from the cache {constants.HF_HUB_CACHE} (HF_HUB_OFFLINE is set)")
        return
    ignored = None if folders else ["*/*"]
    wanted = filter_repo_objects(files, allow_patterns=[*patterns], ignore_patterns=ignored)
    say(f"fetching {describe(source)}: {naturalsize(sum(files[name] for name in wanted))} at most")


def download(source: HubSource, kind: Kind, patterns: Iterable[str], folders: bool = True) -> Path:
    """Return the folder in the hub's cache that has a repository's files, downloaded if need be.

    Args:
        source: the repository and its revision.
        kind: what the repository holds.
        patterns: names of files to have; `*` stands for any text, with / too.
        folders: whether files in sub-folders count.

    Raises:
        UserError: a file cannot be got, with the reason and what can be done about it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        folder = snapshot_download(
            source.hub,
            revision=source.revision,
            repo_type=kind,
            allow_patterns=[*patterns],
            ignore_patterns=None if folders else ["*/*"],
        )
    except Exception as error:  # the hub's, the network's and the disk's
        raise not_got(source, kind, error) from None
    return Path(folder)


def not_got(source: HubSource, kind: Kind, error: Exception) -> UserError:
    """Make the error for files that the hub does not give: why, and what can be done about it."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    explained = (_refused(source, kind, each) or _local(source, each) for each in chain)
    said = next(filter(None, explained), None) or _unreachable(kind, chain)
    return UserError(f"cannot get {source.hub} from the Hugging Face hub {said}")


def _refused(source: HubSource, kind: Kind, error: BaseException) -> str | None:
    """Explain the hub's answer that it does not give a repository, a revision or a file."""
    from huggingface_hub import constants, errors, get_token

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{source.hub}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError) and get_token():
        return (
            "(it is gated): the account of the token that was sent has no access; ask for it on "
            f"{page}, or set HF_TOKEN to the token of an account that has"
        )
    if isinstance(error, errors.GatedRepoError):
        return (
            f"(it is gated): ask for access on {page}, make a token on "
            f"{constants.ENDPOINT}/settings/tokens, and set HF_TOKEN to it"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        table = {"model": "models.yaml", "dataset": "tasks.yaml"}[kind]
        return (
            f"(no such {kind} repository): correct its name, the key hub in config/{table}; if it "
            "is private, set HF_TOKEN to a token that may read it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"(no such revision {source.revision!r}): take the 40 digits of a commit from "
            f"{page}/commits/main"
        )
    if isinstance(error, errors.DisabledRepoError):
        return f"(it is disabled): {page} may say why; take another repository"
    if status == 401:
        return "(it refuses the token that was sent): renew HF_TOKEN, or unset it"
    if status == 429:
        return "(too many requests): start again in some minutes, or set HF_TOKEN to a token"
    return None


def _local(source: HubSource, error: BaseException) -> str | None:
    """Explain an error of this machine: its disk, its cache, or a firewall before the storage."""
    from huggingface_hub import constants, errors

    text = _first_line(error)
    full = isinstance(error, OSError) and error.errno in UNWRITABLE
    if full or "No space left on device" in text:
        return f"(the disk: {text}): make room in {constants.HF_HUB_CACHE}, or move it by HF_HOME"
    offline = isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE
    if offline or isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"(HF_HUB_OFFLINE is set): the cache {constants.HF_HUB_CACHE} does not hold all files "
            f"of revision {source.revision[:7]} that are needed; unset HF_HUB_OFFLINE to download "
            "them"
        )
    if _through_xet(error):
        return (
            f"(its xet storage: {text}): if a firewall blocks it, set HF_HUB_DISABLE_XET=1 to "
            "download without it"
        )
    return None


def _through_xet(error: BaseException) -> bool:
    """Return whether an error was raised while a file came from the hub's xet storage."""
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_name == "xet_get":
            return True
        step = step.tb_next
    return False


def _unreachable(kind: Kind, chain: list[BaseException]) -> str:
    """Explain a hub that does not answer, or that breaks off before the end.

    The first error may only say that the cache has no copy either; the next one says why.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    told = [error for error in chain if not isinstance(error, LocalEntryNotFoundError)]
    error = told[0] if told else chain[0]
    local = {
        "model": "models=<folder with one sub-folder per model>",
        "dataset": "glue=<folder in the hub's layout>",
    }[kind]
    return (
        f"({type(error).__name__}: {_first_line(error)}); connect this machine, give a local copy "
        f"with --config {local}, or set HF_HUB_OFFLINE=1 if the files are in the hub's cache here"
    )


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's text that is not empty, or the name of its type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
