"""Which weights a config needs, whether they are here, and what is said when they can't be had."""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from refseg_bench import cli
from refseg_bench.backbones import weights as models
from refseg_bench.backbones.dit import DiT
from refseg_bench.backbones.mllm import MLLM
from refseg_bench.backbones.weights import ModelError, Weights, fetch, find, needs_of, shipped
from refseg_bench.errors import ConfigError
from refseg_bench.files.store_io import sealed_text
from tests.fakes import set_back
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
        (blobs / name).write_bytes(b"{}" * 500 if name == "weights.pt" else b"{}")
        (snapshot / name).symlink_to(blobs / name)
    save_file({"a": torch.zeros(2)}, blobs / "model.safetensors")
    return hub


def test_cached_snapshots_and_files_are_found(cache):
    whole = find(Weights("some/model"))
    assert whole.path is not None
    assert whole.commit == "a" * 40
    assert whole.megabytes == pytest.approx(0.001, abs=0.0002)
    assert find(Weights("some/model", "a" * 40)).path == whole.path
    assert find(Weights("some/model", "other")).path is None
    assert find(Weights("none/model")).path is None

    # A snapshot without tensors of the wanted kind, or with a shard missing, is not "here".
    assert find(Weights("some/model", patterns=("*.bin",))).path is None
    (whole.path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "not fetched"}}')
    assert find(Weights("some/model")).path is not None
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
    set_back(tensors, state)
    assert models.content(needed, memory) not in (before, None)
    assert models.content(Weights(str(tmp_path / "none")), memory) is None


def test_a_part_that_is_linked_to_is_a_part(tmp_path):
    folder, part = tmp_path / "model", tmp_path / "shared"
    shutil.copytree(shipped("tiny_dit"), folder)
    (needed,) = DiT(str(folder), "sd3").weights()
    before = find(needed), models.content(needed)
    (folder / "transformer").rename(part)
    (folder / "transformer").symlink_to(part)
    assert (find(needed), models.content(needed)) == before
    assert before[0].problem is None
    (folder / "latest").symlink_to(".")  # a way round
    assert (find(needed), models.content(needed)) == before
    (part / "config.json").write_text((part / "config.json").read_text() + "\n")
    assert models.content(needed) not in (before[1], None)


def test_weights_of_the_hub_are_known_by_their_commit(cache, monkeypatch):
    monkeypatch.setattr(models, "cache_folder", lambda: cache)
    assert models.content(Weights("some/model")) == "a" * 40
    assert models.content(Weights("some/model", "b" * 40)) == "b" * 40
    assert models.content(Weights("some/model", "v1")) is None
    assert models.content(Weights("none/model")) is None
    assert models.content(Weights("no/such/folder")) is None


