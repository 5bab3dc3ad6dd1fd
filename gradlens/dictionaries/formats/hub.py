"""Files of a repository on the hub, through `huggingface_hub` with its own cache and token; offline what is cached is used."""

from __future__ import annotations

import difflib
import re
from pathlib import Path, PurePosixPath

from gradlens.dictionaries.formats.tensors import WEIGHTS
from gradlens.errors import InputError

CONFIGS = (".json", ".yaml")
MANY = 4  # weights files in one folder from which on a part has to be named before they are fetched


def fetch(named: str, repo: str, revision: str | None, inner: str, part: tuple[int, ...]) -> tuple[Path, str]:
    """The snapshot folder with the files of `inner` (a folder or file of the repository) in it, and `inner`. Raises `InputError`."""
    from huggingface_hub import HfApi, constants, errors, hf_hub_download

    where = f"{named}: nothing of that name on this machine"
    if constants.HF_HUB_OFFLINE:
        return _cached(named, repo, revision, inner, f"{where}, and the hub is switched off (HF_HUB_OFFLINE)")
    try:
        listed = HfApi().list_repo_files(repo, revision=revision)
        wanted = select(named, listed, inner, part)
        paths = [Path(hf_hub_download(repo, name, revision=revision)) for name in wanted]
    except errors.GatedRepoError:
        raise InputError(f"{named}: {repo} is gated; accept its terms on the hub and log in (hf auth login)") from None
    except errors.RepositoryNotFoundError:
        raise InputError(f"{where}, and the hub has no {repo} (or it is private: hf auth login)") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{named}: {repo} has no revision {revision}") from None
    except errors.HFValidationError as error:
        raise InputError(f"{named}: {error}") from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HTTPError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return _cached(named, repo, revision, inner, f"{where}, and the hub cannot be reached ({reason})")
    return paths[0].parents[len(PurePosixPath(wanted[0]).parts) - 1], inner


def _cached(named: str, repo: str, revision: str | None, inner: str, why: str) -> tuple[Path, str]:
    from huggingface_hub import errors, snapshot_download

    try:
        root = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, FileNotFoundError):
        root = None
    if root is not None and (root / inner).exists():
        return root, inner
    held = [] if root is None else sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix in WEIGHTS)
    lacks = f"of {repo} the cache holds only {', '.join(held[:4])}" if held else f"{repo} is not in its cache"
    fetch_it = f"hf download {repo} --include '{inner}*'" if inner else f"hf download {repo}"
    raise InputError(f"{why}; {lacks}: run `{fetch_it}` where there is a connection, or give a folder")


def select(named: str, listed: list[str], inner: str, part: tuple[int, ...]) -> list[str]:
    """The files of a repository that a source needs: those of its folder (and `checkpoints/` in it), or the file and configs near it."""
    if inner in listed:
        wanted = _beside(listed, inner, part)
    else:
        prefix = f"{inner}/" if inner else ""
        own = [name for name in listed if name.startswith(prefix)]
        depth = len(PurePosixPath(inner).parts) if inner else 0
        wanted = [name for name in own if len(PurePosixPath(name).parts) == depth + 1 or name.startswith(f"{prefix}checkpoints/")]
        wanted = [name for name in wanted if PurePosixPath(name).suffix in (*WEIGHTS, *CONFIGS)]
        if part:
            numbers = {str(number) for number in part}
            wanted = [name for name in wanted if not (n := re.findall(r"\d+", PurePosixPath(name).stem)) or n[-1] in numbers]
    weights = [name for name in wanted if PurePosixPath(name).suffix in WEIGHTS]
    if not weights:
        folders = sorted({str(PurePosixPath(name).parent) for name in listed if PurePosixPath(name).suffix in WEIGHTS} - {"."})
        near = difflib.get_close_matches(inner, folders, n=3, cutoff=0.3) or folders[:3]
        holds = f"; it has {', '.join(near)}{', ...' if len(folders) > len(near) else ''}" if near else ""
        raise InputError(f"{named}: the repository has no weights at {inner or 'its root'}{holds}")
    if len(weights) > MANY:
        first = weights[0].rpartition("/")[2]
        raise InputError(f"{named}: {len(weights)} weights files are there ({first}, ...); name one, or a layer (SOURCE#3)")
    above = {str(parent) for name in weights for parent in PurePosixPath(name).parents}
    configs = [name for name in listed if PurePosixPath(name).suffix in CONFIGS and str(PurePosixPath(name).parent) in above]
    return sorted({*weights, *configs})


def _beside(listed: list[str], inner: str, part: tuple[int, ...]) -> list[str]:
    """A file, and what belongs to it: the decoder of a cross-layer transcoder stands in a file of its own."""
    number = re.fullmatch(r"(?:.*/)?(W_enc|W_dec|params_layer)_(\d+)\.safetensors", inner)
    if not number:
        return [inner]
    numbers = {number[2], *(str(n) for n in part)}
    stem = inner.rpartition("/")[0]
    names = {f"{stem + '/' if stem else ''}{kind}_{n}.safetensors" for n in numbers for kind in ("W_enc", "W_dec", "params_layer")}
    return [name for name in listed if name in names]
