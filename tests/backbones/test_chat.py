"""Chat models behind a server on loopback, one that behaves and ones that don't, and in this process."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg_bench import env
from refseg_bench.backbones import weights
from refseg_bench.backbones.chat import ChatEndpoint, ChatError, ChatLocal, Conversation, Message, Reply
from refseg_bench.backbones.weights import shipped
from refseg_bench.cli import main
from refseg_bench.errors import ConfigError, RefsegError
from refseg_bench.methods.agents import read_boxes
from refseg_bench.methods.agents.mllm_box import MllmBox
from refseg_bench.run.loop import predict_clip
from refseg_bench.segmenters.grabcut import GrabCut
from refseg_bench.types import Expression
from tests.fakes import FakeDataset
from tests.launch.runs import HANGS, reserved, wait_for
from tests.quick import needs

pytestmark = needs("openai")
PICTURE = np.random.default_rng(0).integers(0, 255, (28, 56, 3)).astype(np.uint8)


class Server:
    """Speaks OpenAI's protocol as far as it is told to; ``replies`` are given in turn, the last for ever."""

    def __init__(self, *replies):
        self.replies, self.asked, self.most_at_once = list(replies), [], 0
        self._open, self._lock = 0, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words):
                pass

            def do_GET(self):
                self._send(200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.asked.append((body, {k.lower(): v for k, v in self.headers.items()}))
                    outer._open += 1
                    outer.most_at_once = max(outer.most_at_once, outer._open)
                    reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                try:
                    reply = reply(body) if callable(reply) else reply
                    self._send(*reply) if isinstance(reply, tuple) else self._send(200, spoken(reply))
                finally:
                    with outer._lock:
                        outer._open -= 1

            def _send(self, status, value):
                text = value if isinstance(value, str) else json.dumps(value)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Retry-After-Ms", "1")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()

    def model(self, tmp_path, **more):
        made = ChatEndpoint(
            model="tiny", url=f"http://127.0.0.1:{self._server.server_port}/v1", **{"retries": 2, **more}
        )
        made.cache_root = tmp_path
        return made

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def spoken(text, finish="stop"):
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "tiny",
        "choices": [choice],
        "usage": usage,
    }


@pytest.fixture
def serve():
    made = []

    def start(*replies):
        made.append(Server(*replies))
        return made[-1]

    yield start
    for server in made:
        server.close()


def talk(model, *questions, read=None):
    """Ask one question after the other in one conversation; the words, and the conversation."""

    async def go():
        conversation = Conversation(model)
        try:
            said = []
            for question in questions:
                messages = [Message("user", question if isinstance(question, tuple) else (question,))]
                asked = (
                    conversation.ask_for(messages, "step", read)
                    if read
                    else conversation.ask(messages, "step")
                )
                said.append(await asked)
            return said, conversation
        finally:
            await model.close()

    return asyncio.run(go())


