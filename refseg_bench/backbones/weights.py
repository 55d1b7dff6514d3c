"""Model weights: what a component needs, whether it is here, and fetching it by hub id and revision.

Weights are found in this order: a local path, the hub's cache on disk, the hub. Nothing is fetched
behind the user's back in offline mode (``offline: true`` of a component, or ``HF_HUB_OFFLINE=1``).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from errno import EACCES, EDQUOT, ENOSPC, EROFS
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from refseg_bench.backbones.lazy_torch import torch
from refseg_bench.cache import Cache
from refseg_bench.config import schema
from refseg_bench.config.schema import TARGET
from refseg_bench.errors import ConfigError, RefsegError, StoreError, missing_package, require, some
from refseg_bench.files.store_io import files_in, look, read_json

T = TypeVar("T")
log = logging.getLogger(__name__)

_HUB = "https://huggingface.co"
#: Weights that come with this package are named so.
SHIPPED = "shipped:"
_PACKAGED = Path(__file__).resolve().parents[1] / "weights"
_TENSORS = (".safetensors", ".bin", ".pt", ".pth")
#: How the files' names begin that a tokenizer is made from.
_VOCABULARIES = ("tokenizer.", "vocab", "spiece.", "sentencepiece.", "tekken.")
_AGAIN = "Delete what is there and fetch it again, or name another model."


class ModelError(ConfigError):
    """A model's weights are missing, unreachable or not what the config says: no sample is predicted."""


class _Lacking(ModelError):
    """A file of theirs is not there; the hub may have it."""


@dataclass(frozen=True)
class Weights:
    """The weights one component needs."""

    repo: str  #: hub id (``owner/name``), a local file or folder, or ``shipped:NAME``
    revision: str | None = None  #: commit, tag or branch of the hub repository; ``None`` = its main branch
    file: str | None = None  #: the one file needed, or ``None`` for a whole snapshot
    patterns: tuple[str, ...] = ()  #: which files of a snapshot are needed; empty = all
    component: str = ""  #: who needs them, as the config names it
    #: ``model_type`` of its config, or class of a pipeline's transformer, that will do; empty = any.
    kinds: tuple[str, ...] = ()

    def __str__(self) -> str:
        revision = f" @ {self.revision}" if self.revision else ""
        return f"{self.repo}{revision}{f', {self.file}' if self.file else ''}"

    @property
    def local(self) -> bool:
        """Whether ``repo`` is a path (absolute, with ``.`` or ``~``, or existing) or shipped, no hub id."""
        return self.repo.startswith((SHIPPED, ".", "/", "~")) or Path(self.repo).exists()

    @property
    def place(self) -> Path:
        """Where local weights are."""
        return folder_of(self.repo) or Path(self.repo).expanduser()


@dataclass(frozen=True)
class WeightsStatus:
    """Where weights are on this machine (``None`` = they aren't), at which commit, where that is known.

    ``problem``: why what is here can't be used, and fetching won't help.
    """

    weights: Weights
    path: Path | None
    commit: str | None = None
    megabytes: float = 0.0
    problem: ModelError | None = None


@dataclass(frozen=True)
class Need:
    """A config node and the weights it asks for; ``problem`` is set where it could not be asked."""

    node: str
    target: str
    weights: tuple[Weights, ...] = field(default=())
    problem: str | None = None


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
    kind: Any, place: Path, dtype: Any, device: torch.device, *, by_host: bool = False, **options: Any
) -> Any:
    """A module of transformers or diffusers with its weights, from its folder onto the device.

    ``dtype`` may be ``auto`` for the checkpoint's own (transformers). ``by_host``: the caller sends weights
    to the device, for not all are to go. Further options are those of the class's ``from_pretrained``.

    Raises:
        ModelError: it can't be loaded, or the checkpoint lacks weights of the module.
    """
    diffused = hasattr(kind, "load_config")
    if not untrained:
        options |= {"torch_dtype" if diffused else "dtype": dtype}
        with _loading(place):
            module = _whole(kind, place, None if by_host else device, **options)
            if device.type == "cpu":
                # They are mapped from the file: who overwrites it would change the model at work.
                for tensor in (*module.parameters(), *module.buffers()):
                    tensor.data = tensor.data.clone()
            return module
    from transformers import AutoConfig

    known = getattr(kind, "config_class", None) or AutoConfig
    config = kind.load_config(place) if diffused else load_processor(known, place)
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


