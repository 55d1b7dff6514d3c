"""Model weights: what a component needs, whether it is here, and fetching it by hub id and revision.

Weights are found in this order: a local path, the hub's cache on disk, the hub. Nothing is fetched
behind the user's back in offline mode (``offline: true`` of a component, or ``HF_HUB_OFFLINE=1``).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from refseg_bench.backbones.lazy_torch import torch
from refseg_bench.cache import Cache
from refseg_bench.config import schema
from refseg_bench.config.schema import TARGET
from refseg_bench.errors import ConfigError, RefsegError, require
from refseg_bench.files.store_io import look

T = TypeVar("T")
log = logging.getLogger(__name__)

_HUB = "https://huggingface.co"
#: Weights that come with this package are named so.
SHIPPED = "shipped:"
_PACKAGED = Path(__file__).resolve().parents[1] / "weights"
_TENSORS = (".safetensors", ".bin", ".pt", ".pth")


class ModelError(ConfigError):
    """A model's weights are missing, unreachable or not what the config says: no sample is predicted."""


@dataclass(frozen=True)
class Weights:
    """The weights one component needs.

    Attributes:
        repo: hub id (``owner/name``), a local file or folder, or ``shipped:NAME``.
        revision: commit, tag or branch of the hub repository; ``None`` = its main branch.
        file: the one file needed, or ``None`` for a whole snapshot.
        patterns: which files of a snapshot are needed; empty = all.
        component: who needs them, as the config names it.
    """

    repo: str
    revision: str | None = None
    file: str | None = None
    patterns: tuple[str, ...] = ()
    component: str = ""

    def __str__(self) -> str:
        revision = f" @ {self.revision}" if self.revision else ""
        return f"{self.repo}{revision}{f', {self.file}' if self.file else ''}"

    @property
    def local(self) -> bool:
        """Whether ``repo`` is a path rather than a hub id."""
        return is_local(self.repo)

    @property
    def place(self) -> Path:
        """Where local weights are."""
        return folder_of(self.repo) or Path(self.repo).expanduser()


@dataclass(frozen=True)
class WeightsStatus:
    """Where weights are on this machine (``None`` = they aren't), at which commit, where that is known."""

    weights: Weights
    path: Path | None
    commit: str | None = None
    megabytes: float = 0.0


@dataclass(frozen=True)
class Need:
    """A config node and the weights it asks for; ``problem`` is set where it could not be asked."""

    node: str
    target: str
    weights: tuple[Weights, ...] = field(default=())
    problem: str | None = None


def is_local(repo: str) -> bool:
    """A path (absolute, relative with ``.`` or ``~``, or existing) or shipped, rather than a hub id."""
    return repo.startswith((SHIPPED, ".", "/", "~")) or Path(repo).exists()


def shipped(name: str) -> Path:
    """The folder of a model whose weights ship with the package.

    Raises:
        ConfigError: no such model.
    """
    place = _PACKAGED / name
    if not place.is_dir():
        raise ConfigError(
            f"No shipped weights '{name}'.", allowed=sorted(p.name for p in _PACKAGED.iterdir() if p.is_dir())
        )
    return place


def is_shipped(weights: Weights) -> bool:
    """Whether they are this package's own."""
    return weights.repo.startswith((SHIPPED, str(shipped(""))))


def folder_of(path: str) -> Path | None:
    """The folder that a model's path names: one of this package's (``shipped:NAME``) or a local one."""
    if path.startswith(SHIPPED):
        return shipped(path.removeprefix(SHIPPED))
    folder = Path(path).expanduser()
    return folder if folder.is_dir() else None