def test_words_and_pictures_arrive_as_sent(serve, tmp_path):
    server = serve("a dog")
    said, conversation = talk(
        server.model(tmp_path, system="Be brief.", extra={"top_p": 0.5}), (PICTURE, "What is it?")
    )
    assert said == ["a dog"]
    body, headers = server.asked[0]
    assert headers["authorization"] == "Bearer none"
    assert (body["model"], body["temperature"], body["max_tokens"], body["top_p"]) == ("tiny", 0.0, 1024, 0.5)
    assert "seed" not in body
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    picture, words = body["messages"][1]["content"]
    assert words == {"type": "text", "text": "What is it?"}
    kind, _, data = picture["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), PICTURE)
    cost = conversation.details()["cost"]
    assert {k: cost[k] for k in ("calls", "replayed", "images", "prompt_tokens", "answer_tokens")} == {
        "calls": 1, "replayed": 0, "images": 1, "prompt_tokens": 7, "answer_tokens": 3,
    }  # fmt: skip


def test_a_kept_reply_is_replayed_by_all_that_made_it(serve, tmp_path):
    server = serve("one", "two", "three", "four", "five")
    first = talk(server.model(tmp_path), "Which?", (PICTURE, "Which?"))
    assert first[0] == ["one", "two"]
    again, conversation = talk(
        server.model(tmp_path, batch_size=1, timeout=9.0), "Which?", (PICTURE, "Which?")
    )
    assert again == ["one", "two"]
    # Costs of replayed replies are those of when they were made.
    assert (conversation.cost.calls, conversation.cost.replayed) == (2, 2)
    assert (conversation.cost.prompt_tokens, conversation.cost.seconds) == (14, first[1].cost.seconds)
    assert len(server.asked) == 2
    # The same words a second time in one conversation are another draw.
    assert talk(server.model(tmp_path), "Which?", "Which?")[0] == ["one", "three"]
    assert talk(server.model(tmp_path, max_tokens=5), "Which?")[0] == ["four"]
    other = PICTURE.copy()
    other[0, 0, 0] ^= 1
    assert talk(server.model(tmp_path), (other, "Which?"))[0] == ["five"]


def test_draws_go_by_the_runs_seed(serve, tmp_path):
    server = serve("one", "two")
    model = server.model(tmp_path, temperature=0.2)
    env.seed_everything(3, "clip")
    try:
        assert talk(model, "Which?")[0] == ["one"]
        env.seed_everything(4, "clip")
        assert talk(model, "Which?")[0] == ["two"]
        env.seed_everything(3, "other clip")
        assert talk(model, "Which?")[0] == ["one"]
    finally:
        env.seed_everything(0, "")
    assert [body["seed"] for body, _ in server.asked] == [3, 4]


def test_without_the_model_only_kept_replies_count(serve, tmp_path):
    server = serve("one")
    talk(server.model(tmp_path), "Which?")
    assert talk(server.model(tmp_path, offline=True), "Which?")[0] == ["one"]
    with pytest.raises(ChatError, match="not kept here"):
        talk(server.model(tmp_path, offline=True), "Another?")
    assert len(server.asked) == 1


def test_two_conversations_that_say_the_same_at_once_ask_once(serve, tmp_path):
    def slow(body):
        time.sleep(0.2)
        return 200, spoken("one")

    server = serve(slow)
    model = server.model(tmp_path)

    async def go():
        talks = [Conversation(model) for _ in range(4)]
        said = await asyncio.gather(*(t.ask([Message("user", ("Which?",))], "s") for t in talks))
        await model.close()
        return said, [t.cost.replayed for t in talks]

    said, replayed = asyncio.run(go())
    assert said == ["one"] * 4
    assert sorted(replayed) == [0, 1, 1, 1]
    assert (model.calls, model.replayed) == (1, 3)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(serve, tmp_path, status):
    server = serve((status, {"error": {"message": "busy"}}), (status, "oops"), "one")
    assert talk(server.model(tmp_path), "Which?")[0] == ["one"]
    assert len(server.asked) == 3


def test_a_server_that_stays_busy_ends_the_run_and_loses_nothing(serve, tmp_path):
    server = serve("one", (503, {"error": {"message": "busy"}}))
    with pytest.raises(ConfigError, match=r"says 503.*busy") as told:
        talk(server.model(tmp_path, retries=1), "Which?", "And?")
    assert "1 times" not in str(told.value)
    assert "2 times" in str(told.value)
    server.replies = ["two"]
    assert talk(server.model(tmp_path), "Which?", "And?")[0] == ["one", "two"]
    assert [body["messages"][0]["content"] for body, _ in server.asked] == ["Which?", "And?", "And?", "And?"]


def test_a_slow_server_is_given_up(serve, tmp_path):
    over = threading.Event()

    def slow(body):
        over.wait()
        return 200, spoken("late")

    with pytest.raises(ConfigError, match="No answer"):
        talk(serve(slow).model(tmp_path, timeout=0.2, retries=0), "Which?")
    over.set()


def test_no_server_is_told_with_its_address(tmp_path):
    with reserved() as port:
        model = ChatEndpoint(model="tiny", url=f"http://127.0.0.1:{port}/v1", retries=0)
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            talk(model, "Which?")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"url": ""}, "backbone.url"),
        ({"url": "localhost:80"}, "backbone.url"),
        ({"url": "http://[::1/v1"}, "backbone.url"),
        ({"model": ""}, "backbone.model"),
    ],
)
def test_what_is_not_set_is_told_before_anything_is_sent(monkeypatch, change, where):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    model = ChatEndpoint(**{"model": "tiny", "url": "http://127.0.0.1:9/v1", **change})
    with pytest.raises(ConfigError) as told:
        talk(model, "Which?")
    assert told.value.where == where


@pytest.mark.parametrize(
    "reply",
    [
        (200, "{\"id\": \"1\", \"choices\": [{\"mess"),
        (200, "<html>proxy</html>"),
        (200, {}),
        (200, {"choices": []}),
        (200, {"choices": [{"message": None}]}),
        (200, spoken("x" * (1 << 20) + "y")),
        (200, spoken({"text": "[]"})),
        (200, {"error": {"message": "busy"}}),
    ],
)  # fmt: skip
def test_a_reply_that_is_none_fails_the_sample(serve, tmp_path, reply):
    with pytest.raises(ChatError) as told:
        talk(serve(reply).model(tmp_path, retries=0), "Which?")
    assert told.value.details["conversation"][0]["error"]


