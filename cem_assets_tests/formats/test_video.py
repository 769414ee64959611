"""Videos become stacks of frames; what cannot become one is refused with a reason."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cem_assets.catalog.description import DatasetDescription
from cem_assets.cem.patches.pixels import open_pixels
from cem_assets.cem.volumes.bricks import XY_ONLY
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.errors import DataError
from cem_assets.formats import open_file, video
from cem_assets.store.store import Store
from cem_assets_tests.datasets import cells, put_in_inbox, toml

SHAPE = (6, 96, 130)  # the decoder pads rows of this width in memory


def described(kind: str = "video") -> DatasetDescription:
    size = {"pixel_size_nm": (8, 8)} if kind == "images" else {"voxel_size_nm": (8, 8, 8)}
    return DatasetDescription(name="d", kind=kind, licence="x", citation="x", **size)


def write_video(path: Path, frames: np.ndarray, codec: str, pixel_format: str, times=None, options=None, given="gray") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.time_base = Fraction(1, 25)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=given)
            frame = frame.reformat(format=pixel_format)
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decoded(path: Path, scratch: Path) -> tuple[np.ndarray, str]:
    opened = open_file(path, scratch, described())
    z, y, x = opened.source.shape
    assert not opened.is_image and opened.source.dtype == np.uint8
    return opened.source.read((slice(0, z), slice(0, y), slice(0, x))), "; ".join(opened.notes)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.mark.parametrize(
    ("file", "codec", "pixel_format", "tolerance"),
    [
        ("v.avi", "ffv1", "gray", 0),
        ("v.avi", "rawvideo", "gray", 0),
        ("v.avi", "ffv1", "bgr0", 0),
        ("v.avi", "huffyuv", "rgb24", 0),
        ("v.avi", "ffv1", "yuv420p", 1.5),
        ("v.avi", "ffv1", "yuv420p10le", 1.5),
        ("v.avi", "ffv1", "gray16le", 1.5),
        ("v.avi", "mjpeg", "yuvj420p", 6),
        ("v.avi", "mpeg4", "yuv420p", 12),
        ("v.mp4", "mpeg4", "yuv420p", 12),
        ("v.mp4", "libx264", "yuv420p", 12),
    ],
)
def test_frames_come_back_as_slices(tmp_path, scratch, file, codec, pixel_format, tolerance):
    if codec not in av.codec.codecs_available:
        pytest.skip(f"this PyAV cannot write {codec}")
    frames = cells(SHAPE)
    voxels, notes = decoded(write_video(tmp_path / file, frames, codec, pixel_format), scratch)
    assert voxels.shape == SHAPE
    assert np.abs(voxels.astype(int) - frames).mean() <= tolerance
    name = {"libx264": "h264"}.get(codec, codec)
    assert f"codec {name}, " in notes and "25 frames/s, 0.24 s, 6 frames" in notes
    assert "colour" not in notes and "variable" not in notes


def test_colour_becomes_luminance_and_is_told(tmp_path, scratch):
    colour = np.stack([cells(SHAPE, seed) for seed in (1, 2, 3)], axis=-1)
    red, green, blue = (colour[..., n].astype(float) for n in range(3))
    expected = np.rint(0.299 * red + 0.587 * green + 0.114 * blue)
    for codec, pixel_format in (("huffyuv", "rgb24"), ("ffv1", "yuv444p")):
        path = write_video(tmp_path / f"{pixel_format}.avi", colour, codec, pixel_format, given="rgb24")
        voxels, notes = decoded(path, scratch)
        assert np.abs(voxels - expected).max() <= (0 if codec == "huffyuv" else 2)
        assert "colour reduced to luminance" in notes


def test_limited_range_is_stretched_as_the_standard_says():
    table = video._to_full_range(8, True)
    assert table[[0, 16, 235, 255]].tolist() == [0, 0, 255, 255]
    assert table.tolist() == [min(255, max(0, int(np.rint((n - 16) * 255 / 219)))) for n in range(256)]
    assert video._to_full_range(10, True)[[64, 940, 1023]].tolist() == [0, 255, 255]
    assert video._to_full_range(16, False)[[0, 65535]].tolist() == [0, 255]


def test_frames_equal_to_the_one_before_are_left_out_and_counted(tmp_path, scratch):
    frames = cells(SHAPE)
    path = write_video(tmp_path / "v.avi", frames[[0, 0, 1, 1, 1, 0, 2]], "ffv1", "gray")
    voxels, notes = decoded(path, scratch)
    assert np.array_equal(voxels, frames[[0, 1, 0, 2]]) and "3 frame(s) equal to the one before left out; 4 remain" in notes


def test_a_variable_frame_rate_is_told(tmp_path, scratch):
    path = write_video(tmp_path / "v.mp4", cells(SHAPE), "mpeg4", "yuv420p", times=[0, 1, 2, 10, 11, 12])
    voxels, notes = decoded(path, scratch)
    assert len(voxels) == 6 and "variable frame rate: intervals of 0.04 to 0.32 s" in notes


def test_an_interlaced_video_is_refused(tmp_path, scratch):
    options = {"flags": "+ildct+ilme", "top": "1"}
    path = write_video(tmp_path / "v.mp4", cells((4, 96, 128)), "mpeg2video", "yuv420p", options=options)
    with pytest.raises(ValueError, match=r"v.mp4 is interlaced \(frame 0\).*Deinterlace it first"):
        open_file(path, scratch, described())


@pytest.mark.parametrize("kind", ["volume", "images"])
def test_a_video_in_another_kind_of_dataset_is_refused(tmp_path, scratch, kind):
    path = write_video(tmp_path / "v.avi", cells(SHAPE), "ffv1", "gray")
    with pytest.raises(ValueError, match='Set kind = "video"'):
        open_file(path, scratch, described(kind))


@pytest.mark.parametrize(("file", "codec"), [("v.avi", "ffv1"), ("v.mp4", "mpeg4")])
def test_a_video_cut_short_anywhere_is_refused(tmp_path, scratch, file, codec):
    path = write_video(tmp_path / file, cells(SHAPE), codec, "gray" if codec == "ffv1" else "yuv420p")
    data = path.read_bytes()
    for share in (0.03, 0.3, 0.6, 0.9, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ValueError, match=f"^{file} .*(truncated|damaged|is text|cannot be read)"):
            open_file(path, scratch, described())


@pytest.mark.parametrize(
    ("file", "codec", "pixel_format", "options"),
    [
        ("v.avi", "mpeg4", "yuv420p", {}),
        ("v.mp4", "mpeg4", "yuv420p", {}),
        ("v.mp4", "libx264", "yuv420p", {}),
    ],
)
def test_damaged_frames_are_refused_not_painted_over(tmp_path, scratch, file, codec, pixel_format, options):
    if codec not in av.codec.codecs_available:
        pytest.skip(f"this PyAV cannot write {codec}")
    path = write_video(tmp_path / file, cells((12, 96, 128)), codec, pixel_format, options=options)
    data = bytearray(path.read_bytes())
    voxels = data.find(b"mdat") if file.endswith("mp4") else 6000
    for place in range(voxels + 3000, voxels + 3400):
        data[place] ^= 0x5A
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        open_file(path, scratch, described())


def test_a_header_that_asks_for_absurd_memory_is_the_files_fault(tmp_path, scratch, monkeypatch):
    path = write_video(tmp_path / "v.mp4", cells(SHAPE), "mpeg4", "yuv420p")
    data = bytearray(path.read_bytes())
    count = data.find(b"stts") + 8
    data[count : count + 4] = b"\x7f\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"^v\.mp4 is damaged"):
        open_file(path, scratch, described())
    monkeypatch.setattr(video, "_has_memory", lambda: False)
    with pytest.raises(MemoryError):
        open_file(path, scratch, described())


@pytest.mark.parametrize(
    ("limit", "value", "part"),
    [
        ("MAX_SIDE_PX", 100, "frames of 130 x 96 px; expected sides up to 100 px"),
        ("MAX_FRAME_PX", 1000, "and 1000 px in all"),
        ("MAX_FRAMES", 5, "6 frames; expected at most 5"),
        ("MAX_VIDEO_BYTES", 6 * 96 * 130 - 1, "GiB of frames"),
    ],
)
def test_limits_hold_before_a_frame_is_decoded(tmp_path, scratch, monkeypatch, limit, value, part):
    path = write_video(tmp_path / "v.avi", cells(SHAPE), "ffv1", "gray")
    monkeypatch.setattr(video, limit, value)
    monkeypatch.setattr(video, "_frames", lambda *args: pytest.fail("a frame was asked for"))
    with pytest.raises(ValueError, match=part):
        open_file(path, scratch, described())


def test_codecs_that_are_not_listed_are_refused(tmp_path, scratch, monkeypatch):
    path = write_video(tmp_path / "v.avi", cells(SHAPE), "ffv1", "gray")
    monkeypatch.setattr(video, "CODECS", frozenset({"mpeg4"}))
    with pytest.raises(ValueError, match="has codec 'ffv1'; expected one of mpeg4"):
        open_file(path, scratch, described())


def test_a_playlist_named_like_a_video_opens_nothing_else(tmp_path, scratch):
    secret = write_video(tmp_path / "secret.avi", cells(SHAPE), "ffv1", "gray")
    for number, text in enumerate((f"ffconcat version 1.0\nfile '{secret}'\n", f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n")):
        path = tmp_path / f"{number}.mp4"
        path.write_text(text)
        with pytest.raises(ValueError, match="is text; expected MP4"):
            open_file(path, scratch, described())


def test_a_file_of_sound_is_no_video(tmp_path, scratch):
    (tmp_path / "v.avi").write_bytes(b"RIFF\x24\0\0\0WAVEfmt " + bytes(40))
    with pytest.raises(ValueError, match="RIFF without video; expected AVI"):
        open_file(tmp_path / "v.avi", scratch, described())


def test_a_video_is_cut_in_xy_only_and_its_facts_are_recorded(local_store: Store, tmp_path):
    path = write_video(tmp_path / "v.avi", cells((70, 96, 130)), "ffv1", "gray")
    about = toml("d", "video", target_voxel_size_nm="16.0")
    put_in_inbox(local_store, "d", {"v.avi": path.read_bytes()}, about)
    standardize_dataset(local_store, "d")
    record = open_pixels(local_store, "d").volumes[0].record
    assert record.planes == XY_ONLY and record.notes[0] == "video: codec ffv1, gray, 25 frames/s, 2.8 s, 70 frames"
    assert record.shape == (70, 48, 65) and record.voxel_size_nm == (8, 16, 16), "time is never binned"