def _whole(kind: Any, place: Path, device: torch.device | None, **options: Any) -> Any:
    """A module none of whose weights is random: what a checkpoint lacks its library only warns of.

    On an accelerator each tensor goes there from its file, so that the host never holds all of them.
    """
    if device is not None and device.type != "cpu":
        require("accelerate", "Loading weights onto an accelerator")
        options["device_map"] = device
    if not hasattr(kind, "load_config"):
        options |= _OURS
        options["ignore_mismatched_sizes"] = True  # told below, with the names
    module, found = kind.from_pretrained(place, output_loading_info=True, local_files_only=True, **options)
    lacking = sorted([*found["missing_keys"], *(name for name, *_ in found.get("mismatched_keys", ()))])
    if lacking:
        raise ModelError(
            f"The checkpoint lacks {len(lacking)} of the weights of {type(module).__name__}, or has them in "
            f"another shape, so that they would be random: {some(lacking, 3)}.",
            where=place,
            hint="Fetch it again; merge a part of a model (an adapter …) into a whole one first.",
        )
    return module


#: Left out, transformers asks on the terminal whether to run a repository's own code.
_OURS = {"trust_remote_code": False}


def load_processor(kind: Any, place: Path) -> Any:
    """A config, tokenizer or processor of transformers by its class; what can't be loaded is a ModelError."""
    with _loading(place):
        return kind.from_pretrained(place, local_files_only=True, **_OURS)