def offline_by_environment() -> bool:
    """Whether ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE`` forbids the network."""
    return any(
        os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def choose_device(name: str) -> torch.device:
    """``auto`` = the first CUDA device if there is one, else the CPU.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)  # torch knows more devices than a machine has
    except (RuntimeError, AssertionError) as error:
        there = (f"cuda:{i}" for i in range(torch.cuda.device_count()))
        raise ConfigError(
            f"device '{name}' is not available here.", allowed=("auto", "cpu", *there)
        ) from error
    return device


# ── loading ──────────────────────────────────────────────────────────────────

#: Set by ``refseg doctor --random``: modules are made from their configs on the device, untrained.
untrained = False


def load_module(
    kind: Any, place: Path | str, dtype: Any, device: torch.device, *, by_host: bool = False, **options: Any
) -> Any:
    """A module of transformers or diffusers with its weights.

    Args:
        kind: its class, or an auto class of transformers.
        place: folder or hub id.
        dtype: a torch type, or ``auto`` for the checkpoint's own (transformers).
        device: where the weights go.
        by_host: leave it to the caller to send them there: not all are to go.
        options: of ``from_pretrained``.

    Raises:
        ModelError: the checkpoint lacks weights of the module.
    """
    diffused = hasattr(kind, "load_config")
    if not untrained:
        options |= {"torch_dtype" if diffused else "dtype": dtype}
        return _whole(kind, place, None if by_host else device, **options)
    from transformers import AutoConfig

    known = getattr(kind, "config_class", None) or AutoConfig
    hub = {key: value for key, value in options.items() if key in ("revision", "local_files_only")}
    config = kind.load_config(place, **hub) if diffused else known.from_pretrained(place, **hub)
    former = torch.get_default_dtype()
    dtype = (config.dtype or former) if dtype == "auto" else dtype
    torch.set_default_dtype(dtype)
    try:
        with device:
            if diffused:
                return kind.from_config(config)
            make = getattr(kind, "from_config", None) or kind._from_config
            options = {key: value for key, value in options.items() if key == "attn_implementation"}
            return make(config, dtype=dtype, **options)
    finally:
        torch.set_default_dtype(former)


def _whole(kind: Any, place: Path | str, device: torch.device | None, **options: Any) -> Any:
    """A module none of whose weights is random: what a checkpoint lacks its library only warns of.

    On an accelerator each tensor goes there from its file, so that the host never holds all of them.
    """
    if device is not None and device.type != "cpu":
        require("accelerate", "Loading weights onto an accelerator")
        options["device_map"] = device
    if not hasattr(kind, "load_config"):
        options["ignore_mismatched_sizes"] = True  # told below, with the names
    module, found = kind.from_pretrained(place, output_loading_info=True, **options)
    lacking = sorted([*found["missing_keys"], *(name for name, *_ in found.get("mismatched_keys", ()))])
    if lacking:
        raise ModelError(
            f"The checkpoint lacks {len(lacking)} of the weights of {type(module).__name__}, or has them in "
            f"another shape, so that they would be random: {', '.join(lacking[:3])}"
            f"{' …' if len(lacking) > 3 else ''}.",
            where=place,
            hint="Fetch it again; merge a part of a model (an adapter …) into a whole one first.",
        )
    return module


def load_tokenizer(place: Path | str, stand_in: str, **options: Any) -> Any:
    """A tokenizer of transformers; where untrained weights have none, one of this package stands in."""
    from transformers import AutoTokenizer

    if untrained and is_local(str(place)) and not list(Path(place).glob("*token*")):
        place = shipped(stand_in)
    return AutoTokenizer.from_pretrained(place, **options)


# ── on this machine ──────────────────────────────────────────────────────────


def find(weights: Weights) -> WeightsStatus:
    """Look for weights on this machine; the network is never asked."""
    if weights.local:
        place = weights.place
        place = place / weights.file if weights.file and place.is_dir() else place
        return WeightsStatus(weights, place if place.exists() else None, None, _megabytes(place))
    snapshot = _snapshot(weights)
    if snapshot is None or not snapshot.is_dir():
        return WeightsStatus(weights, None)
    if weights.file is not None:
        place = snapshot / weights.file
        whole = place.is_file()
    else:
        place, files = snapshot, (path for path in snapshot.rglob("*") if path.is_file())
        whole = _complete({p.relative_to(snapshot).as_posix(): p for p in files}, weights.patterns)
    return WeightsStatus(weights, place if whole else None, snapshot.name, _megabytes(place))


def _complete(files: Mapping[str, Path], patterns: Sequence[str]) -> bool:
    """Whether a snapshot holds tensors of the wanted kind, and every shard its indices name."""
    wanted = [name for name in files if not patterns or any(fnmatch(name, p) for p in patterns)]
    if not any(name.endswith(_TENSORS) for name in wanted):
        return False
    for name in wanted:
        if name.endswith(".safetensors.index.json"):
            shards = json.loads(files[name].read_text("utf-8")).get("weight_map", {}).values()
            folder = name.rpartition("/")[0]
            if any((f"{folder}/{shard}" if folder else shard) not in files for shard in shards):
                return False
    return True


def identity(weights: Weights, cache: Path | None = None) -> dict[str, Any]:
    """Which weights these are, for a run's record and for keys: what they are called, and their content.

    What a file holds is remembered in ``cache``: it is read once, until it is changed.

    Returns:
        ``repo``, ``revision``, ``file``, and ``sha256`` of a local file or folder, or ``commit`` of a
        repository of the hub; neither where the weights are not on this machine.

    Raises:
        ModelError: a file can't be read.
    """
    told: dict[str, Any] = {"repo": weights.repo, "revision": weights.revision, "file": weights.file}
    if not weights.local:
        snapshot = _snapshot(weights)
        return told | ({"commit": snapshot.name} if snapshot else {})
    place = weights.place
    memory = Cache(None if cache is None else cache / "weights")
    try:
        if place.is_file():
            return told | {"sha256": _sha256(place, memory)}
        names = sorted(path.relative_to(place) for path in place.rglob("*") if path.is_file())
        # A download leaves its own records in hidden folders.
        names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
        if weights.patterns:
            names = [n for n in names if any(fnmatch(n.as_posix(), p) for p in weights.patterns)]
        lines = [f"{_sha256(place / name, memory)}  {name.as_posix()}\n" for name in names]
    except OSError as error:
        raise ModelError(f"The weights can't be read: {error.strerror}.", where=error.filename) from error
    whole = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return told | ({"sha256": whole} if lines else {})


def content(weights: Weights, cache: Path | None = None) -> str | None:
    """The part of :func:`identity` that tells of the content; ``None`` where the weights are not here."""
    told = identity(weights, cache)
    return told.get("sha256") or told.get("commit")


def _sha256(path: Path, memory: Cache) -> str:
    """The digest of a file; of a large one it is remembered as long as nobody touches the file."""
    state = path.stat()
    # Times of the inode as well: copying tools set the other. Those of a file that is just being written
    # don't tell two contents apart.
    key = {
        "file": str(path.resolve()).encode("utf-8", "backslashreplace").decode("utf-8"),
        "state": list(look(path)),
    }
    lasting = state.st_size > 1 << 20 and time.time() - state.st_ctime > 2
    known = memory.get(key) if lasting else None
    if known is not None:
        return str(known["sha256"])
    if state.st_size > 1 << 30:
        log.warning("reading %.1f GB of weights, this once: %s", state.st_size / 1e9, path)
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if lasting:
        memory.put(key, {"sha256": found})
    return found


def _snapshot(weights: Weights) -> Path | None:
    """The folder (its name is a commit) of a repository's revision in the hub's cache; ``None`` = unknown."""
    require("huggingface_hub", "Looking into the hub's cache")
    from huggingface_hub.file_download import repo_folder_name

    try:
        folder = cache_folder() / repo_folder_name(repo_id=weights.repo, repo_type="model")
    except ValueError:
        return None  # no id of the hub: who loads it tells of it
    wanted = weights.revision or "main"
    with contextlib.suppress(OSError, ValueError):  # a commit is its own name
        wanted = (folder / "refs" / wanted).read_text("utf-8").strip()
    return folder / "snapshots" / wanted if re.fullmatch("[0-9a-f]{40}", wanted) else None


def _megabytes(path: Path) -> float:
    if path.is_file():
        return path.stat().st_size / 1e6
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
    return 0.0


# ── from the hub ─────────────────────────────────────────────────────────────


def fetch(weights: Weights, *, offline: bool = False) -> Path:
    """Make sure the weights are on this machine; returns the file, or the folder of the snapshot.

    ``offline``: look into the cache only.

    Raises:
        ModelError: missing offline, unknown repository or revision, no access, hub unreachable.
    """
    if weights.local:
        status = find(weights)
        if status.path is None:
            raise ModelError(
                f"The weights of {weights.component or 'the model'} are not there.",
                where=weights.place,
                hint="Correct the path, or give a hub id.",
            )
        return status.path
    require("huggingface_hub", "Fetching weights")
    from huggingface_hub import hf_hub_download, snapshot_download

    only_cache = offline or offline_by_environment()

    def load() -> str:
        if weights.file is not None:
            return hf_hub_download(
                weights.repo, weights.file, revision=weights.revision, local_files_only=only_cache
            )
        return snapshot_download(
            weights.repo,
            revision=weights.revision,
            allow_patterns=list(weights.patterns) or None,
            local_files_only=only_cache,
        )

    if not only_cache:
        try:
            only_cache = True
            return Path(load())  # what is here needs no network, not even to be looked up
        except (OSError, ValueError):
            only_cache = False
        if not reachable():
            raise _absent(_spelled(weights), weights, False)
        log.warning("%s is not on this machine: fetching it", weights)
    return Path(told(load, weights, offline=only_cache))


@functools.cache
def reachable() -> bool:
    """Whether a connection to the hub can be made, tried once per process.

    The hub's client would try for half a minute, for every file anew.
    """
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    if getproxies().keys() & {"http", "https", "all"}:
        return True  # a proxy may reach what we can't
    place = urlsplit(os.environ.get("HF_ENDPOINT", _HUB))
    try:
        socket.create_connection(
            (place.hostname or "", place.port or (80 if place.scheme == "http" else 443)), timeout=10
        ).close()
    except OSError:
        return False
    return True


def hub_megabytes(weights: Weights) -> float | None:
    """What fetching the weights would bring, by the hub's listing; ``None`` where it can't be asked."""
    if weights.local or offline_by_environment() or not reachable():
        return None
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(weights.repo, revision=weights.revision, timeout=10, files_metadata=True)
    except (OSError, ValueError):
        return None
    files = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    if weights.file is not None:
        return files[weights.file] / 1e6 if weights.file in files else None
    wanted = [n for n in files if not weights.patterns or any(fnmatch(n, p) for p in weights.patterns)]
    return sum(files[name] for name in wanted) / 1e6


def here_only(repo: str, *, offline: bool = False) -> bool:
    """Whether a model is to be loaded from this machine alone: asked for, or the hub can't be reached."""
    return offline or is_local(repo) or offline_by_environment() or not reachable()


def from_pretrained(
    kind: Any, weights: Weights, device: torch.device | None = None, *, offline: bool = False, **options: Any
) -> Any:
    """A model (for ``device``) or tokenizer of transformers, from this machine where it is here.

    ``offline``: look into the cache only. Further options are those of the class's ``from_pretrained``.

    Raises:
        ModelError: see :func:`fetch`; or the checkpoint lacks weights of the model.
    """
    offline = offline or offline_by_environment()
    here = here_only(weights.repo, offline=offline)
    place = weights.place if weights.local else weights.repo
    options |= {"revision": weights.revision, "local_files_only": here}

    def load() -> Any:
        if hasattr(kind, "from_config") or hasattr(kind, "_from_config"):
            return _whole(kind, place, device, **options)
        return kind.from_pretrained(place, **options)

    return told(load, weights, offline=offline)


def told(load: Callable[[], T], weights: Weights, *, offline: bool) -> T:
    """Run something that loads from the hub, and tell its failures with their hint.

    Raises:
        ModelError: see :func:`fetch`.
    """
    from huggingface_hub import errors as hub

    repo, name = weights.repo, _spelled(weights)
    refusals: dict[type[Exception], tuple[str, str]] = {
        hub.RevisionNotFoundError: (
            f"The hub's repository '{repo}' has no revision '{weights.revision}'.",
            "Give a commit, tag or branch that exists.",
        ),
        hub.GatedRepoError: (
            f"The hub gives '{repo}' only to accounts that accepted its terms.",
            f"Accept the terms at {_HUB}/{repo} and log in with `hf auth login`.",
        ),
        hub.RepositoryNotFoundError: (
            f"The hub has no public repository '{repo}'.",
            "Check the spelling; for a private one log in with `hf auth login`.",
        ),
        hub.RemoteEntryNotFoundError: (
            f"'{name}' has no file '{weights.file}'.",
            "Correct the file name or the revision.",
        ),
    }
    try:
        return load()
    except tuple(refusals) as error:
        what, hint = next(words for kind, words in refusals.items() if isinstance(error, kind))
        raise ModelError(what, where=weights.component or None, hint=hint) from error
    except Exception as error:
        # transformers wraps failures of the hub into a plain OSError; the hub's HTTP client raises its own
        # connection errors, which belong to no common base.
        lost = type(error).__module__.startswith(("httpx", "httpcore", "requests.", "urllib3."))
        if weights.local and isinstance(error, OSError):
            raise ModelError(f"The model can't be loaded: {error}", where=weights.place) from error
        if lost or isinstance(error, OSError):
            raise _absent(name, weights, offline) from error
        raise


def _spelled(weights: Weights) -> str:
    return weights.repo + (f"@{weights.revision}" if weights.revision else "")


_wanted_by = ""


@contextlib.contextmanager
def wanted_by(run: Path) -> Iterator[None]:
    """Within the block, missing weights are told with the command that fetches all that a run needs."""
    global _wanted_by
    _wanted_by = shlex.quote(str(run))
    try:
        yield
    finally:
        _wanted_by = ""


def _absent(name: str, weights: Weights, offline: bool) -> ModelError:
    asked = weights.component if "=" in weights.component else f"--repo {weights.repo}"
    get = f"refseg models get {_wanted_by or asked}"
    what = f" (file '{weights.file}')" if weights.file else ""
    if offline:
        return ModelError(
            f"'{name}'{what} is not in the cache, and offline mode forbids fetching it.",
            where=cache_folder(),
            hint=f"On a machine with network: {get}; or set HF_HOME to the cache that holds it.",
        )
    return ModelError(
        f"'{name}'{what} is not in the cache, and the hub can't be reached.",
        where=os.environ.get("HF_ENDPOINT", _HUB),
        hint=f"Check the network (HF_ENDPOINT names a mirror), fetch it elsewhere with {get} "
        "and copy HF_HOME, or give a local path.",
    )


def cache_folder() -> Path:
    """Where the hub's cache is."""
    require("huggingface_hub", "The hub's cache")
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


# ── what a config needs ──────────────────────────────────────────────────────


def needs_of(config: Mapping[str, Any], prefix: str = "") -> Iterator[Need]:
    """The weights every component of a (resolved) config asks for.

    A component tells them by a method ``weights()``; it is built for the question but loads nothing.
    """
    if TARGET in config:
        yield need_of(config, prefix)
    for name, node in config.items():
        if isinstance(node, Mapping):
            yield from needs_of(node, f"{prefix}.{name}" if prefix else str(name))


def need_of(node: Mapping[str, Any], where: str) -> Need:
    """The weights one component asks for."""
    target = str(node[TARGET])
    try:
        cls = schema.locate(target, where)
        values = schema.complete(node, where)
        parts = schema.injected(cls)
        alone = not parts or getattr(cls, "weights_alone", False)
        if isinstance(cls, type) and callable(getattr(cls, "weights", None)) and alone:
            said = schema.construct(cls, values, where, **dict.fromkeys(parts, object())).weights()
            return Need(where, target, tuple(said or ()))
    except RefsegError as error:
        return Need(where, target, (), str(error))
    return Need(where, target)
