"""Writes files of every format slice by slice, larger than the memory that reading them may take."""

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import h5py
import mrcfile
import nibabel
import numpy as np
import tifffile
import zarr

Shape = tuple[int, int, int]


def slices(shape: Shape) -> Iterator[np.ndarray]:
    """Yield slices of blocks and a little noise, which all differ and which compress by less than half."""
    generator = np.random.default_rng(0)
    block = generator.integers(0, 200, (shape[1] // 16 + 1, shape[2] // 16 + 1), dtype=np.uint8)
    plane = np.kron(block, np.ones((16, 16), np.uint8))[: shape[1], : shape[2]]
    plane = plane + generator.integers(0, 30, plane.shape, dtype=np.uint8)
    for z in range(shape[0]):
        yield np.roll(plane, (z // 2, 3 * z), (0, 1))


def nrrd_header(shape: Shape, encoding: str) -> bytes:
    return f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {shape[2]} {shape[1]} {shape[0]}\nencoding: {encoding}\n\n".encode()


def write_nrrd(path: Path, shape: Shape) -> None:
    with open(path, "wb") as file:
        file.write(nrrd_header(shape, "raw"))
        file.writelines(plane.tobytes() for plane in slices(shape))


def write_gzip_nrrd(path: Path, shape: Shape) -> None:
    with open(path, "wb") as file:
        file.write(nrrd_header(shape, "gzip"))
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed:
            for plane in slices(shape):
                packed.write(plane.tobytes())


def write_ascii_nrrd(path: Path, shape: Shape) -> None:
    with open(path, "wb") as file:
        file.write(nrrd_header(shape, "ascii"))
        for plane in slices(shape):
            file.write(" ".join(map(str, plane.reshape(-1).tolist())).encode() + b"\n")


def write_mrc(path: Path, shape: Shape) -> None:
    with mrcfile.new_mmap(path, shape, mrc_mode=0) as file:
        for z, plane in enumerate(slices(shape)):
            file.data[z] = (plane // 2).astype(np.int8)


def write_nifti(path: Path, shape: Shape) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape[::-1])
    header["magic"], header["vox_offset"] = b"n+1", 352
    with open(path, "wb") as file:
        file.write(header.binaryblock + b"\0\0\0\0")
        file.writelines(plane.tobytes() for plane in slices(shape))


def write_gzip_nifti(path: Path, shape: Shape) -> None:
    write_nifti(path.with_suffix(""), shape)
    with open(path.with_suffix(""), "rb") as file, gzip.open(path, "wb", compresslevel=1) as packed:
        while block := file.read(1 << 20):
            packed.write(block)
    path.with_suffix("").unlink()


def write_tiff(path: Path, shape: Shape) -> None:
    tifffile.imwrite(path, slices(shape), shape=shape, dtype=np.uint8, photometric="minisblack", contiguous=True)


def write_tiled_tiff(path: Path, shape: Shape) -> None:
    with tifffile.TiffWriter(path) as file:
        for plane in slices(shape):
            file.write(plane, tile=(128, 128), photometric="minisblack", metadata=None, contiguous=False)


def write_packed_tiff(path: Path, shape: Shape) -> None:
    with tifffile.TiffWriter(path) as file:
        for plane in slices(shape):
            file.write(plane, compression="zlib", compressionargs={"level": 1}, photometric="minisblack", metadata=None)


def write_one_page_tiff(path: Path, shape: Shape) -> None:
    """Write one tiled page with as many pixels as the volume has voxels."""
    height, width = shape[0] * 16, shape[1] * shape[2] // 16
    rows = slices((height // 256, 256, width))
    tiles = (row[:, x : x + 256] for row in rows for x in range(0, width, 256))
    tifffile.imwrite(
        path, tiles, shape=(height // 256 * 256, width), dtype=np.uint8, tile=(256, 256), compression="zlib",
        compressionargs={"level": 1}, photometric="minisblack", metadata=None,
    )  # fmt: skip


def write_hdf5(path: Path, shape: Shape) -> None:
    with h5py.File(path, "w") as file:
        array = file.create_dataset("v", shape, np.uint8, chunks=(16, 128, 128), compression="gzip", compression_opts=1)
        _fill(array, shape)


def write_zarr(path: Path, shape: Shape) -> None:
    _fill(zarr.create_array(path, shape=shape, chunks=(16, 128, 128), dtype="uint8"), shape)


def _fill(array, shape: Shape) -> None:
    held: list[np.ndarray] = []
    start = 0
    for plane in slices(shape):
        held.append(plane)
        if len(held) == 16:
            array[start : start + 16] = np.stack(held)
            start, held = start + 16, []
    if held:
        array[start:] = np.stack(held)


def write_avi(path: Path, shape: Shape) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = shape[2], shape[1], "gray"
        for plane in slices(shape):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(plane), format="gray")))
        container.mux(stream.encode())


WRITERS: dict[str, tuple[str, Callable[[Path, Shape], None]]] = {
    "NRRD": ("v.nrrd", write_nrrd),
    "NRRD, gzip": ("v.nrrd", write_gzip_nrrd),
    "NRRD, ascii": ("v.nrrd", write_ascii_nrrd),
    "MRC": ("v.mrc", write_mrc),
    "NIfTI": ("v.nii", write_nifti),
    "NIfTI, gzip": ("v.nii.gz", write_gzip_nifti),
    "TIFF": ("v.tif", write_tiff),
    "TIFF, tiled": ("v.tif", write_tiled_tiff),
    "TIFF, packed": ("v.tif", write_packed_tiff),
    "TIFF, one page": ("v.tif", write_one_page_tiff),
    "HDF5": ("v.h5", write_hdf5),
    "Zarr": ("v.zarr", write_zarr),
    "AVI": ("v.avi", write_avi),
}