def load_tokenizer(place: Path, stand_in: str) -> Any:
    """A tokenizer of transformers; where untrained weights have none, one of this package stands in."""
    from transformers import AutoTokenizer

    names = {file.name for file in place.glob("*")}
    if not any(name.startswith(_VOCABULARIES) for name in names):
        # transformers would make one that knows no word.
        if not untrained:
            raise ModelError("The folder holds no tokenizer.", where=place, hint=_AGAIN)
        place = shipped(stand_in)
    elif "tokenizer.json" not in names and any(name.endswith(".model") for name in names):
        for package, module in (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf")):
            try:
                import_module(module)
            except ImportError as error:
                raise missing_package("A tokenizer without a tokenizer.json", package) from error
    return load_processor(AutoTokenizer, place)


@contextlib.contextmanager
def _loading(place: Path) -> Iterator[None]:
    """Tell whatever a library raises on a folder that it can't load: no sample would do better."""
    try:
        yield
    except (RefsegError, torch.OutOfMemoryError):
        raise
    except UnpicklingError as error:
        what = "The model can't be loaded: its file holds more than tensors, which is never run."
        raise ModelError(what, where=place, hint="Give the model in safetensors.") from error
    except Exception as error:
        why = str(error).split("\n")[0]
        raise ModelError(f"The model can't be loaded: {type(error).__name__}: {why}", where=place) from error
    refuse_changed(place)


def refuse_changed(place: Path) -> None:
    """Raise if files that were just read are not those that this process knows a run's weights by.

    Raises:
        ModelError: one was changed since :func:`identity` told of it.
    """
    for path, (state, digest) in _states.items():
        if path.is_relative_to(place) and not (
            path.is_file() and (look(path) == state or _sha256(path, Cache(None)) == digest)
        ):
            what = "The file was changed while this process was at work."
            error = ModelError(what, where=path, hint="The same command goes on with what is there now.")
            error.code = os.EX_TEMPFAIL
            raise error


# ── on this machine ──────────────────────────────────────────────────────────


def find(weights: Weights) -> WeightsStatus:
    """Look for weights on this machine, and whether they are whole; the network is never asked."""
    place = weights.place if weights.local else _snapshot(weights)
    commit = None if weights.local or place is None else place.name
    found = WeightsStatus(weights, None, commit)
    if place is None:
        return found
    if weights.file is not None and (commit or place.is_dir()):
        place /= weights.file
    elif commit is not None:
        from huggingface_hub import snapshot_download

        patterns, cache = list(weights.patterns) or None, cache_folder()
        try:  # a repository that is fetched whole brings a list of its files
            snapshot_download(
                weights.repo, revision=commit, cache_dir=cache, allow_patterns=patterns, local_files_only=True
            )
        except OSError:
            return found
    try:
        _refuse_unfit(place, weights)
    except _Lacking as error:
        return replace(found, problem=error if weights.local else None)
    except ModelError as error:
        return replace(found, problem=error)
    return replace(found, path=place, megabytes=_megabytes(place))


def _refuse_unfit(place: Path, weights: Weights) -> None:
    """Raise unless weights are whole and of a kind that is loaded; nothing of them is run."""
    if not place.exists():
        what = f"The weights of {weights.component or 'the model'} are not there."
        raise _Lacking(what, where=place, hint="Correct the path, or give a hub id.")
    if untrained:
        return
    try:
        if not place.is_dir():
            if weights.patterns or place.suffix in _TENSORS:  # a text is told of by who reads it
                _refuse_torn(place)
            if weights.patterns and weights.file is None:
                raise ModelError("This is a file; the folder of a model is wanted.", where=place)
        elif weights.patterns:  # else it is in a form of its component's own
            _refuse_folder(place, weights)
    except StoreError as error:
        raise ModelError(error.what, where=error.where, hint=error.hint) from error
    except OSError as error:
        raise ModelError(f"The weights can't be read: {error.strerror}.", where=error.filename) from error


def _refuse_folder(place: Path, weights: Weights) -> None:
    patterns = (*weights.patterns, *(f"*{end}" for end in _TENSORS if weights.local))
    names = {name: place / name for name in files_in(place) if any(fnmatch(name, p) for p in patterns)}
    if "adapter_config.json" in names:
        base = read_json(names["adapter_config.json"]).get("base_model_name_or_path")
        hint = "Merge it into the model first (peft: merge_and_unload, save_pretrained)."
        raise ModelError(f"This is an adapter of '{base}', not a whole model.", where=place, hint=hint)
    pipeline = read_json(names["model_index.json"]) if "model_index.json" in names else {}
    configs = {name: read_json(path) for name, path in names.items() if name.endswith("config.json")}
    entries = {name: entry[1] for name, entry in pipeline.items() if isinstance(entry, list) and entry[1:]}
    kind = entries.get("transformer", configs.get("config.json", {}).get("model_type"))
    if weights.kinds and kind not in weights.kinds:
        if kind is None:
            raise _Lacking("No config.json or model_index.json tells what model this is.", where=place)
        what, hint = f"A model of type '{kind}' can't be used here.", "Set backbone.family, or take another."
        raise ModelError(what, where=place, allowed=weights.kinds, hint=hint)
    for part in [name for name, made in entries.items() if made] or [""]:
        if part and not any(fnmatch(f"{part}/_", p) for p in patterns):
            continue
        own = {name: path for name, path in names.items() if not part or name.startswith(f"{part}/")}
        if not own:
            raise _Lacking(f"The model's {part} is not there.", where=place / part, hint=_AGAIN)
        config = f"{part}/config.json" if part else "config.json"
        if config in configs:
            _refuse_quantised(configs[config], names[config])
        if config in configs or not part:
            _refuse_partial(place / part, list(own.values()))


def _refuse_partial(folder: Path, files: Sequence[Path]) -> None:
    """Raise unless the tensors of a model, and every shard that its indices name, are there and whole."""
    tensors = [path for path in files if path.suffix in _TENSORS]
    if not tensors:
        other = next((path.name for path in sorted(folder.glob("*.gguf"))), None)
        what = f"The folder holds no weights in safetensors{f', only {other}' if other else ''}."
        raise _Lacking(what, where=folder, hint="Fetch the model in the format of transformers or diffusers.")
    best = {path.parent for path in tensors if path.suffix == ".safetensors"}  # is loaded before others
    for index in (path for path in files if path.name.endswith(".index.json")):
        if index.parent in best and not index.name.endswith(".safetensors.index.json"):
            continue
        named = read_json(index).get("weight_map")
        for shard in sorted(set(map(str, named.values()))) if isinstance(named, dict) else ["/"]:
            if Path(shard).name != shard:
                raise ModelError("The index names no files of its own folder.", where=index, hint=_AGAIN)
            if index.parent / shard not in tensors:
                raise _Lacking(f"{shard} is not there, which {index.name} names.", where=folder, hint=_AGAIN)
    for path in tensors:
        if path.suffix == ".safetensors" or path.parent not in best:
            _refuse_torn(path)


def _refuse_torn(path: Path) -> None:
    """Raise if a file is cut, or stands for one that was to be fetched."""
    with path.open("rb") as stream:
        head = stream.read(64)
    reason = None
    if head.startswith(b"version https://git-lfs"):
        reason = "is a pointer of Git LFS, not the file itself"
    elif head.lstrip()[:1] == b"<":
        reason = "is a web page"
    elif head[:4] == b"GGUF":
        reason = "is of the format GGUF, which is not read"
    elif path.suffix == ".safetensors":
        try:
            with safe_open(path, "np"):
                pass
        except SafetensorError as error:
            reason = f"is cut, or no safetensors file ({error})"
    elif not head or (head[:2] == b"PK" and not is_zipfile(path)):
        reason = "is cut"
    if reason is not None:
        raise ModelError(f"{path.name} {reason}.", where=path, hint=_AGAIN)


def _refuse_quantised(config: Mapping[str, Any], path: Path) -> None:
    """Raise if weights are quantised in a way that transformers or diffusers can't load here."""
    given = config.get("quantization_config")
    if given is None:
        return
    if "_class_name" in config:
        from diffusers.quantizers.auto import DiffusersAutoQuantizer as Quantizer
    else:
        from transformers.quantizers.auto import AutoHfQuantizer as Quantizer
    try:
        Quantizer.from_config(dict(given), pre_quantized=True).validate_environment(device_map=None)
    except (ImportError, ValueError, TypeError, KeyError) as error:
        what = f"The weights are quantised, and can't be loaded so: {next(iter(str(error).splitlines()), '')}"
        hint = "Install what it names, or give weights that are not quantised."
        raise ModelError(what, where=path, hint=hint) from error
    except RuntimeError:
        log.warning("a GPU is needed for quantised weights: %s", path)


def identity(weights: Weights, cache: Path | None = None) -> dict[str, Any]:
    """Which weights these are, for a run's record and for keys: what they are called, and their content.

    What a file holds is remembered in ``cache``: it is read once, until it is changed. A process at work on
    a run is told the same each time: what is changed meanwhile it has loaded before, or refuses to load.

    Returns:
        ``repo``, ``revision``, ``file``, and ``sha256`` of a local file or folder, or ``commit`` of a
        repository of the hub; neither where the weights are not on this machine. Beside a commit ``sha256``
        stands for files in the hub's cache that somebody has changed.

    Raises:
        ModelError: a file can't be read.
    """
    if weights in _first:
        return dict(_first[weights])
    told = _identity(weights, cache)
    if _wanted_by and told.keys() & {"sha256", "commit"}:
        _first[weights] = told
    return dict(told)


def _identity(weights: Weights, cache: Path | None) -> dict[str, Any]:
    told: dict[str, Any] = {"repo": weights.repo, "revision": weights.revision, "file": weights.file}
    place = weights.place if weights.local else _snapshot(weights)
    if place is None:
        return told
    memory = Cache(None if cache is None else cache / "weights")
    try:
        if place.is_file():
            return told | {"sha256": _sha256(place, memory)}
        names = files_in(place)
        wanted = (weights.file,) if weights.file and not weights.local else weights.patterns
        if wanted:
            names = [name for name in names if any(fnmatch(name, p) for p in wanted)]
        if not weights.local:
            told["commit"] = place.name
            linked = any((place / name).is_symlink() for name in names)
            names = [name for name in names if linked and _edited(place / name, memory)]
            if names:
                log.warning("changed in the hub's cache: %s", ", ".join(str(place / name) for name in names))
        lines = [f"{_sha256(place / name, memory)}  {name}\n" for name in names]
    except OSError as error:
        raise ModelError(f"The weights can't be read: {error.strerror}.", where=error.filename) from error
    whole = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return told | ({"sha256": whole} if lines else {})


def _edited(path: Path, memory: Cache) -> bool:
    """Whether a file of the hub's cache is not what was fetched: it links to a file named by its digest."""
    digest, size = path.resolve().name, path.stat().st_size
    if not path.is_symlink():
        return True
    if len(digest) == 40 and size <= 1 << 24:
        data = path.read_bytes()  # git's digest, or that of a mirror
        return digest not in (hashlib.sha1(head + data).hexdigest() for head in (b"blob %d\0" % size, b""))
    # It is linked to as soon as it is there; a large one of the same time need not be read.
    later = max(path.stat().st_mtime, path.stat().st_ctime) > path.lstat().st_mtime + 60
    return len(digest) == 64 and later and _sha256(path, memory) != digest


def content(weights: Weights, cache: Path | None = None) -> str | None:
    """The part of :func:`identity` that tells of the content; ``None`` where the weights are not here."""
    told = identity(weights, cache)
    return told.get("sha256") or told.get("commit")


def _sha256(path: Path, memory: Cache) -> str:
    """The digest of a file; of a large one it is remembered as long as nobody touches the file."""
    state = path.stat()
    # Times of the inode as well: copying tools set the other. Those of a file that is just being written
    # don't tell two contents apart.
    now = look(path)
    key = {
        "file": str(path.resolve()).encode("utf-8", "backslashreplace").decode("utf-8"),
        "state": list(now),
    }
    lasting = state.st_size > 1 << 20 and time.time() - state.st_ctime > 2
    known = memory.get(key) if lasting else None
    if known is None:
        if state.st_size > 1 << 30:
            log.warning("reading %.1f GB of weights, this once: %s", state.st_size / 1e9, path)
        with path.open("rb") as stream:
            known = {"sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
        if lasting:
            memory.put(key, known)
    found = str(known["sha256"])
    if _wanted_by:
        _states.setdefault(path, (now, found))
    return found


def _snapshot(weights: Weights) -> Path | None:
    """The folder (its name is a commit) of a repository's revision in the hub's cache; ``None`` = unknown."""
    require("huggingface_hub", "Looking into the hub's cache")
    from huggingface_hub.file_download import repo_folder_name

    try:
        folder = cache_folder() / repo_folder_name(repo_id=weights.repo, repo_type="model")
    except ValueError:
        return None  # no id of the hub: who loads it tells of it
    wanted = _revision(weights) or "main"
    with contextlib.suppress(OSError, ValueError):  # a commit is its own name
        wanted = (folder / "refs" / wanted).read_text("utf-8").strip()
    return folder / "snapshots" / wanted if re.fullmatch("[0-9a-f]{40}", wanted) else None


def _megabytes(path: Path) -> float:
    files = (path / name for name in files_in(path)) if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files) / 1e6


# ── from the hub ─────────────────────────────────────────────────────────────


def fetch(weights: Weights, *, offline: bool = False) -> Path:
    """Make sure the weights are on this machine; returns the file, or the folder of the snapshot.

    ``offline``: look into the cache only.

    Raises:
        ModelError: missing offline, unknown repository or revision, no access, hub unreachable.
    """
    found = find(weights)
    if found.problem is not None:
        raise found.problem
    if found.path is not None:
        return found.path  # what is here needs no network, not even to be looked up
    if offline or offline_by_environment() or not reachable():
        raise _absent(weights, offline or offline_by_environment())
    from huggingface_hub import hf_hub_download, snapshot_download

    def load() -> str:
        if weights.file is not None:
            return hf_hub_download(weights.repo, weights.file, revision=_revision(weights))
        patterns = [p for p in weights.patterns if not (untrained and p.endswith(_TENSORS))] or None
        return snapshot_download(weights.repo, revision=_revision(weights), allow_patterns=patterns)

    log.warning("%s is not on this machine: fetching it", weights)
    place = Path(told(load, weights))
    _refuse_unfit(place, weights)
    return place


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


def hub_megabytes(weights: Weights, *, offline: bool = False) -> float | None:
    """What :func:`fetch` would bring, by the hub's listing; ``None``: it can't be asked. Refused as there."""
    if offline or offline_by_environment() or not reachable():
        return None
    from huggingface_hub import HfApi

    def ask() -> Any:
        told = HfApi().model_info(weights.repo, revision=weights.revision, timeout=10, files_metadata=True)
        if told.gated:
            HfApi().auth_check(weights.repo)  # all may read the listing
        return told

    found = told(ask, weights)
    files = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    if weights.file is not None:
        return files[weights.file] / 1e6 if weights.file in files else None
    wanted = [n for n in files if not weights.patterns or any(fnmatch(n, p) for p in weights.patterns)]
    return sum(files[name] for name in wanted) / 1e6


def told(load: Callable[[], T], weights: Weights) -> T:
    """Run something that asks the hub, and tell its failures with their hint.

    Raises:
        ModelError: see :func:`fetch`.
    """
    from huggingface_hub import errors as hub

    repo, name = weights.repo, _spelled(weights)
    no_revision = f"The hub's repository '{repo}' has no revision '{weights.revision}'."
    terms = f"Accept the terms at {_HUB}/{repo} and log in with `hf auth login`."
    private = "Check the spelling; for a private one log in with `hf auth login`."
    no_file, no_id = f"'{name}' has no file '{weights.file}'.", f"'{repo}' is no id of the hub."
    refusals: dict[type[Exception], tuple[str, str]] = {
        hub.RevisionNotFoundError: (no_revision, "Give a commit, tag or branch that exists."),
        hub.GatedRepoError: (f"The hub gives '{repo}' only to accounts that accepted its terms.", terms),
        hub.RepositoryNotFoundError: (f"The hub has no public repository '{repo}'.", private),
        hub.RemoteEntryNotFoundError: (no_file, "Correct the file name or the revision."),
        hub.HFValidationError: (no_id, "It is owner/name; a path begins with . or /."),
    }
    try:
        return load()
    except tuple(refusals) as error:
        what, hint = next(words for kind, words in refusals.items() if isinstance(error, kind))
        raise ModelError(what, where=weights.component or None, hint=hint) from error
    except Exception as error:
        answer = error if isinstance(error, hub.HfHubHTTPError) else error.__cause__
        if isinstance(answer, hub.HfHubHTTPError):
            why = str(answer).strip().split("\n")[0]
            raise ModelError(f"The hub doesn't give '{name}': {why}", where=weights.component) from error
        if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT, EACCES, EROFS):
            what = f"The weights can't be kept: {error.strerror}."
            raise ModelError(
                what, where=cache_folder(), hint="Set HF_HOME to a folder that has room."
            ) from error
        # The hub's HTTP client raises its own connection errors, which belong to no common base.
        lost = type(error).__module__.startswith(("httpx", "httpcore", "requests.", "urllib3."))
        if lost or isinstance(error, OSError):
            raise _absent(weights, offline=False) from error
        raise