@pytest.mark.parametrize("reply", [(402, "no money"), (200, {"error": {"message": "no money", "code": 429}})])
def test_what_no_request_will_escape_ends_the_run_at_once(serve, tmp_path, reply):
    server = serve(reply)
    with pytest.raises(ConfigError, match=r"(?s)says 4.*no money.*run again later"):
        talk(server.model(tmp_path, retries=0), "Which?")


def test_a_reply_in_parts_is_read_without_its_thoughts(serve, tmp_path):
    thoughts = {"type": "thinking", "thinking": [{"type": "text", "text": "[[0, 0, 9, 9]]?"}]}
    words = [{"type": "text", "text": part} for part in ("the ", "left\n")]
    assert talk(serve((200, spoken([thoughts, *words]))).model(tmp_path), "Which?")[0] == ["the left\n"]


@pytest.mark.parametrize("usage", [{}, "7", {"prompt_tokens": None, "completion_tokens": "many"}])
def test_a_server_that_counts_no_tokens_is_heard(serve, tmp_path, usage):
    server = serve((200, {**spoken("the left \ud800"), "usage": usage}))
    said, conversation = talk(server.model(tmp_path), "Which?")
    assert said == ["the left ?"]
    assert conversation.cost.prompt_tokens is conversation.cost.answer_tokens is None


def test_a_refusal_of_the_request_fails_the_sample_and_a_wrong_name_the_run(serve, tmp_path):
    too_long = (400, {"error": {"message": "context length exceeded"}})
    with pytest.raises(ChatError, match="context length exceeded"):
        talk(serve(too_long).model(tmp_path), "Which?")
    server = serve((404, {"error": {"message": "no such model"}}))
    model = server.model(tmp_path)
    model.model = "huge"
    with pytest.raises(ConfigError, match="no such model") as told:
        talk(model, "Which?")
    assert told.value.allowed == ["tiny"]


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    server = serve(lambda body: (401, {"error": {"message": "bad key sk-very-secret"}}))
    model = server.model(tmp_path, key_variable="MY_KEY")
    with pytest.raises(ConfigError) as told:
        talk(model, "Which?")
    assert server.asked[0][1]["authorization"] == "Bearer sk-very-secret"
    for text in (str(told.value), repr(model), str(model.report()), str(told.value.__cause__)):
        assert "secret" not in text
    server.replies = ["one"]
    talk(model, "Which?")
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"secret" not in path.read_bytes()


@pytest.mark.parametrize("reply", [(401, {}), (400, {}), (200, "<html>proxy</html>"), None])
def test_an_address_of_the_environment_keeps_its_password(serve, tmp_path, monkeypatch, reply):
    server = serve(reply)
    port = server._server.server_port if reply else 9
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://me:secret@127.0.0.1:{port}/v1?key=secret")
    with pytest.raises(RefsegError) as told:
        talk(ChatEndpoint(model="tiny", retries=0), "Which?")
    assert "secret" not in str(told.value)
    assert f"http://127.0.0.1:{port}/v1" in str(told.value.where)


