"""Which weights a config needs, whether they are here, and what is said when they can't be had."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from refseg_bench import cli
from refseg_bench.backbones import weights as models
from refseg_bench.backbones.weights import ModelError, Weights, fetch, find, needs_of, shipped
from refseg_bench.errors import ConfigError
from refseg_bench.files.store_io import sealed_text
from tests.launch.runs import HANGS
from tests.quick import quick_first


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub cache that holds one snapshot and one loose file, as the hub's client lays them out."""
    import huggingface_hub.constants as constants

    hub = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(hub), raising=False)
    repo = hub / "models--some--model"
    commit = "a" * 40
    snapshot = repo / "snapshots" / commit
    blobs = repo / "blobs"
    (repo / "refs").mkdir(parents=True)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    for name in ("config.json", "model.safetensors", "weights.pt"):
        (blobs / name).write_bytes(b"x" * 1000)
        (snapshot / name).symlink_to(blobs / name)
    return hub


def test_cached_snapshots_and_files_are_found(cache):
    whole = find(Weights("some/model"))
    assert whole.path is not None
    assert whole.commit == "a" * 40
    assert whole.megabytes == pytest.approx(0.003)
    assert find(Weights("some/model", "a" * 40)).path == whole.path
    assert find(Weights("some/model", "other")).path is None
    assert find(Weights("none/model")).path is None

    # A snapshot without tensors of the wanted kind, or with a shard missing, is not "here".
    assert find(Weights("some/model", patterns=("*.bin",))).path is None
    index = cache / "models--some--model" / "blobs" / "index"
    index.write_text('{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}')
    place = whole.path / "model.safetensors.index.json"
    place.symlink_to(index)
    assert find(Weights("some/model", patterns=("*.json", "*.safetensors"))).path is None
    (whole.path / "model-2.safetensors").symlink_to(whole.path / "model.safetensors")
    assert find(Weights("some/model", patterns=("*.json", "*.safetensors"))).path is not None


def test_local_paths_need_no_hub(tmp_path):
    checkpoint = tmp_path / "weights.pt"
    missing = Weights(str(checkpoint), component="segmenter=sam2")
    assert find(missing).path is None
    with pytest.raises(ModelError, match="not there") as caught:
        fetch(missing)
    assert caught.value.where == str(checkpoint)
    checkpoint.write_bytes(b"x" * 2_000_000)
    assert fetch(missing) == checkpoint
    assert find(missing).megabytes == pytest.approx(2.0)
    assert models.identity(missing)["sha256"] == hashlib.sha256(b"x" * 2_000_000).hexdigest()


def test_weights_are_known_by_their_content_and_read_once(tmp_path, monkeypatch):
    folder, memory = tmp_path / "model", tmp_path / "cache"
    (folder / ".cache").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    blob = bytearray(3 << 20)
    tensors = folder / "model.safetensors"
    tensors.write_bytes(blob)
    needed = Weights(str(folder))
    before = models.content(needed, memory)
    (folder / ".cache" / "download.json").write_text("of the tool that fetched it")
    shutil.copytree(folder, tmp_path / "copy")
    assert models.content(Weights(str(tmp_path / "copy")), memory) == before
    assert models.content(Weights(str(folder), patterns=("*.json",)), memory) != before

    def age(path):
        later = time.time() + 10
        monkeypatch.setattr(models.time, "time", lambda: later)
        return path.stat()

    state = age(tensors)
    assert models.content(needed, memory) == before
    read = []
    real = hashlib.file_digest
    monkeypatch.setattr(
        models.hashlib, "file_digest", lambda *given: read.append(given[0].name) or real(*given)
    )
    assert models.content(needed, memory) == before
    assert read == [str(folder / "config.json")]  # small files are read anyway
    blob[1 << 20] = 1  # neither end, nor length, nor the time that tools copy tells
    tensors.write_bytes(blob)
    os.utime(tensors, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert models.content(needed, memory) not in (before, None)
    assert models.content(Weights(str(tmp_path / "none")), memory) is None


def test_weights_of_the_hub_are_known_by_their_commit(cache, monkeypatch):
    monkeypatch.setattr(models, "cache_folder", lambda: cache)
    assert models.content(Weights("some/model")) == "a" * 40
    assert models.content(Weights("some/model", "b" * 40)) == "b" * 40
    assert models.content(Weights("some/model", "v1")) is None
    assert models.content(Weights("none/model")) is None
    assert models.content(Weights("no/such/folder")) is None


def test_weights_of_a_name_in_no_encoding_are_known(tmp_path, monkeypatch):
    (tmp_path / "w").mkdir()
    path = os.fsencode(tmp_path / "w") + b"/\xe9.safetensors"
    with open(path, "wb") as handle:
        handle.write(bytes(2 << 20))
    later = time.time() + 10
    monkeypatch.setattr(models.time, "time", lambda: later)
    needed = Weights(str(tmp_path / "w"))
    assert models.content(needed, tmp_path / "cache") == models.content(needed) is not None


def test_untrained_models_of_the_hub_are_those_of_the_revision_and_from_this_machine(monkeypatch):
    import transformers

    asked = []

    class Untrained:
        @staticmethod
        def from_config(config, **options):
            return options

    def note(place, **options):
        asked.append((place, options))
        return SimpleNamespace(dtype=None)

    monkeypatch.setattr(models, "untrained", True)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", note)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", note)
    hub = {"revision": "v1", "local_files_only": True}
    made = models.load_module(
        Untrained, "some/model", "auto", torch.device("cpu"), attn_implementation="sdpa", **hub
    )
    models.load_tokenizer("some/model", "tiny_mllm", **hub)
    assert asked == [("some/model", hub)] * 2
    assert made["attn_implementation"] == "sdpa"


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens", "shared", "SAM"])
def test_what_a_checkpoint_holds_once_for_two_places_is_not_missing(name, tmp_path):
    import transformers

    from tests.tiny_mllm import build
    from tools.tiny_sam import write_sam1

    if name == "SAM":
        kind, tied = transformers.SamModel, "prompt_encoder.shared_embedding.positional_embedding"
        write_sam1(tmp_path)
    elif name == "lm_head":
        kind, tied = transformers.AutoModelForImageTextToText, "lm_head.weight"
        model = build("qwen2_5_vl")
        model.config.tie_word_embeddings = True
        model.tie_weights()
        model.save_pretrained(tmp_path)
    else:  # what T5 1.1 says of its embeddings holds of its decoder's output
        kind, tied = transformers.T5EncoderModel, "encoder.embed_tokens.weight"
        small = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2, "vocab_size": 9}
        kind(transformers.T5Config(**small, tie_word_embeddings=False)).save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    assert tied not in held
    if name == "embed_tokens":
        held[tied] = held.pop("shared.weight")
        save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = models.load_module(kind, tmp_path, torch.float32, torch.device("cpu")).state_dict()
    assert any(torch.equal(found[tied], tensor) for tensor in held.values())