def _revision(weights: Weights) -> str | None:
    """The commit that a branch was at when the work on this process's run began; else what is asked for."""
    alike = (weights.repo, weights.revision)
    told = (told.get("commit") for one, told in _first.items() if (one.repo, one.revision) == alike)
    return next(told, None) or weights.revision


def _spelled(weights: Weights) -> str:
    return weights.repo + (f"@{weights.revision}" if weights.revision else "")


#: The run that this process is at work on; what it was told of weights first; state and digest of files then.
_wanted_by = ""
_first: dict[Weights, dict[str, Any]] = {}
_states: dict[Path, tuple[tuple[int, ...], str]] = {}


@contextlib.contextmanager
def wanted_by(run: Path) -> Iterator[None]:
    """Within the block one run is worked on: weights stay what they are known by when it begins.

    Missing ones are told with the command that fetches all that the run needs.
    """
    global _wanted_by
    _wanted_by = shlex.quote(str(run))
    try:
        yield
    finally:
        _wanted_by = ""
        _first.clear()
        _states.clear()


def _absent(weights: Weights, offline: bool) -> ModelError:
    name, begun = _spelled(weights), _snapshot(weights)
    lacking = "is in the cache in part" if begun is not None and begun.is_dir() else "is not in the cache"
    revision = f" --revision {weights.revision}" if weights.revision else ""
    asked = weights.component if "=" in weights.component else f"--repo {weights.repo}{revision}"
    get = f"refseg models get {_wanted_by or asked}"
    what = f" (file '{weights.file}')" if weights.file else ""
    if offline:
        return ModelError(
            f"'{name}'{what} {lacking}, and offline mode forbids fetching it.",
            where=cache_folder(),
            hint=f"On a machine with network: {get}; or set HF_HOME to the cache that holds it.",
        )
    return ModelError(
        f"'{name}'{what} {lacking}, and the hub can't be reached.",
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
        if parts and not cls.weights_alone:
            return Need(where, target)
        said = schema.construct(cls, values, where, **dict.fromkeys(parts, object())).weights()
        return Need(where, target, tuple(said or ()))
    except RefsegError as error:
        return Need(where, target, (), str(error))
