"""``refseg data``: list, prepare, verify, show."""

import errno
import json
import os
import shutil
import signal
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg_bench.cli import main
from refseg_bench.config.components import names, open_dataset
from refseg_bench.datasets import prepare
from refseg_bench.datasets.verify import verify
from tools.writers import (
    ImageRecord,
    write_davis_source,
    write_long_rvos_set,
    write_meta_expressions_set,
    write_reasonseg_image,
    write_ref_youtube_vos_set,
    write_refcoco_set,
    write_revos_set,
)

from .conftest import boxes, frames, union, video


def zipped(folder, name, archive, under=""):
    """Pack ``folder/name`` so that its members begin with ``under/name``."""
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted((folder / name).rglob("*")):
            if path.is_file():
                out.write(path, Path(under) / path.relative_to(folder))
    return archive


def run(*args):
    return main(["data", *map(str, args)])


def test_list_says_what_exists_and_where(tmp_path, capsys):
    write_meta_expressions_set(tmp_path / "data" / "MeViS", "valid_u", [video()])
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("mevis (video): train, valid_u; masks hidden: valid, test")
    assert lines[place + 2] == f"  found: {tmp_path / 'data' / 'MeViS'} (valid_u)"
    place = next(place for place, line in enumerate(lines) if line.startswith("revos "))
    assert lines[place + 2] == "  found: nowhere"


