"""Files that unpack to far more than they are: refused in a sentence, in memory that does not follow them."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import tifffile

import raw_fixtures as fx
from istseg.errors import EXIT_BAD_INPUT

BOMB = 1 << 30
# A process without libraries starts it: what a child inherits from its parent would count.
PEAK = "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]); print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"


def strip(raw: Path) -> str:
    """The one strip of an image holds a gigabyte."""
    path = raw / "images" / "mosaic_DAPI_z0.tif"
    pixels = tifffile.imread(path)
    tifffile.imwrite(path, pixels, compression="zlib", rowsperstrip=len(pixels), metadata=None)
    with tifffile.TiffFile(path) as tif:
        order, tags = tif.byteorder, tif.pages[0].tags
        places = [tags[name].valueoffset for name in ("StripOffsets", "StripByteCounts")]
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(bytes(1 << 24)) for _ in range(BOMB >> 24)) + packer.flush()
    content = bytearray(path.read_bytes())
    for place, value in zip(places, (len(content), len(packed)), strict=True):
        struct.pack_into(f"{order}I", content, place, value)
    path.write_bytes(content + packed)
    return "cannot be decoded"


def line(raw: Path) -> str:
    """The last line of the packed table has a gigabyte."""
    path = raw / "detected_transcripts.csv"
    with gzip.open(f"{path}.gz", "wb", 1) as stream:
        stream.write(path.read_bytes())
        for _ in range(BOMB >> 24):
            stream.write(b"x" * (1 << 24))
    path.unlink()
    return "detected_transcripts.csv.gz"


@pytest.mark.slow
@pytest.mark.parametrize("bomb", [strip, line], ids=lambda bomb: bomb.__name__)
def test_a_file_that_unpacks_to_a_gigabyte_is_refused_in_little_memory(tmp_path, bomb):
    fx.merscope(tmp_path / "raw")
    message = bomb(tmp_path / "raw")
    command = [Path(sys.executable).with_name("istseg"), "--quiet", "convert", "--raw", tmp_path / "raw", "--sample", "s", "--platform", "merscope"]
    done = subprocess.run([sys.executable, "-S", "-c", PEAK, *map(str, command), "--out", str(tmp_path / "out")], capture_output=True, text=True)
    code, peak = map(int, done.stdout.split())
    assert code == EXIT_BAD_INPUT, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert peak < 800_000, f"{peak / 1024:.0f} MiB"
    assert not list((tmp_path / "out").glob("*"))
