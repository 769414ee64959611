"""Videos (MP4, AVI), decoded by PyAV: their frames become the slices of a volume from which patches are cut in xy only.

Frames are written one by one to a scratch file, so that only a few are in memory. Luma is taken as it is stored and stretched
to the full range; RGB becomes gray by the rule of `cem_assets.imaging.intensity.gray_from_channels`.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.catalog.description import DatasetDescription
from cem_assets.errors import DataError
from cem_assets.formats.arrays import Opened, RawFile, require_disk, shown
from cem_assets.imaging.intensity import gray_from_channels

MAX_SIDE_PX = 16_384
"""Longest side of a frame."""
MAX_FRAME_PX = 1 << 27
"""Pixels of a frame at most: the decoder has several frames in memory, with their colour."""
MAX_FRAMES = 1 << 20
MAX_VIDEO_BYTES = 256 << 30
"""Gray bytes of all frames at most."""

CODECS = frozenset(
    {
        "mpeg4", "msmpeg4v2", "msmpeg4", "mpeg2video", "mpeg1video", "h264", "hevc", "av1", "libdav1d", "libaom-av1", "vp8",
        "vp9", "libvpx-vp9", "mjpeg", "ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "png", "cinepak", "dvvideo", "wmv1",
        "wmv2", "prores", "jpeg2000",
    }
)  # fmt: skip
"""Decoders that are used on uploaded files. Codecs of screens and games are left out on purpose, because they are seldom
tested."""

_BYTES_BETWEEN_CHECKS = 1 << 28
_LARGE_BLOCK_BYTES = 1 << 29
"""More than FFmpeg needs at once for a file within the limits above."""
_NEUTRAL_CHROMA = 2
"""How far chroma of 8 bits may be from 128 and still count as gray, because encoders round."""
_ATTACHED_PICTURE = 0x400
_LIMITED_RANGE = 1
_FULL_RANGE = 2
_DEMUXERS = {"MP4": "mp4", "AVI": "avi"}


def open_video(path: Path, scratch: Path, description: DatasetDescription, container: str) -> Opened:
    """Decode a video into scratch.

    Args:
        scratch: Folder for the frames.
        description: The dataset's description, which must be of kind "video".
        container: "MP4" or "AVI".

    Returns:
        uint8 frames as slices. Frames equal to the one before are left out. The notes count them, and name codec, frame rate
        and duration.

    Raises:
        DataError: The dataset is of another kind; or the file is damaged, truncated, interlaced or too large, has no or several
            video streams, changes its frame size, or is of a codec that is not supported.
        OSError: The scratch disk is too small.
    """
    import av  # a large library, which only videos need

    what = shown(path)
    if description.kind != "video":
        raise DataError(
            f'{what} is a video; expected only files for kind = "{description.kind}". Set kind = "video" in dataset.toml, or '
            "put it into a dataset of its own."
        )
    _check_length(path, container, what)
    try:
        # The library gets an open file, a format and no protocols, so that nothing in the file can make it open anything else.
        with (
            open(path, "rb") as handle,
            av.open(handle, format=_DEMUXERS[container], options=_options(container)) as opened,
        ):
            return _decode(opened, scratch, what, container)
    except av.FFmpegError as error:
        if isinstance(error, MemoryError) and not _has_memory():
            raise
        raise DataError(
            f"{what} is damaged, or no {container}: {error.strerror or type(error).__name__}. Copy it again from its source."
        ) from error


def _has_memory() -> bool:
    """Tell whether this process still gets a large block of memory.

    FFmpeg also reports a lack of memory where a damaged header makes it ask for a block larger than it ever allocates.
    """
    try:
        np.empty(_LARGE_BLOCK_BYTES, np.uint8)
    except MemoryError:
        return False
    return True


def _options(container: str) -> dict[str, str]:
    options = {"protocol_whitelist": "none"}
    if container == "MP4":  # edit lists would hide frames, and references would lead to other files
        options |= {"ignore_editlist": "1", "enable_drefs": "0", "use_absolute_path": "0"}
    return options


@dataclass
class _Progress:
    """What was found while the frames were decoded."""

    num_frames: int = 0
    is_stretched: bool = False
    has_colour: bool = False
    intervals: set[int] = field(default_factory=set)
    last_time: int | None = None

    def see_time(self, pts: int | None) -> None:
        if pts is not None:
            if self.last_time is not None and len(self.intervals) < 1000:
                self.intervals.add(pts - self.last_time)
            self.last_time = pts


def _decode(opened: Any, scratch: Path, what: str, container: str) -> Opened:
    stream = _only_stream(opened, what)
    context = stream.codec_context
    size = (int(context.height), int(context.width))
    announced = int(stream.frames)
    rate: Fraction | None = stream.average_rate
    _check_size(size, announced, what)
    require_disk(scratch, size[0] * size[1] * max(announced, 1), what)
    context.options = {"err_detect": "explode"}  # by default the decoder paints over damaged parts
    context.thread_count = 2
    seen = _Progress()
    path = scratch / f"{uuid.uuid4().hex}.raw"
    pixel_format = ""
    with open(path, "wb") as out:
        writer = _FrameWriter(out, scratch, what)
        for frame in _frames(opened, stream, size, what, seen):
            pixel_format = pixel_format or str(frame.format.name)
            writer.add(_gray(frame, seen))
    if not seen.num_frames:
        raise DataError(f"{what} holds no frame that can be decoded; expected at least one. Copy it again from its source.")
    num_repeated = seen.num_frames - writer.num_written
    if container == "MP4" and seen.num_frames < announced:
        raise DataError(
            f"{what} is truncated: its header announces {announced} frames, found {seen.num_frames}. Copy it again from "
            "its source."
        )
    notes = [_summary(context, pixel_format, rate, stream, opened, seen)]
    if seen.num_frames < announced:
        notes.append(f"{announced - seen.num_frames} of {announced} announced frames are empty")
    if num_repeated:
        notes.append(f"{num_repeated} frame(s) equal to the one before left out; {writer.num_written} remain")
    if len(seen.intervals) > 2 or (seen.intervals and max(seen.intervals) > 2 * max(min(seen.intervals), 1)):
        notes.append(
            f"variable frame rate: intervals of {float(min(seen.intervals) * stream.time_base):.4g} to "
            f"{float(max(seen.intervals) * stream.time_base):.4g} s; slices are not evenly spaced in time"
        )
    if seen.is_stretched:
        notes.append("luma of limited range (16 to 235 of 8 bits) was stretched to 0 to 255")
    if seen.has_colour:
        notes.append("colour reduced to luminance")
    return Opened(RawFile(path, 0, (writer.num_written, *size), "|u1"), False, None, tuple(notes))


def _summary(context: Any, pixel_format: str, rate: Fraction | None, stream: Any, opened: Any, seen: _Progress) -> str:
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif opened.duration is not None:
        seconds = opened.duration / 1_000_000
    else:
        seconds = float(seen.num_frames / rate) if rate else float("nan")
    speed = f"{float(rate):.6g} frames/s" if rate else "no frame rate"
    return f"video: codec {context.codec.name}, {pixel_format}, {speed}, {seconds:.6g} s, {seen.num_frames} frames"


def _only_stream(opened: Any, what: str) -> Any:
    streams = [item for item in opened.streams.video if not int(item.disposition) & _ATTACHED_PICTURE]
    if len(streams) != 1:
        raise DataError(f"{what} has {len(streams)} video streams; expected one. Save it as a file with one.")
    name = streams[0].codec_context.codec.name if streams[0].codec_context is not None else "unknown"
    if name not in CODECS:
        raise DataError(
            f"{what} has codec {name!r}; expected one of {', '.join(sorted(CODECS))}. Save it as FFV1 in AVI, or as "
            "a TIFF stack."
        )
    return streams[0]


def _check_size(size: tuple[int, int], announced: int, what: str) -> None:
    height, width = size
    problems = []
    if min(size) < 1:
        problems.append(f"frames of {width} x {height} px; expected none of them 0")
    if max(size) > MAX_SIDE_PX or height * width > MAX_FRAME_PX:
        problems.append(f"frames of {width} x {height} px; expected sides up to {MAX_SIDE_PX} px and {MAX_FRAME_PX} px in all")
    if announced > MAX_FRAMES:
        problems.append(f"{announced} frames; expected at most {MAX_FRAMES}")
    elif announced * height * width > MAX_VIDEO_BYTES:
        problems.append(f"{announced * height * width / 2**30:.0f} GiB of frames; expected at most {MAX_VIDEO_BYTES >> 30} GiB")
    if problems:
        raise DataError(f"{what} has {' and '.join(problems)}. Cut it into shorter or smaller videos.")


def _frames(opened: Any, stream: Any, size: tuple[int, int], what: str, seen: _Progress) -> Iterator[Any]:
    for frame in opened.decode(stream):
        number = seen.num_frames
        if frame.is_corrupt:
            raise DataError(f"{what}: frame {number} is damaged. Copy it again from its source.")
        if frame.interlaced_frame:
            raise DataError(
                f"{what} is interlaced (frame {number}): its rows are of two points in time; expected whole frames. "
                'Deinterlace it first, for example with "ffmpeg -vf bwdif", and save it without loss.'
            )
        if (frame.height, frame.width) != size:
            raise DataError(
                f"{what}: frame {number} is {frame.width} x {frame.height} px, the first is {size[1]} x {size[0]} px; expected "
                "frames of one size. Split the video there."
            )
        if number >= MAX_FRAMES or (number + 1) * size[0] * size[1] > MAX_VIDEO_BYTES:
            raise DataError(
                f"{what} has more than {number} frames of {size[1]} x {size[0]} px; expected at most {MAX_FRAMES} frames and "
                f"{MAX_VIDEO_BYTES >> 30} GiB in all. Cut it into shorter videos."
            )
        seen.see_time(frame.pts)
        seen.num_frames += 1
        yield frame


class _FrameWriter:
    """Writes frames one after the other, but leaves out those that are equal to the one before."""

    def __init__(self, out: IO[bytes], scratch: Path, what: str) -> None:
        self._out, self._scratch, self._what = out, scratch, what
        self._last: NDArray[np.uint8] | None = None
        self._unchecked = 0
        self.num_written = 0

    def add(self, plane: NDArray[np.uint8]) -> None:
        if self._last is not None and np.array_equal(plane, self._last):
            return
        self._unchecked += plane.nbytes
        if self._unchecked >= _BYTES_BETWEEN_CHECKS:  # the header may have announced fewer frames, or none
            require_disk(self._scratch, _BYTES_BETWEEN_CHECKS, self._what)
            self._unchecked = 0
        self._out.write(np.ascontiguousarray(plane).data)
        self._last = plane
        self.num_written += 1


def _gray(frame: Any, seen: _Progress) -> NDArray[np.uint8]:
    """Take the luma of a frame, or the luminance of an RGB frame, as uint8 (y, x)."""
    name = str(frame.format.name)
    is_gray = name.startswith("gray")
    if not is_gray and not (name.startswith("yuv") and frame.format.is_planar):
        pixels, how = gray_from_channels(frame.to_ndarray(format="rgb24"))
        seen.has_colour = seen.has_colour or how.startswith("colour")
        return np.ascontiguousarray(pixels, dtype=np.uint8)
    bits = int(frame.format.components[0].bits)
    dtype = np.dtype(np.uint8) if bits <= 8 else np.dtype(f"{'>' if name.endswith('be') else '<'}u2")
    luma = _plane(frame.planes[0], dtype)
    if is_gray:
        is_limited = frame.color_range == _LIMITED_RANGE
    else:  # video has the limited range where nothing is said; yuvj formats are an old way to say that it is full
        is_limited = frame.color_range != _FULL_RANGE and not name.startswith("yuvj")
        if not seen.has_colour:
            neutral, most = 1 << (bits - 1), _NEUTRAL_CHROMA << (bits - 8)
            seen.has_colour = any(
                int(np.abs(_plane(plane, dtype).astype(np.int32) - neutral).max()) > most for plane in frame.planes[1:3]
            )
    seen.is_stretched = seen.is_stretched or is_limited
    if bits == 8 and not is_limited:
        return np.array(luma, dtype=np.uint8)
    return np.asarray(_to_full_range(bits, is_limited)[luma], dtype=np.uint8)


def _plane(plane: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the pixels of a plane without the padding at the end of rows; they are valid as long as the frame is."""
    rows = np.frombuffer(plane, dtype).reshape(plane.height, plane.line_size // dtype.itemsize)
    return rows[:, : plane.width]


@lru_cache(maxsize=8)
def _to_full_range(bits: int, is_limited: bool) -> NDArray[np.uint8]:
    """Return the uint8 value of every stored value. This is exact and the same on all machines, unlike libswscale."""
    stored = np.arange(1 << (8 if bits <= 8 else 16), dtype=np.float64)
    scale = float(1 << (bits - 8)) if bits >= 8 else 1.0
    low, high = (16 * scale, 235 * scale) if is_limited else (0.0, float((1 << bits) - 1))
    return np.asarray(np.rint(np.clip((stored - low) * 255 / (high - low), 0, 255)), dtype=np.uint8)


def _check_length(path: Path, container: str, what: str) -> None:
    """Refuse a file that ends before its last outermost box does; the library would read what is there without a word.

    Raises:
        DataError: The file is truncated.
    """
    size, position = path.stat().st_size, 0
    with open(path, "rb") as handle:
        while position + 8 <= size:
            handle.seek(position)
            head = handle.read(16)
            if container == "AVI":
                if head[:4] not in (b"RIFF", b"JUNK", b"LIST", b"idx1"):
                    return  # something after the video, such as a tag of the software that wrote it
                length = 8 + int.from_bytes(head[4:8], "little")
                length += length % 2
                is_unfinished = head[:4] == b"RIFF" and length <= 8
            else:
                length = int.from_bytes(head[:4], "big")
                if length == 1:
                    length = int.from_bytes(head[8:16], "big")
                elif length == 0:  # the box reaches to the end of the file
                    return
                is_unfinished = length < 8
            if is_unfinished or position + length > size + 1:
                raise DataError(
                    f"{what} is truncated, or was never finished: its part at byte {position} has {length} bytes, the file has "
                    f"{size}. Copy it again from its source."
                )
            position += length