def test_weights_go_to_the_device_from_their_files():
    from diffusers import AutoencoderKL
    from transformers import AutoModelForImageTextToText, Sam2VideoModel

    for kind, place in (
        (AutoModelForImageTextToText, "tiny_mllm"),
        (Sam2VideoModel, "tiny_sam2"),
        (AutoencoderKL, "tiny_dit/vae"),
    ):
        made = models.load_module(kind, shipped(place), torch.float32, torch.device("meta"))
        assert {tensor.device.type for tensor in (*made.parameters(), *made.buffers())} == {"meta"}


def test_a_device_that_this_machine_lacks_is_refused_before_the_first_sample():
    with pytest.raises(ConfigError, match="not available here"):
        models.choose_device("xpu")


def test_offline_says_what_is_missing_and_how_to_get_it(monkeypatch, tmp_path):
    with pytest.raises(ModelError, match="offline mode forbids") as caught:
        fetch(Weights("no/such-model", "v1", "m.pt", component="segmenter=sam2"), offline=True)
    assert "no/such-model@v1" in str(caught.value)
    assert "refseg models get segmenter=sam2" in str(caught.value)


def test_the_hub_is_tried_once_a_process_and_never_for_a_local_model(tmp_path, monkeypatch):
    tried = []

    def refuse(place, timeout):
        tried.append(place)
        raise OSError("no route")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(models.socket, "create_connection", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    models.reachable.cache_clear()
    try:
        assert models.here_only(str(tmp_path))
        assert models.here_only("some/model", offline=True)
        assert tried == []
        assert models.here_only("some/model")
        assert models.here_only("another/model")
        with pytest.raises(ModelError, match="can't be reached"):
            models.fetch(Weights("nobody/nothing"))
        assert len(tried) == 1
    finally:
        models.reachable.cache_clear()


def test_every_hub_failure_is_told():
    from huggingface_hub import errors

    class ConnectError(Exception):
        """As the hub's HTTP client raises it: of its own, with no common base."""

    ConnectError.__module__ = "httpx2._exceptions"
    response = SimpleNamespace(headers={}, status_code=404, request=None, url="http://hub.invalid")
    weights = Weights("some/model", "v9", "m.pt", component="segmenter=sam2")
    cases = [
        (errors.RevisionNotFoundError("", response=response), "no revision 'v9'"),
        (errors.GatedRepoError("", response=response), "accepted its terms"),
        (errors.RepositoryNotFoundError("", response=response), "no public repository"),
        (errors.RemoteEntryNotFoundError("", response=response), "has no file 'm.pt'"),
        (errors.LocalEntryNotFoundError(""), "can't be reached"),
        (ConnectError("refused"), "can't be reached"),
        (OSError("We couldn't connect to 'https://huggingface.co'"), "can't be reached"),
    ]
    for error, words in cases:

        def fail(error=error):
            raise error

        with pytest.raises(ModelError, match=words):
            models.told(fail, weights, offline=False)

    def bug():
        raise KeyError("not the hub's")

    with pytest.raises(KeyError):
        models.told(bug, weights, offline=False)


def run(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "refseg_bench", "models", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=HANGS,
    )


@pytest.mark.slow
def test_unreachable_hub_is_one_clear_message(tmp_path):
    done = run(
        "get", "segmenter=sam2",
        HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path), no_proxy="*",
        HTTP_PROXY="", HTTPS_PROXY="", ALL_PROXY="", http_proxy="", https_proxy="", all_proxy="",
    )  # fmt: skip
    assert done.returncode == 2
    assert "can't be reached" in done.stderr
    assert "http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def main(*words):
    args = cli.parser(["models"]).parse_args(["models", *words])
    assert isinstance(args, argparse.Namespace)
    return args.main(args)


