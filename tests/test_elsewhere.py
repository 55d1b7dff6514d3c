"""What runs on an accelerator, on a CPU that plays one: tensors of two devices never meet, no layer waits.

Tensors are wrapped so that they say to be on the ``meta`` device while they hold their values: an operation
on one of those and one of the CPU fails as it would on a GPU (but for indices and numbers, which torch sends
there).
"""

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from refseg_bench.backbones import weights
from refseg_bench.backbones.attention_maps import MapObserver, MapOptions, SoftmaxTokens
from refseg_bench.backbones.base import RolloutSettings, VisualSettings
from refseg_bench.backbones.mllm import MLLM
from refseg_bench.backbones.sdpa_tap import SdpaCall
from refseg_bench.commands.doctor import moving_disc
from refseg_bench.segmenters import sam2
from refseg_bench.segmenters.base import Prompt
from refseg_bench.segmenters.grounding_dino import GroundingDino
from refseg_bench.segmenters.sam1 import Sam1
from refseg_bench.segmenters.sam2 import Sam2
from refseg_bench.segmenters.sam2_hf import HfTrackerCore, Sam2Hf
from refseg_bench.segmenters.sam3 import Sam3
from tests.backbones.test_attention_maps import LAYOUT, T, calls
from tests.segmenters.conftest import sam2_folder, sam2_package_files  # noqa: F401
from tests.tiny_mllm import FAMILIES, backbone, build, clip_frames, tokenizer
from tools.tiny_sam import sam2_config, scatter, write_grounding_dino, write_sam1, write_sam2, write_sam3

THERE = torch.device("meta")


class Elsewhere(torch.Tensor):
    """Values that say they are on another device."""

    @staticmethod
    def __new__(cls, held, requires_grad=False):
        held = getattr(held, "held", held)
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=THERE, **layout)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError("outside of the block")


class Play(TorchDispatchMode):
    """The other device; ``waits`` is how often something was fetched from it."""

    waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func.name().split(".")[0].removeprefix("aten::")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
        mixed = there and any(tensor.dim() for tensor in tensors if not isinstance(tensor, Elsewhere))
        sent = name in ("copy_", "_to_copy") or (name.startswith("index") and isinstance(args[0], Elsewhere))
        if mixed and not sent:
            raise RuntimeError(
                f"tensors of two devices in {name}: {[tensor.device.type for tensor in tensors]}"
            )
        goes = bool(there) if name != "copy_" else isinstance(args[0], Elsewhere)
        if (device := kwargs.get("device")) is not None:
            goes, kwargs["device"] = torch.device(device).type == THERE.type, "cpu"
        lands = bool(there) and not goes
        self.waits += bool(there) and (lands or name in ("_local_scalar_dense", "nonzero", "equal"))
        args, kwargs = tree_map(lambda leaf: getattr(leaf, "held", leaf), (args, kwargs))
        out = func(*args, **kwargs)
        same = {id(tensor.held): tensor for tensor in there}  # what was changed in place is what was given

        def wrapped(leaf):
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return same[id(leaf)] if id(leaf) in same else Elsewhere(leaf)

        return tree_map(wrapped, out) if goes else out


class Above(TorchFunctionMode):
    """What torch does below all dispatch: a tensor's values come from here, lists go to here."""

    def __init__(self, play):
        super().__init__()
        self.play = play

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.tolist and isinstance(args[0], Elsewhere):
            self.play.waits += 1
            return args[0].held.tolist()
        return func(*args, **kwargs)


@pytest.fixture
def play(monkeypatch):
    # A wrapped tensor can't be made in inference mode.
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
    with Play() as play, Above(play):
        yield play


def test_the_play_tells_tensors_of_two_devices(play):
    there = torch.ones(3).to(THERE)
    assert (there + 1).tolist() == [2, 2, 2]
    assert there[torch.tensor([1])].cpu().numpy() == 1
    with pytest.raises(RuntimeError, match="two devices in add"):
        there + torch.ones(3)
    with pytest.raises((TypeError, RuntimeError), match="numpy"):
        there.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_model_reads_and_answers(family, play):
    asked = (clip_frames(4), VisualSettings(video_tokens=40), RolloutSettings())
    expected, places, texts = backbone(family), ["video", 0, 1], ["the dog", "a cat sits"]
    with expected.open(*asked) as session:
        alone = [one for place in session.read_places(places, texts, answer=True) for one in place]
    made = MLLM("tiny", dtype="float32", device=str(THERE), max_new_tokens=expected.max_new_tokens)
    made.use(build(family), tokenizer())
    with made.open(*asked) as session:
        found = [one for place in session.read_places(places, texts, answer=True) for one in place]
        session.ask(texts)
        session.heads("video", texts)
        session.activations(0, texts[:1])
    assert [one.answer for one in found] == [one.answer for one in alone]
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_allclose(one.map_Thw, other.map_Thw, atol=1e-6)


