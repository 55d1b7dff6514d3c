from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from refseg_bench.cli import main
from refseg_bench.config.components import open_dataset
from refseg_bench.run.loop import work_on
from refseg_bench.run.store import RunStore
from refseg_bench.scoring.runs import score_run
from tests.backbones.test_chat import Server, spoken
from tests.fakes import fake_run
from tests.launch.runs import refseg
from tools.tiny_sam import write_sam3


@pytest.fixture(scope="session")
def small_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where `refseg run` made three runs on two clips of the embedded data set, and their report."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings = ["limit.clips=2", "limit.expressions=3", "score.bootstrap=50", "score.jobs=1"]
        assert main(["run", "-m", "method=empty,full_frame,lexical", *settings]) == 0
    return folder


@pytest.fixture(scope="session")
def hostile_runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunStore]:
    """Two scored runs of the hostile data set; one sample of the second failed."""
    folder = tmp_path_factory.mktemp("hostile")
    dataset = {"_target_": "tests.report.worlds.HostileDataset", "root": str(folder / "data")}
    stores = []
    for side, fail_on in ((8, []), (12, ["clip1/1"])):
        method = {"_target_": "tests.fakes.FakeMethod", "side": side, "fail_on": fail_on}
        score = {"partial": True, "bootstrap": 50, "jobs": 1}
        store = fake_run(folder, dataset=dataset, method=method, keep_maps=True, score=score)
        work_on(store)
        score_run(store)
        stores.append(store)
    return stores


#: Rivals of DecAF on models small enough for a test; SAM 3's have random weights.
SMALL = {
    "backbone/tiny_chat": "{defaults: [chat, _self_], model: tiny}",
    "segmenter/tiny_sam3": "{defaults: [sam3, _self_], model: FOLDER/video, "
    "device: cpu, text_threshold: 0.1}",
    "method/tiny_box": "{defaults: [mllm_box, override /backbone@_global_.backbone: tiny_chat, "
    "override /segmenter@_global_.segmenter: tiny_sam2, _self_]}",
    "method/tiny_phrase": "{defaults: [sam3_phrase, "
    "override /segmenter@_global_.segmenter: tiny_sam3, _self_]}",
    "method/tiny_agent": "{defaults: [agent_rvos, override /backbone@_global_.backbone: tiny_chat, "
    "override /segmenter@_global_.segmenter: tiny_sam3, _self_], n_frames: 3}",
}
#: What the server says that no page may take for markup.
MARKUP = "<img src=x onerror='window.hacked = 1'></script>"


def scripted(body: dict[str, Any], hopeless: str) -> tuple[int, dict[str, Any]]:
    """A chat model's replies; of one expression it never writes a box."""
    parts = body["messages"][0]["content"]
    words = parts if isinstance(parts, str) else "".join(p.get("text", "") for p in parts)
    if "Name the kind" in words:
        reply = json.dumps({"type": "EXPLICIT", "nouns": ["disc", None], "reason": MARKUP})
    elif "Must one know" in words:
        reply = '{"appearance": false}'
    elif found := re.search(r"Sort all of the candidates \[(.*?)\]", words):
        ids = [int(word) for word in found[1].split(", ")]
        reply = (
            f"<think>[9]?</think>{MARKUP} <answer>{json.dumps({'true': ids[:1], 'false': ids[1:]})}</answer>"
        )
    elif f"describes: {hopeless}. Answer" in words:
        reply = f"I see none. {MARKUP}"
    else:
        reply = "[[100, 100, 600, 700]]"
    return 200, spoken(reply)


@pytest.fixture(scope="session")
def agent_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder where one `refseg run -m` made a table of DecAF and its rivals, the chat model on loopback."""
    pytest.importorskip("openai")
    folder = tmp_path_factory.mktemp("agents")
    weights = write_sam3(folder / "sam3", seed=2)
    for name, text in SMALL.items():
        path = folder / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("FOLDER", str(weights)))
    shapes = open_dataset("shapes")
    server = Server(partial(scripted, hopeless=shapes.expressions(shapes.clips()[0])[1].text))
    settings = ["limit.clips=1", "limit.expressions=2", "score.bootstrap=50", "score.jobs=1"]
    settings += ["score.partial=true", "paths.cache=cache"]
    methods = "method=decaf_tiny,tiny_box,tiny_phrase,tiny_agent"
    places = {"OPENAI_BASE_URL": server.model(folder).url, "REFSEG_SEARCHPATH": str(folder / "conf")}
    # In a process of its own: a browser's tests have an event loop in this one.
    run = refseg("run", "-m", methods, "dataset=shapes", *settings, cwd=folder, **places)
    told = run.communicate()
    assert run.returncode == 1, told
    yield folder
    server.close()
