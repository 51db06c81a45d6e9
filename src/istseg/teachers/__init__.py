"""Teachers: what labels nuclei and cells before the network is trained, behind one interface (`base.Teacher`)."""

from __future__ import annotations

from pathlib import Path

from istseg.errors import InputError
from istseg.teachers.base import Teacher
from istseg.teachers.watershed import Sizes

TEACHERS = ("watershed", "cellpose", "vendor")


def make_teacher(
    name: str,
    sizes: Sizes,
    *,
    vendor_cells: Path | None = None,
    nuclei_weights: Path | None = None,
    nuclei_sha256: str | None = None,
    cyto_weights: Path | None = None,
    cyto_sha256: str | None = None,
    device: str = "cpu",
) -> Teacher:
    """Make a teacher.

    Parameters
    ----------
    name
        One of `TEACHERS`.
    sizes
        Of nuclei and cells.
    vendor_cells
        For `vendor`.
    nuclei_weights, nuclei_sha256, cyto_weights, cyto_sha256
        For `cellpose`.
    device
        For `cellpose`; the other teachers work on the CPU.

    Raises
    ------
    InputError
        If the name is unknown or the teacher lacks what it needs.
    DeviceError
        If the device is not there.

    """
    if name == "watershed":
        from istseg.teachers.watershed import WatershedTeacher

        return WatershedTeacher(sizes)
    if name == "cellpose":
        from istseg.teachers.cellpose import CellposeTeacher

        return CellposeTeacher(nuclei_weights, nuclei_sha256, cyto_weights, cyto_sha256, sizes, device)
    if name == "vendor":
        from istseg.teachers.vendor import VendorTeacher

        return VendorTeacher(vendor_cells, sizes)
    raise InputError(f"the teacher {name!r} is unknown; choose one of {', '.join(TEACHERS)}.")