def test_reading_attention_waits_at_its_end_only(play):
    readings = [{"all": SoftmaxTokens(tuple(range(T)), exclude=(1,))}]
    options = MapOptions("joint_renorm", softmax_axis="joint", heads=(0, 2))
    here, there = MapObserver(LAYOUT, options, readings), MapObserver(LAYOUT, options, readings)
    for call in calls():
        here(call)
        sent = (tensor.to(THERE) for tensor in (call.query, call.key, call.output))
        there(SdpaCall(call.layer, *sent, call.scale))
    assert play.waits == 0
    maps = [reader.results((3, 4))[0]["all"] for reader in (here, there)]
    np.testing.assert_allclose(maps[1].maps_TN, maps[0].maps_TN, atol=1e-6)
    np.testing.assert_allclose(maps[1].layer_stats_L3T, maps[0].layer_stats_L3T, rtol=1e-5)


@pytest.mark.slow
def test_a_segmenter_tracks(tmp_path, play):
    from transformers import Sam2VideoModel

    torch.set_num_threads(1)
    clip, tracks, config = moving_disc(tmp_path, 4, (60, 90)), [], sam2_config()
    for device in ("cpu", THERE):
        made, model = Sam2Hf(), scatter(Sam2VideoModel(config), 4)
        made._core = HfTrackerCore(model.to(device), made.resampling)
        with made.open(clip) as session:
            (offer,) = session.segment(0, [Prompt.click(0.4, 0.5)])
            prompts = [Prompt(mask=offer.best()[0]), Prompt.click(0.6, 0.4)]
            tracks.append([masks.copy() for prompt in prompts for _, masks in session.propagate(0, [prompt])])
    assert all(np.mean(one != other) < 0.01 for one, other in zip(*tracks, strict=True))


@pytest.fixture
def loads_there(monkeypatch):
    """Weights come to the pretended device as to a real one: from their files, whose values it holds then."""

    def sent(load):
        def loading(kind, place, dtype, device, **options):
            return load(kind, place, dtype, torch.device("cpu"), **options).to(device)

        return loading

    for name in ("sam_base", "grounding_dino"):
        monkeypatch.setattr(f"refseg_bench.segmenters.{name}.load_module", sent(weights.load_module))


@pytest.mark.slow
def test_sam2_of_the_package_goes_straight_there(sam2_package_files, tmp_path, play, monkeypatch):  # noqa: F811
    architecture, checkpoint = sam2_package_files["sam2.1"]
    load, fill, held = torch.load, sam2.load_checkpoint, []

    def loading(path, *, map_location, weights_only):
        here = load(path, map_location="cpu", weights_only=weights_only)
        return tree_map(lambda tensor: tensor.to(map_location), here)

    def filling(model, path):
        held.extend(tensor.device for tensor in model.parameters())
        fill(model, path)

    clip, tracks = moving_disc(tmp_path, 4, (60, 90)), []
    for device in ("cpu", str(THERE)):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "load", loading)
            patch.setattr(sam2, "load_checkpoint", filling)
            made = Sam2(architecture=architecture, checkpoint=checkpoint, device=device)
            with made.open(clip) as session:
                (offer,) = session.segment(0, [Prompt.click(0.4, 0.5)])
                prompts = [Prompt(mask=offer.best()[0]), Prompt.click(0.6, 0.4)]
                tracks.append([masks.copy() for _, masks in session.propagate(0, prompts[:1])])
                tracks[-1] += [masks.copy() for _, masks in session.propagate(0, prompts[1:])]
    assert set(held[len(held) // 2 :]) == {THERE}  # before a weight is read
    assert all(np.mean(one != other) < 0.01 for one, other in zip(*tracks, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam1", "sam3", "grounding_dino"])
def test_instances_wait_for_no_query(name, tmp_path, play, loads_there):
    """What is fetched of an answer comes at once, not candidate by candidate."""
    clip, found = moving_disc(tmp_path, 1, (60, 90)), []
    prompt = Prompt.click(0.4, 0.5) if name == "sam1" else Prompt(text="a red disc")
    for device in ("cpu", str(THERE)):
        if name == "sam1":
            made = Sam1(model=str(write_sam1(tmp_path / "sam1")), device=device)
        elif name == "sam3":
            made = Sam3(model=str(write_sam3(tmp_path / "sam3", seed=2) / "video"), device=device)
        else:
            masks = {"_target_": "refseg_bench.segmenters.sam2_hf.Sam2Hf", "device": device}
            masks["model"] = str(write_sam2(tmp_path / "sam2"))
            folder = write_grounding_dino(tmp_path / "dino", seed=2)
            made = GroundingDino(masks=masks, model=str(folder), device=device, box_threshold=0.99)
        with made.open(clip) as session:
            session.segment(0, [prompt])
            before = play.waits
            (offer,) = session.segment(0, [prompt])
            found.append((np.asarray(offer.masks_KHW), np.asarray(offer.ious_K), play.waits - before))
    (masks, scores, idle), (others, others_scores, waits) = found
    np.testing.assert_allclose(others_scores, scores, atol=1e-5)
    assert np.mean(masks != others) < 0.01
    assert idle == 0 < waits < 12
