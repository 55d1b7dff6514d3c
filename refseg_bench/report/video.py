"""Videos of one's own: their frames as files, and frames as an mp4. Needs PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refseg_bench.errors import DataError, require
from refseg_bench.files.store_io import output, replacing, write_error
from refseg_bench.report.media import encoded, spread


def write_video(path: Path, frames: Iterator[NDArray[np.uint8]], size: tuple[int, int], fps: float) -> None:
    """Encode RGB frames; odd sides lose a row or column, which the common pixel format asks for."""
    require("av", "Writing a video")
    import av

    height, width = (max(2, side - side % 2) for side in size)
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with output(path) as handle, av.open(handle, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame_HWC in frames:
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(frame_HWC[:height, :width]), format="rgb24"
            )
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def read_video(path: Path, folder: Path, *, most: int | None = None) -> tuple[list[Path], float]:
    """Decode a video into PNG files, turned as the video's header asks for.

    Args:
        path: the video.
        folder: where the frames go.
        most: frames to take, spread evenly; ``None`` = all.

    Returns:
        The frames' files and the frames per second they play at.

    Raises:
        DataError: no video, or one without frames.
        StoreError: a frame can't be written.
        MissingExtra: PyAV is not installed.
    """
    require("av", "Reading a video")
    import av

    # A playlist must not fetch from elsewhere, and a name with a colon is no address.
    source, only_files = f"file:{path.absolute()}", {"protocol_whitelist": "file"}
    try:
        with av.open(source, options=only_files) as container:
            if not container.streams.video:
                raise DataError("The file has no video in it.", where=path)
            rate = float(container.streams.video[0].average_rate or 12)
            count = sum(1 for _ in container.decode(video=0))
        wanted = set(range(count) if most is None else spread(count, most, ())) if count else set()
        files = []
        with av.open(source, options=only_files) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    files.append(folder / f"{index:05d}.png")
                    picture = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                    _keep(files[-1], encoded(Image.fromarray(picture), "PNG", compress_level=1))
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(
            f"The video can't be decoded ({error}).", where=path, hint="Give a folder of its frames instead."
        ) from error
    if not files:
        raise DataError("The video holds no frame.", where=path)
    return files, rate * len(files) / count


def _keep(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as handle:
            handle.write(data)
    except OSError as error:
        raise write_error(error, path) from error