def test_what_somebody_changed_in_the_hubs_cache_is_another_model(cache, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(models, "cache_folder", lambda: cache)
    repo, told = cache / "models--some--model", Weights("some/model")
    snapshot = repo / "snapshots" / ("a" * 40)
    texts = {"config.json": b"{}", "tokenizer.json": b"[]"}
    heads = {"config.json": b"blob 2\0", "tokenizer.json": b""}
    for name, text in texts.items():
        blob = repo / "blobs" / hashlib.sha1(heads[name] + text).hexdigest()
        blob.write_bytes(text)
        (snapshot / name).unlink(missing_ok=True)
        (snapshot / name).symlink_to(blob)
    large = (snapshot / "model.safetensors").resolve()
    blob = large.rename(large.with_name(hashlib.sha256(large.read_bytes()).hexdigest()))
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(blob)
    # A copy of the cache has younger files than links; they are read to know that they are the same.
    os.utime(snapshot / "model.safetensors", (1, 1), follow_symlinks=False)
    assert models.identity(told, tmp_path).keys() == {"repo", "revision", "file", "commit"}
    assert models.content(told, tmp_path) == "a" * 40
    seen = set()
    with (snapshot / "model.safetensors").open("r+b") as handle:  # as `cp` writes, through the link
        handle.seek(-1, os.SEEK_END)
        handle.write(b"\1")
    seen.add(models.content(told, tmp_path))
    assert "changed in the hub's cache" in caplog.text
    assert str(snapshot / "model.safetensors") in caplog.text
    assert models.content(Weights("some/model", file="config.json"), tmp_path) == "a" * 40
    (snapshot / "tokenizer.json").write_bytes(b"{}")
    seen.add(models.content(told, tmp_path))
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_bytes(b"{}")  # no link among links
    seen.add(models.content(told, tmp_path))
    assert len(seen - {"a" * 40}) == 3


def test_weights_stay_what_they_were_while_a_run_is_worked_on(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "cache_folder", lambda: cache)
    branch, folder = Weights("some/model"), tmp_path / "model"
    shutil.copytree(shipped("tiny_mllm"), folder)
    local = Weights(str(folder))
    before = models.content(local)

    def load():
        return models.load_processor(import_module("transformers").AutoConfig, folder)

    with models.wanted_by(tmp_path):
        assert [models.content(branch), models.content(local)] == ["a" * 40, before]
        (cache / "models--some--model" / "refs" / "main").write_text("b" * 40)
        assert [models.content(branch), models._snapshot(branch).name] == ["a" * 40] * 2
        os.utime(folder / "config.json")  # touched, and the same
        load()
        (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
        with pytest.raises(ModelError, match="changed while this process was at work") as caught:
            load()
        assert (caught.value.where, caught.value.code) == (str(folder / "config.json"), os.EX_TEMPFAIL)
        assert models.content(local) == before
    load()
    assert models.content(branch) == "b" * 40
    assert models.content(local) != before


@pytest.mark.parametrize(
    ("name", "part", "cls"),
    [
        ("tiny_mllm", "", "transformers.AutoModelForImageTextToText"),
        ("tiny_dit", "vae", "diffusers.AutoencoderKL"),
    ],
)
def test_who_overwrites_a_file_changes_no_model_at_work(name, part, cls, tmp_path):
    place = tmp_path / "model"
    shutil.copytree(shipped(name) / part, place)
    package, _, kind = cls.partition(".")
    kind = getattr(import_module(package), kind)
    module = models.load_module(kind, place, torch.float16, torch.device("cpu"))
    (file,) = place.glob("*.safetensors")
    with file.open("r+b") as handle:
        handle.seek(file.stat().st_size // 4)
        handle.write(b"\x7e" * (file.stat().st_size // 2))  # NaN
    assert all(bool(tensor.isfinite().all()) for tensor in module.parameters())


def test_weights_of_a_name_in_no_encoding_are_known(tmp_path, monkeypatch):
    (tmp_path / "w").mkdir()
    path = os.fsencode(tmp_path / "w") + b"/\xe9.safetensors"
    with open(path, "wb") as handle:
        handle.write(bytes(2 << 20))
    later = time.time() + 10
    monkeypatch.setattr(models.time, "time", lambda: later)
    needed = Weights(str(tmp_path / "w"))
    assert models.content(needed, tmp_path / "cache") == models.content(needed) is not None


def test_untrained_models_need_a_config_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "untrained", True)
    shutil.copy(shipped("tiny_mllm") / "config.json", tmp_path)
    made = MLLM(str(tmp_path), device="cpu")
    assert find(made.weights()[0]).path == tmp_path
    assert made.loaded().model.config.model_type in made.weights()[0].kinds


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
    (tmp_path / "a.txt").write_text("a")
    try:
        assert models.fetch(Weights(str(tmp_path / "a.txt"))) == tmp_path / "a.txt"
        with pytest.raises(ModelError, match="offline mode"):
            models.fetch(Weights("some/model"), offline=True)
        assert tried == []
        for _ in range(2):
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
            models.told(fail, weights)

    def bug():
        raise KeyError("not the hub's")

    with pytest.raises(KeyError):
        models.told(bug, weights)


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
    assert main(*words) == 2
    assert "are not there" in capsys.readouterr().out
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
    assert main("list", str(tmp_path)) == 2
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
        (("get", "segmenter=sam2", "--repo", "a/b"), "not both"),
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
    assert cli.main(["models", "list", *words]) == 2
    told = capsys.readouterr().out
    assert f"{at}\n  {captions}\n    The weights of method.captions are not there.\n" in told
    captions.write_text("{}")
    cli.main(["models", "list", *words])
    assert f"{at}\n  {captions}\n    here, 0 MB: {captions}" in capsys.readouterr().out
    parser = f"{at}.np.parser" if method == "refam" else f"{at}.parser"
    if method != "point_control":
        assert cli.main(["models", "list", *words, f"{parser}=no_such_model"]) == 1
        assert "can't tell: " in capsys.readouterr().out


def shards(folder, *names):
    weight_map = {str(number): name for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def tell(folder, **facts):
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | facts))


def only(folder, name, held=b""):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(held)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


WRONG = {
    "a shard is missing": (
        lambda p: shards(p, "model.safetensors", "model-2.safetensors"), "model-2.safetensors is not there",
    ),
    "an index names a file outside": (lambda p: shards(p, "../model.safetensors"), "of its own folder"),
    "an index is no index": (
        lambda p: (p / "model.safetensors.index.json").write_text("[]"), "holds no object",
    ),
    "tensors are cut": (lambda p: cut(p / "model.safetensors"), "model.safetensors is cut"),
    "tensors are a page": (lambda p: (p / "model.safetensors").write_text("<html>404"), "is a web page"),
    "tensors are a pointer": (
        lambda p: (p / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid"),
        "pointer of Git LFS",
    ),
    "a pickle is cut": (lambda p: only(p, "pytorch_model.bin", b"PK\3\4" + bytes(9)), "model.bin is cut"),
    "there are no tensors": (lambda p: (p / "model.safetensors").unlink(), "holds no weights in safetensors"),
    "it is GGUF": (lambda p: only(p, "model-q4.gguf", b"GGUF"), "only model-q4.gguf"),
    "it is an adapter": (
        lambda p: (p / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}'),
        "an adapter of 'some/model', not a whole model",
    ),
    "it has no config": (lambda p: (p / "config.json").unlink(), "tells what model this is"),
    "its config is torn": (lambda p: cut(p / "config.json"), "Can't read the file"),
    "it is another model": (lambda p: tell(p, model_type="llama"), "type 'llama' can't be used"),
    "its code is its own": (
        lambda p: tell(p, model_type="own", auto_map={"AutoConfig": "own.Config"}), "type 'own' can't be",
    ),
    "its quantisation is new": (lambda p: tell(p, quantization_config={"quant_method": "x"}), "quantised"),
    "its quantisation is no object": (lambda p: tell(p, quantization_config=["x"]), "quantised"),
    "a package is missing": (
        lambda p: tell(p, quantization_config={"quant_method": "compressed-tensors", "config_groups": {}}),
        "compressed-tensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", quick_first(WRONG))
def test_a_folder_that_cannot_be_loaded_is_told_before_it_is(fault, tmp_path, capsys):
    spoil, words = WRONG[fault]
    folder = shutil.copytree(shipped("tiny_mllm"), tmp_path / "model")
    spoil(folder)
    with pytest.raises(ModelError, match=re.escape(words)):
        fetch(MLLM(str(folder)).weights()[0])
    assert main("list", "backbone=tiny_mllm", f"backbone.path={folder}") == 2
    assert words in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "dry", "doctor"])
def test_every_command_ends_alike_and_before_a_sample(command, tmp_path, capsys):
    folder = shutil.copytree(shipped("tiny_mllm"), tmp_path / "model")
    cut(folder / "model.safetensors")
    words = ["backbone=tiny_mllm", f"backbone.path={folder}"]
    run = ["run", "--no-score", "--no-html", "~baseline_set", f"paths.runs={tmp_path}", *words]
    asked = {"run": run, "dry": [*run, "--dry"], "doctor": ["doctor", *words]}
    assert cli.main(asked[command]) == 2
    said = "".join(capsys.readouterr())
    assert "model.safetensors is cut" in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("*/predictions/*"))


PIPELINE = {
    "a part is missing": (lambda p: shutil.rmtree(p / "vae"), "The model's vae is not there"),
    "a part has no tensors": (
        lambda p: (p / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "holds no weights",
    ),
    "a part is cut": (lambda p: cut(p / "text_encoder" / "model.safetensors"), "model.safetensors is cut"),
    "a part is quantised": (
        lambda p: tell(p / "text_encoder", quantization_config={"quant_method": "x"}), "quantised",
    ),
    "it is another family's": (
        lambda p: (p / "model_index.json").write_text('{"transformer": ["diffusers", "Other"]}'), "'Other'",
    ),
    "it has no index": (lambda p: (p / "model_index.json").unlink(), "tells what model this is"),
}  # fmt: skip


@pytest.mark.parametrize("fault", quick_first(PIPELINE))
def test_a_pipeline_that_cannot_be_loaded_is_told_before_it_is(fault, tmp_path):
    spoil, words = PIPELINE[fault]
    folder = shutil.copytree(shipped("tiny_dit"), tmp_path / "model")
    needed = DiT(str(folder), "sd3").weights()[0]
    assert fetch(needed) == folder
    spoil(folder)
    with pytest.raises(ModelError, match=re.escape(words)):
        fetch(needed)


def test_a_repositorys_own_code_is_neither_run_nor_asked_for(tmp_path, monkeypatch):
    from transformers import AutoConfig

    monkeypatch.setattr("builtins.input", lambda words: pytest.fail("asked on the terminal"))
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}')
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="custom code"):
        models.load_processor(AutoConfig, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_holds_code_is_refused(tmp_path):
    from transformers import AutoModelForImageTextToText

    class Touch:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    folder = shutil.copytree(shipped("tiny_mllm"), tmp_path / "model")
    only(folder, "pytorch_model.bin")
    torch.save({"a": Touch()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="more than tensors"):
        models.load_module(AutoModelForImageTextToText, folder, torch.float32, torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    folder = shutil.copytree(shipped("tiny_mllm"), tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        models.load_tokenizer(folder, "tiny_mllm")


@pytest.mark.parametrize(("package", "module"), [("sentencepiece",) * 2, ("protobuf", "google.protobuf")])
def test_a_tokenizer_of_pieces_names_the_package_it_needs(package, module, tmp_path, monkeypatch):
    (tmp_path / "spiece.model").write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"needs the package '{package}'") as caught:
        models.load_tokenizer(tmp_path, "tiny_dit/tokenizer")
    assert "refseg-bench[dit]" in str(caught.value)


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does: an API that all may ask, and files that not all get."""

    commit = "c" * 40
    files: ClassVar[dict[str, bytes]] = {}

    def log_message(self, *words):
        pass

    def do_GET(self):
        owner, name, *asked = self.path.split("?")[0].removeprefix("/api/models").strip("/").split("/")
        if name == "none":
            return self.refuse(404, "RepoNotFound")
        if name == "forbidden":
            return self.refuse(403, "", "Forbidden: a token of another scope")
        if len(asked) > 1 and asked[1] not in ("main", self.commit):
            return self.refuse(404, "RevisionNotFound")
        if name == "gated" and asked[0] in ("resolve", "auth-check"):
            return self.refuse(403, "GatedRepo")
        if asked[0] == "tree":
            listed = [
                {"type": "file", "path": f, "size": len(b), "oid": sha1(b)} for f, b in self.files.items()
            ]
            return self.say(json.dumps(listed).encode())
        if asked[0] == "resolve":
            held = self.files.get(asked[2])
            if held is None:
                return self.refuse(404, "EntryNotFound")
            return self.say(held, ETag=f'"{sha1(held)}"', **{"X-Repo-Commit": self.commit})
        listed = [{"rfilename": f, "size": len(b)} for f, b in self.files.items()]
        facts = {"id": f"{owner}/{name}", "sha": self.commit, "gated": name == "gated", "siblings": listed}
        return self.say(json.dumps(facts).encode())

    do_HEAD = do_GET

    def refuse(self, code, reason, words="refused"):
        self.say(b"{}", code, **{"X-Error-Code": reason, "X-Error-Message": words})

    def say(self, body, code=200, **headers):
        self.send_response(code)
        for key, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def sha1(held):
    return hashlib.sha1(held).hexdigest()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine that holds one whole model."""
    import huggingface_hub.constants as constants

    place = shipped("tiny_mllm")
    monkeypatch.setattr(Hub, "files", {path.name: path.read_bytes() for path in place.iterdir()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    models.reachable.cache_clear()
    yield Hub
    models.reachable.cache_clear()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("repo", "revision", "words"),
    [
        ("own/gated", "main", "accepted its terms"),
        ("own/none", "main", "no public repository 'own/none'"),
        ("own/model", "v9", "no revision 'v9'"),
        ("own/forbidden", "main", "doesn't give 'own/forbidden@main': 403 Forbidden"),
        ("an/impossible/name", "main", "no id of the hub"),
    ],
)
def test_what_the_hub_refuses_is_told_by_a_look_and_by_a_load(hub, repo, revision, words):
    made = MLLM(repo, revision)
    for look in (
        lambda: models.hub_megabytes(made.weights()[0]),
        made.config,
        lambda: fetch(made.weights()[0]),
    ):
        with pytest.raises(ModelError, match=words):
            look()


def test_a_download_that_broke_off_is_gone_on_with_and_never_taken_for_the_model(hub):
    made = MLLM("own/model")
    needed = made.weights()[0]
    assert made.config().model_type in needed.kinds
    assert find(needed).path is None, "a config alone is no model"
    with pytest.raises(ModelError, match="in the cache in part, and offline"):
        fetch(needed, offline=True)
    whole = fetch(needed)
    assert find(needed).path == whole
    assert (whole / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    for name in ("tokenizer.json", "model.safetensors"):
        (whole / name).unlink()
        assert find(needed).path is None
        assert fetch(needed) == whole
    blob = (whole / "model.safetensors").resolve()
    cut(blob)
    with pytest.raises(ModelError, match=r"model.safetensors is cut"):
        fetch(needed)


def test_a_full_disk_is_no_hub_out_of_reach(tmp_path):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ModelError, match="can't be kept: No space left"):
        models.told(fail, Weights("some/model"))


def test_the_models_of_a_sweep_are_listed_once_with_what_fetches_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    sweep = ["experiment=decaf/table2", "dataset=revos"]
    assert cli.main(["models", "list", *sweep]) == 1
    out = capsys.readouterr().out
    assert out.count("OpenGVLab/InternVL3-8B-hf") == out.count("sam2_hiera_large.pt") == 1
    assert out.count(f"missing; fetch it: refseg models get {' '.join(sweep)}\n") == 5