def test_an_address_with_a_password_is_refused_before_it_is_written(tmp_path, capsys):
    words = [
        "method=mllm_box",
        "backbone=chat",
        "backbone.model=tiny",
        "backbone.url=http://me:secret@host/v1",
    ]
    assert main(["run", *words, f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path}"]) == 2
    told = capsys.readouterr()
    assert "would be written" in told.err
    assert "secret" not in told.err + told.out
    assert not (tmp_path / "runs").exists()


def test_what_was_said_is_kept_whatever_fails_after_it(serve, tmp_path):
    class Broken(MllmBox):
        async def ground(self, talk, session, expression):
            await super().ground(talk, session, expression)
            raise RuntimeError("no mask from this")

    clip = FakeDataset(root=tmp_path / "data").clips()[0]
    method = Broken(serve("[[0, 0, 500, 500]]").model(tmp_path), GrabCut())
    ((failed, _),) = predict_clip(method, clip, [Expression("0", "square")])
    assert failed.failure.message == "no mask from this"
    assert [turn["reply"] for turn in failed.details["conversation"]] == ["[[0, 0, 500, 500]]"]
    assert failed.details["cost"]["calls"] == 1
    assert failed.pictures.keys() == {failed.details["conversation"][0]["messages"][0]["parts"][0]["image"]}


@pytest.mark.slow
@pytest.mark.parametrize(("size", "most"), [(1, 1), (3, 3), (50, 12)])
def test_as_many_conversations_go_on_as_asked_for(serve, tmp_path, size, most):
    def slow(body):
        # Until as many are there as should be, and then for any that should not.
        wait_for(lambda: server.most_at_once >= most, every=0.01)
        time.sleep(0.03)
        return 200, spoken("[[0, 0, 500, 500]]")

    server = serve(slow)
    clip = FakeDataset(root=tmp_path / "data").clips()[0]
    method = MllmBox(server.model(tmp_path, batch_size=size), GrabCut())
    expressions = [Expression(str(number), f"square {number}") for number in range(12)]
    assert len(list(method.predict(clip, expressions))) == len(server.asked) == 12
    assert server.most_at_once == most


def test_what_was_thought_aloud_is_no_answer(serve, tmp_path):
    words = "<think>[[0, 0, 9, 9]]? No.</think>\n[[1, 1, 5, 5]]"
    server = serve(words, "[[0, 0, 9, 9]] it was.</think> none", "<think>[[0, 0, 9, 9]], or", "[]")
    model = server.model(tmp_path)

    def read(words):
        return read_boxes(words, model, (10, 10))

    said, conversation = talk(model, "One?", "Two?", "Three?", read=read)
    assert said == [[(0.001, 0.001, 0.005, 0.005)], [], []]
    assert conversation.transcript[0]["reply"] == words
    repeated = server.asked[3][0]["messages"]
    assert repeated[1] == {"role": "assistant", "content": "…"}, "its thoughts are not told it again"
    assert "no box" in repeated[2]["content"]


def test_what_cannot_be_read_is_asked_again_with_the_reason(serve, tmp_path):
    server = serve("well …", (200, spoken("[1, 2", "length")), "7")
    said, conversation = talk(server.model(tmp_path), "How many?", read=int)
    assert said == [7]
    second, third = (body["messages"] for body, _ in server.asked[1:])
    assert [m["role"] for m in second] == ["user", "assistant", "user"]
    assert "invalid literal" in second[2]["content"]
    assert "cut" not in second[2]["content"]
    assert third[2]["content"].endswith(
        "reply was cut after 1024 tokens: be brief. Answer again, in the form asked for."
    )
    assert [turn["after"] for turn in conversation.transcript] == [0, 1, 1]
    with pytest.raises(ChatError, match="3 replies at 'step'") as told:
        talk(serve("well …").model(tmp_path / "other"), "How many?", read=int)
    assert [turn["reply"] for turn in told.value.details["conversation"]] == ["well …"] * 3
    assert told.value.details["cost"]["calls"] == 3


def test_what_is_left_of_a_reply_is_no_reply(serve, tmp_path):
    """The first of two boxes, or what a model thinks aloud where its template opened the tag."""
    halves = '[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5,', "No target? Then []. But"
    server = serve(*((200, spoken(half, "length")) for half in halves), "[[1, 2, 3, 4], [5, 6, 7, 8]]")
    model = server.model(tmp_path)

    def read(words):
        return read_boxes(words, model, (10, 10))

    assert len(talk(model, "Which?", read=read)[0][0]) == 2
    assert len(server.asked) == 3
    for finish in ("abort", "content_filter"):
        server = serve((200, spoken("[]", finish)), "[[1, 2, 3, 4]]")
        model = server.model(tmp_path / finish)
        with pytest.raises(ChatError, match=f"broke its reply off .{finish}"):
            talk(model, "Which?", read=read)
        # Nor is it kept.
        assert len(talk(model, "Which?", read=read)[0][0]) == 1


@pytest.mark.slow
def test_a_model_in_this_process_talks_and_is_replayed(tmp_path):
    model = ChatLocal(model="shipped:tiny_mllm", max_tokens=6, dtype="float32", device="cpu")
    model.cache_root = tmp_path
    picture = np.zeros((48, 64, 3), np.uint8)
    said, conversation = talk(model, (picture, "What is the red disc?"))
    assert said[0]
    assert conversation.cost.images == 1
    assert 0 < conversation.cost.answer_tokens <= 6
    deaf = ChatLocal(model="shipped:tiny_mllm", max_tokens=6, dtype="float32", device="cpu", offline=True)
    deaf.cache_root = tmp_path
    assert talk(deaf, (picture, "What is the red disc?"))[0] == said


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["control token", "are NaN", "context is 3"])
def test_a_model_in_this_process_says_nothing_rather_than_nonsense(tmp_path, fault):
    model = ChatLocal(model="shipped:tiny_mllm", max_tokens=6, dtype="float32", device="cpu")
    model.cache_root = tmp_path
    loaded = model._model[1]
    if fault == "are NaN":
        loaded.get_output_embeddings().weight.data.fill_(float("nan"))
    elif fault == "context is 3":
        loaded.config.get_text_config().max_position_embeddings = 3
    with pytest.raises(ChatError, match=fault):
        talk(
            model, "What is the red disc<|im_end|>?" if fault == "control token" else "What is the red disc?"
        )


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path, monkeypatch):
    asked = []

    async def complete(self, messages):
        asked.append(self._pinned.revision)
        return Reply(f"reply {len(asked)}", "stop", 1, 1, 0.0)

    monkeypatch.setattr(ChatLocal, "complete", complete)
    ref = hub(tmp_path, monkeypatch) / "refs" / "main"

    def ask(**options):
        model = ChatLocal(model="some/model", **options)
        model.cache_root = tmp_path / "cache"
        return talk(model, "Which?")[0]

    assert [ask(), ask()] == [["reply 1"], ["reply 1"]]
    ref.write_text("b" * 40)
    assert ask() == ["reply 2"], "the branch has moved"
    assert ask(revision="a" * 40) == ["reply 1"]
    shutil.rmtree(ref.parent.parent)
    assert ask(offline=True) == ask() == ["reply 2"], "kept replies need no weights"
    assert asked == ["a" * 40, "b" * 40]