def test_prepare_ref_davis17_from_its_three_archives(tmp_path, capsys):
    src = tmp_path / "src"
    words = [(f"sentence {i}", [i // 4], {}) for i in range(8)]
    write_davis_source(
        src, {"train": [video("bear", expressions=words)], "val": [video("classic-car", expressions=words)]}
    )
    texts = src / "davis_text_annotations"
    for path in texts.iterdir():
        path.write_bytes(path.read_bytes().replace(b"classic-car", b"clasic-car"))
    (src / "DAVIS2").mkdir()
    (src / "DAVIS2" / "davis_semantics.json").write_text(json.dumps({"classic-car": {"1": "car"}}))
    archives = [
        zipped(src, "davis_text_annotations", tmp_path / "davis_text_annotations.zip"),
        zipped(src, "DAVIS", tmp_path / "DAVIS-2017-Unsupervised-trainval-480p.zip"),
        zipped(src / "DAVIS2", ".", tmp_path / "DAVIS-2017_semantics-480p.zip", under="DAVIS"),
    ]
    shutil.rmtree(src)
    assert run("prepare", "Ref-DAVIS17", "--from", *archives) == 0
    out = capsys.readouterr().out
    assert "valid: 1 clips" in out
    home = tmp_path / "data" / "ref_davis17"
    data = open_dataset("ref_davis17", root=home)
    clip = data.clips()[0]
    assert clip.id == "classic-car"
    assert np.array_equal(union(data.target(clip, data.expressions(clip)[4])), boxes(4, 14, 5))
    meta = json.loads((home / "valid" / "meta.json").read_text())
    assert meta["videos"]["classic-car"]["objects"]["1"]["category"] == "car"
    assert [p.name for p in home.parent.iterdir()] == ["ref_davis17"]  # nothing is left of the staging


def test_prepare_says_which_archive_lacks(tmp_path, capsys):
    write_davis_source(
        tmp_path / "src", {"train": [], "val": [video("bear", expressions=[("x", [0], {})] * 4)]}
    )
    texts = zipped(tmp_path / "src", "davis_text_annotations", tmp_path / "texts.zip")
    assert run("prepare", "ref_davis17", "--from", texts) == 2
    assert "DAVIS-2017-Unsupervised-trainval-480p.zip" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_prepare_tells_of_archives_in_an_archive(tmp_path, capsys):
    write_meta_expressions_set(tmp_path / "src", "valid_u", [video()])
    (tmp_path / "inside").mkdir()
    zipped(tmp_path / "src", "valid_u", tmp_path / "inside" / "valid_u.ZIP")
    outer = zipped(tmp_path, "inside", tmp_path / "outer.zip")
    assert run("prepare", "mevis", "--from", outer) == 2
    assert "give --from the archives in it: inside/valid_u.ZIP." in capsys.readouterr().err


def test_prepare_adds_split_after_split_and_overwrites_nothing(tmp_path, capsys):
    for split, seed in (("valid_u", 0), ("train", 1)):
        write_meta_expressions_set(tmp_path / "src", split, [video(seed=seed)])
        zipped(tmp_path / "src", split, tmp_path / f"{split}.zip", under="MeViS_release")
        assert run("prepare", "mevis", "--from", tmp_path / f"{split}.zip") == 0
    home = tmp_path / "data" / "mevis"
    assert sorted(p.name for p in home.iterdir()) == ["train", "valid_u"]
    capsys.readouterr()
    assert run("prepare", "mevis", "--from", tmp_path / "train.zip") == 0
    (home / "train" / "meta_expressions.json").write_text("{}")
    assert run("prepare", "mevis", "--from", tmp_path / "train.zip") == 2
    assert "there already" in capsys.readouterr().err
    shutil.copy(tmp_path / "src/train/meta_expressions.json", home / "train")
    assert len(open_dataset("mevis", split="train").clips()) == 1


def test_prepare_says_which_of_two_copies_it_takes(tmp_path, capsys):
    for name in ("MeViS", "old/MeViS", "v1"):
        write_meta_expressions_set(tmp_path / "src" / name, "valid_u", [video()])
    zipped(tmp_path / "src", ".", tmp_path / "all.zip")
    assert run("prepare", "mevis", "--from", tmp_path / "all.zip") == 0
    said = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert said[1:] == ["found MeViS", "not taken: old/MeViS, which holds the set, too"]


def test_prepare_other_sets(tmp_path):
    src = tmp_path / "src"
    write_revos_set(src / "ReVOS", "valid", [video("UVO/all/x")])
    with tarfile.open(tmp_path / "revos.tar.gz", "w:gz") as out:
        out.add(src / "ReVOS", "./ReVOS")
    assert run("prepare", "revos", "--from", tmp_path / "revos.tar.gz") == 0
    write_reasonseg_image(src / "ReasonSeg", "val", "a", frames(1)[0], ["why"], [])
    assert (
        run(
            "prepare",
            "reasonseg",
            "--from",
            zipped(src, "ReasonSeg", tmp_path / "rs.zip", under="reason_seg"),
        )
        == 0
    )
    record = ImageRecord(
        "COCO_train2014_000000000001.jpg", frames(1)[0], [[[1, 1, 9, 1, 9, 9]]], [([0], ["it"])]
    )
    write_refcoco_set(src / "refcocog", [record], split_by="umd", image_folder="../train2014")
    archives = [
        zipped(src, "refcocog", tmp_path / "refcocog.zip"),
        zipped(src, "train2014", tmp_path / "train2014.zip"),
    ]
    assert run("prepare", "refcocog", "--from", *archives) == 0
    write_ref_youtube_vos_set(src / "rvos", "train", [video("0123456789", expressions=[("it", [0], {})])])
    parts = [zipped(src / "rvos", part, tmp_path / f"{part}.zip") for part in ("meta_expressions", "train")]
    assert run("prepare", "ref_youtube_vos", "--from", *parts) == 0
    for name, split in (
        ("revos", None),
        ("reasonseg", None),
        ("refcocog_umd", None),
        ("ref_youtube_vos", "train"),
    ):
        data = open_dataset(name, split=split)
        clip = data.clips()[0]
        clip.load()
        assert data.target(clip, data.expressions(clip)[0]) is not None


def test_prepare_refuses_a_climbing_archive_and_leaves_nothing(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "mevis.zip", "w") as out:
        out.writestr("valid_u/meta_expressions.json", "{}")
        out.writestr("../../escaped", "x")
    assert run("prepare", "mevis", "--from", tmp_path / "mevis.zip") == 2
    assert "leaves its folder" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def drive_parts(folder, *, top="MeViS_release", cut=(2, 1)):
    """One folder as two archives that share it, as Google Drive hands it out."""
    write_meta_expressions_set(folder / "src", "valid_u", [video()])
    files = sorted(p for p in (folder / "src").rglob("*") if p.is_file())
    frames = [p for p in files if p.suffix == ".jpg"]
    rest = [p for p in files if p.suffix != ".jpg"]
    archives = []
    for number, part in enumerate((frames[: cut[0]] + rest[: cut[1]], frames[cut[0] :] + rest[cut[1] :])):
        archives.append(folder / f"{top}-20260101T000000Z-1-{number + 1:03d}.zip")
        with zipfile.ZipFile(archives[-1], "w") as out:
            for path in part:
                out.write(path, Path(top) / path.relative_to(folder / "src"))
    return archives


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("top", ["MeViS_release", "MeViS", "from a friend"])
@pytest.mark.parametrize(
    ("cut", "order", "calls"), [((2, 1), 1, 1), ((0, 2), -1, 1), ((4, 0), 1, 2), ((2, 1), -1, 2)]
)
def test_parts_of_one_folder_end_up_in_one_tree(tmp_path, top, cut, order, calls):
    archives = drive_parts(tmp_path, top=top, cut=cut)[::order]
    home = tmp_path / "home"
    for part in [archives] if calls == 1 else [[a] for a in archives]:
        run("prepare", "mevis", "--from", *part, "--to", home)
    assert tree(home) == tree(tmp_path / "src")
    # Given again, nothing changes.
    assert run("prepare", "mevis", "--from", *archives, "--to", home) == 0
    assert tree(home) == tree(tmp_path / "src")


@pytest.mark.parametrize("name", ["_rename", "_write"])
def test_prepare_goes_on_after_a_kill_and_leaves_no_litter(tmp_path, name):
    module = prepare
    archives = drive_parts(tmp_path)
    home = tmp_path / "home"
    plain = getattr(module, name)
    for count in range(4):
        child = os.fork()
        if child == 0:
            left = [count]

            def killed(*args, left=left):
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return plain(*args)

            setattr(module, name, killed)
            run("prepare", "mevis", "--from", *archives, "--to", home)
            os._exit(0)
        os.waitpid(child, 0)
        assert run("prepare", "mevis", "--from", *archives, "--to", home) == 0
        assert tree(home) == tree(tmp_path / "src")
        shutil.rmtree(home)


def test_prepare_writes_to_a_set_on_another_disk(tmp_path, monkeypatch):
    archives = drive_parts(tmp_path)

    def other_disk(source, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(prepare.os, "rename", other_disk)
    assert run("prepare", "mevis", "--from", *archives, "--to", tmp_path / "home") == 0
    assert tree(tmp_path / "home") == tree(tmp_path / "src")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a folder of archives", "--from"),
        ("a folder", "dataset.root"),
        ("a FIFO", "no regular file"),
        ("nothing", "no such archive"),
        ("another set", "holds nothing of 'mevis', but photos"),
        ("a file as home", "Can't write"),
    ],
)
def test_prepare_refuses_before_it_moves_anything(tmp_path, capsys, given, words):
    good, home, source = drive_parts(tmp_path)[0], tmp_path / "home", tmp_path / "given"
    if given == "a folder of archives":
        source.mkdir()
        shutil.copy(good, source / "a.zip")
    elif given == "a folder":
        source.mkdir()
    elif given == "a FIFO":
        os.mkfifo(source)
    elif given == "another set":
        with zipfile.ZipFile(source, "w") as out:
            out.writestr("photos/a.jpg", "x")
        assert run("prepare", "refcoco", "--from", source, "--to", home) == 2
        assert run("prepare", "reasonseg", "--from", source, "--to", home) == 2
    elif given == "a file as home":
        home, source = good / "home", good
    assert run("prepare", "mevis", "--from", good, source, "--to", home) == 2
    assert words in capsys.readouterr().err
    assert not home.exists()


@pytest.mark.slow
def test_prepare_coco_pictures_of_either_year_and_layout(tmp_path):
    src = tmp_path / "src"
    names = [f"COCO_train2014_{n:012d}.jpg" for n in (1, 2, 3)]
    records = [ImageRecord(n, frames(1)[0], [[[1, 1, 9, 1, 9, 9]]], [([0], ["it"])]) for n in names]
    write_refcoco_set(src / "refcoco", records, split_by="unc", image_folder="images/mscoco/images/train2014")
    pictures = src / "refcoco/images/mscoco/images/train2014"
    for number, folder in ((2, "train2017"), (3, "val2017")):
        (src / folder).mkdir()
        (pictures / names[number - 1]).rename(src / folder / f"{number:012d}.jpg")
    archives = [zipped(src, n, tmp_path / f"{n}.zip") for n in ("refcoco", "train2017", "val2017")]
    for archive in archives:
        run("prepare", "refcoco", "--from", archive)
    home = tmp_path / "data/refcoco_unc"
    assert sorted(p.name for p in (home / "images").iterdir()) == ["train2014", "train2017", "val2017"]
    data = open_dataset("refcoco_unc")
    assert [clip.load().shape[0] for clip in data.clips()] == [1, 1, 1]
    assert not list(tmp_path.rglob("escaped"))


def test_verify_of_a_sound_set_only_misses_the_published_counts(tmp_path, capsys):
    write_meta_expressions_set(tmp_path / "data" / "mevis", "valid_u", [video()])
    assert run("verify", "mevis") == 1
    out = capsys.readouterr().out
    assert "mevis valid_u: 1 videos, 4 frames, 2 expressions, 2 objects" in out
    assert "count differs: 2" in out
    assert "2 problems of 1 kinds" in out
    assert "its manifest says 793" in out


def test_verify_reports_the_first_problems_of_each_kind(tmp_path, capsys):
    root = tmp_path / "mevis"
    write_meta_expressions_set(root, "valid_u", [video(length=9)])
    for index in (1, 3, 4, 5, 6, 7):
        (root / f"valid_u/JPEGImages/0123456789ab/{index:05d}.jpg").unlink()
    (root / "valid_u" / "mask_dict.json").write_text("{")
    assert run("verify", "mevis", "--root", root, "--first", "2") == 1
    out = capsys.readouterr().out
    assert "missing frame: 6" in out
    assert "… and 4 more" in out
    assert "torn JSON: 1" in out
    assert "mask_dict.json: byte 1" in out
    assert "hint:" in out


def test_verify_of_the_shipped_sample_is_clean(capsys):
    assert run("verify", "shapes", "--decode") == 0
    assert "all well" in capsys.readouterr().out


def test_verify_of_a_set_that_is_not_there(tmp_path, capsys):
    assert run("verify", "revos") == 2
    assert "is not here" in capsys.readouterr().err


def test_unchecked_figures_are_noted_not_failed(tmp_path):
    from refseg_bench.datasets.verify import SplitFacts

    write_meta_expressions_set(tmp_path, "valid_u", [video()])
    facts = SplitFacts({"videos": 1, "expressions": 3}, True, frozenset({"expressions"}))
    verdict = verify(open_dataset("mevis", root=tmp_path), facts)
    assert verdict.ok
    assert "never counted" in verdict.notes[0]


def test_a_set_from_outside_without_surveys_is_verified_through_its_interface():
    from refseg_bench.datasets.base import Dataset
    from refseg_bench.errors import DataError

    @dataclass
    class Foreign(Dataset):
        name, split = "foreign", "all"

        def clips(self):
            return open_dataset("shapes").clips()[:2]

        def expressions(self, clip):
            return open_dataset("shapes").expressions(clip)

        def target(self, clip, expression):
            raise DataError("The masks are gone.", where="masks.bin", hint="Get them back.")

    verdict = verify(Foreign())
    assert [(d.kind, d.file) for d in verdict.problems] == [("damaged clip", "masks.bin")]


@pytest.mark.parametrize("sample", ["0123456789ab/1", "0123456789ab"])
def test_show_draws_frames_target_and_words(tmp_path, capsys, sample):
    write_meta_expressions_set(tmp_path / "mevis", "valid_u", [video(length=12)])
    out = tmp_path / "pictures" / "x.png"
    assert run("show", "mevis", sample, "--root", tmp_path / "mevis", "--out", out) == 0
    assert "both of them" in capsys.readouterr().out or sample.endswith("ab")
    picture = np.asarray(Image.open(out))
    assert picture.shape[1] == 1600
    colours = [(230, 159, 0), (86, 180, 233)][: 2 if sample.endswith("/1") else 1]
    assert all((picture == colour).all(axis=2).any() for colour in colours)
    assert (picture[:32] < 60).any()  # the words


def test_show_says_which_samples_there_are(tmp_path, capsys):
    write_meta_expressions_set(tmp_path / "mevis", "valid_u", [video()])
    assert run("show", "mevis", "nowhere/0", "--root", tmp_path / "mevis") == 2
    assert "0123456789ab/…" in capsys.readouterr().err
    assert run("show", "mevis", "0123456789ab/7", "--root", tmp_path / "mevis") == 2
    assert "allowed: 0, 1" in capsys.readouterr().err


def test_show_works_without_public_masks(tmp_path):
    write_ref_youtube_vos_set(tmp_path / "rvos", "valid", [video("0123456789")])
    assert (
        run(
            "show",
            "ref_youtube_vos",
            "0123456789/0",
            "--root",
            tmp_path / "rvos",
            "--out",
            tmp_path / "x.png",
        )
        == 0
    )


def test_verify_goes_through_all_splits_of_a_damaged_refcoco(tmp_path, capsys):
    images = [
        ImageRecord(f"{split}.jpg", frames(1)[0], [[[1, 1, 9, 1, 9, 9]]], [([0], ["it"])], split=split)
        for split in ("val", "testA")
    ]
    write_refcoco_set(tmp_path, images)
    (tmp_path / "images" / "testA.jpg").unlink()
    path = tmp_path / "instances.json"
    path.write_text(
        path.read_text().replace("[[1, 1, 9, 1, 9, 9]]", "[[1,1]]").replace("[[1,1,9,1,9,9]]", "[[1,1]]", 1)
    )
    assert run("verify", "refcoco", "--root", tmp_path) == 1
    out = capsys.readouterr().out
    val, test_a = out.split("refcoco_unc testA:")
    assert "malformed mask: 1" in val
    assert "missing frame: 1" in test_a
    (tmp_path / "refs(unc).p").write_bytes(b"\x80\x02]q")
    assert run("verify", "refcoco", "--root", tmp_path) == 1
    assert "torn pickle: 1" in capsys.readouterr().out


def test_what_can_t_be_done_is_told(tmp_path, capsys):
    write_meta_expressions_set(tmp_path / "data/mevis", "valid_u", [video()])
    (tmp_path / "a.zip").write_bytes(b"PK")
    for words in (
        ["prepare", "id_maps", "--from", tmp_path / "a.zip"],
        ["verify", "mevis", "--root", "a" * 300],
    ):
        assert run(*words) == 2
        assert capsys.readouterr().err.startswith("refseg data: ")


@pytest.mark.parametrize("name", [name for name in names("dataset") if open_dataset(name).landmarks()])
def test_sets_are_found_in_every_folder_their_archives_unpack_to(name, tmp_path, monkeypatch):
    monkeypatch.setenv("REFSEG_DATA", str(tmp_path))
    data = open_dataset(name)
    mark = data.landmarks()[0].replace("{split}", data.split)
    for place in (name, *data.folders, *(f"{name}/{folder}" for folder in data.folders)):
        path = tmp_path / place / mark
        path.mkdir(parents=True)
        assert open_dataset(name).base() == tmp_path / place
        path.rmdir()


def test_the_list_tells_where_it_looked(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REFSEG_DATA", str(tmp_path / "nowhere"))
    assert main(["data", "list"]) == 0
    told = capsys.readouterr().out
    assert f"Looked in {tmp_path / 'nowhere'} ($REFSEG_DATA, no such folder)" in told
    assert "the shipped samples" in told


def test_verify_notes_masks_that_are_soft_or_the_wrong_way_round(tmp_path, capsys):
    write_long_rvos_set(tmp_path, "valid", [video("a", expressions=[("it", [0], {}), ("that", [1], {})])])
    for path in tmp_path.rglob("*.png"):
        soft = np.linspace(200, 255, 24 * 32).reshape(24, 32) * (np.asarray(Image.open(path)) == 0)
        Image.fromarray(soft.astype(np.uint8)).save(path)
    run("verify", "long_rvos", "--root", tmp_path)
    told = capsys.readouterr().out
    assert "note: 8 of 8 masks cover most of their picture: are they the wrong way round?" in told
    assert "note: 8 masks have many levels between 0 and 255: all above 0 is the object." in told