def test_list_names_every_component(capsys):
    assert main("list") == 0
    shown = capsys.readouterr().out
    assert "facebook/sam2-hiera-large, sam2_hiera_large.pt" in shown
    assert "segmenter=grabcut\n  no weights" in shown
    assert "cache:" in shown
    assert "backbone=chat_local\n  can't tell: The chat model has no name." in shown


def test_list_of_something_definite_fails_if_it_is_missing(capsys, tmp_path):
    checkpoint = tmp_path / "tiny.pt"
    words = ("list", "segmenter=sam2", f"segmenter.checkpoint={checkpoint}")
    assert main(*words) == 1
    assert "missing" in capsys.readouterr().out
    checkpoint.write_bytes(b"x")
    assert main(*words) == 0
    assert "here" in capsys.readouterr().out
    assert main("list", "segmenter=sam2", "segmenter.size=tiny", "segmenter.release=sam2.1") == 1
    assert "facebook/sam2.1-hiera-tiny, sam2.1_hiera_tiny.pt" in capsys.readouterr().out


def test_run_folders_and_overrides_tell_their_needs(capsys, tmp_path):
    config = (
        "segmenter:\n  _target_: refseg_bench.segmenters.sam1.Sam1\n  model: ./nowhere\nmethod:\n  name: x\n"
    )
    (tmp_path / "config.yaml").write_text(sealed_text(config))
    assert main("list", str(tmp_path)) == 1
    assert "./nowhere" in capsys.readouterr().out
    assert main("list", "segmenter=sam1", "method=oracle_point", "dataset=shapes") == 1
    shown = capsys.readouterr().out
    assert "method\n  no weights" in shown
    assert "facebook/sam-vit-huge" in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("get",), "fetches what it is told"),
        (("get", "segmenter=sam2", "--revision", "v1"), "belong to --repo"),
        (("list", "banana"), "neither GROUP=NAME"),
        (("list", "segmenter=banana"), "No segmenter 'banana'"),
        (("list", "segmenter.size=tiny"), "no segmenter is chosen"),
    ],
)
def test_bad_questions_are_told(words, told):
    with pytest.raises(models.RefsegError, match=told):
        main(*words)


def test_a_component_tells_the_weights_it_needs():
    nodes = {
        "backbone": {"_target_": "refseg_bench.backbones.mllm.MLLM", "path": "some/model", "revision": "v1"},
        "dataset": {"_target_": "refseg_bench.segmenters.grabcut.GrabCut"},
        "broken": {"_target_": "refseg_bench.segmenters.sam1.Nothing"},
    }
    by_node = {need.node: need for need in needs_of(nodes)}
    assert [(w.repo, w.revision) for w in by_node["backbone"].weights] == [("some/model", "v1")]
    assert by_node["dataset"].weights == ()
    assert "no 'Nothing'" in str(by_node["broken"].problem)


@pytest.mark.parametrize("method", quick_first(["point_control", "refam", "concept_attention"]))
def test_what_a_method_reads_beside_its_models_is_listed(tmp_path, capsys, monkeypatch, method):
    captions = tmp_path / "captions.json"
    at = "method.source" if method == "point_control" else "method"
    words = [f"method={method}", f"{at}.captions={captions}"]
    assert cli.main(["models", "list", *words]) == 1
    told = capsys.readouterr().out
    assert f"{at}\n  {captions}\n    missing\n" in told
    captions.write_text("{}")
    cli.main(["models", "list", *words])
    assert f"{at}\n  {captions}\n    here, 0 MB: {captions}" in capsys.readouterr().out
    parser = f"{at}.np.parser" if method == "refam" else f"{at}.parser"
    if method != "point_control":
        assert cli.main(["models", "list", *words, f"{parser}=no_such_model"]) == 1
        assert "can't tell: " in capsys.readouterr().out