def test_a_branch_that_is_not_here_is_fetched_before_its_replies_are_kept(tmp_path, monkeypatch):
    asked = []

    async def complete(self, messages):
        asked.append(self._pinned.revision)
        return Reply("so", "stop", 1, 1, 0.0)

    monkeypatch.setattr(ChatLocal, "complete", complete)
    refs = hub(tmp_path, monkeypatch) / "refs"
    monkeypatch.setattr(
        "refseg_bench.backbones.chat.fetch", lambda needed: (refs / needed.revision).write_text("c" * 40)
    )
    for _ in range(2):
        model = ChatLocal(model="some/model", revision="work")
        model.cache_root = tmp_path / "cache"
        assert talk(model, "Which?")[0] == ["so"]
    assert asked == ["c" * 40], "known by the commit, and replayed"


def hub(tmp_path, monkeypatch):
    """A hub's cache that holds one model at commit aaa…"""
    monkeypatch.setattr(weights, "cache_folder", lambda: tmp_path / "hub")
    folder = tmp_path / "hub" / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    return folder


@pytest.mark.slow
def test_a_local_model_that_was_replaced_is_asked_again(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(shipped("tiny_mllm"), folder)

    def ask():
        model = ChatLocal(model=str(folder), max_tokens=2, dtype="float32", device="cpu")
        model.cache_root = tmp_path / "cache"
        return talk(model, "What is the red disc?")[1].cost.replayed

    assert [ask(), ask()] == [0, 1]
    config = folder / "config.json"
    config.write_text(config.read_text() + "\n")
    assert ask() == 0


@pytest.mark.slow
def test_a_real_server_answers_as_the_model_in_this_process(tmp_path):
    weights = Path(env.HOME) / "refseg_bench" / "weights" / "tiny_mllm"
    program, log = Path(sys.executable).with_name("transformers"), tmp_path / "log"
    with reserved() as port, log.open("w") as out:
        server = subprocess.Popen(
            [program, "serve", weights, "--port", str(port), "--host", "127.0.0.1", "--device", "cpu",
             "--dtype", "float32"],
            stdout=out, stderr=out, cwd=tmp_path, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

        def answers():
            assert server.poll() is None, log.read_text()
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=HANGS).close()
                return True

        try:
            wait_for(answers)
            model = ChatEndpoint(model=str(weights), url=f"http://127.0.0.1:{port}/v1", max_tokens=6)
            model.cache_root = tmp_path / "cache"
            picture = np.zeros((48, 64, 3), np.uint8)
            questions = [(picture, "What is the red disc?"), "hello"]
            got, conversation = talk(model, *questions)
            local = ChatLocal(model="shipped:tiny_mllm", max_tokens=6, dtype="float32", device="cpu")
            assert got == talk(local, *questions)[0]
            assert conversation.cost.answer_tokens
            assert conversation.cost.prompt_tokens
            model.model = "nosuch"
            with pytest.raises(RefsegError):
                talk(model, "hello")
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
