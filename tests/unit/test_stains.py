"""Focus and seams of stains: what was blurred and what was made brighter is found, and nothing else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

import tissue_fixtures as made
from istseg.artifacts.sample import Sample, Stain
from istseg.converted import StainImage
from istseg.qc import stains
from istseg.simulate.recipe import Recipe
from istseg.tissue import TissueGrid, grid_shape

PIXEL_UM = 0.18
SIDE_UM = 240.0
FIELD_UM = 60.0


@pytest.fixture(scope="module")
def simulated():
    """(stain, y, x) grey values of simulated tissue: DAPI, a membrane, a cytoplasm stain."""
    recipe = Recipe(SIDE_UM, SIDE_UM, 1, ("Cellbound1", "PolyT"), 0.0, 0.5, 0.1, 0.1, 5, 1)
    n = round(SIDE_UM / PIXEL_UM)
    return recipe.exposures((0, 0, n, n), (0.0, 0.0), (PIXEL_UM, PIXEL_UM), (n / 4, n / 4), 0)[0]


def fields(overlap_um: float = 0.0) -> dict[str, list[float]]:
    """Boxes of 4 × 4 fields, full pixels."""
    step, grow = FIELD_UM / PIXEL_UM, overlap_um / PIXEL_UM / 2
    return {f"{y}_{x}": [y * step - grow, x * step - grow, (y + 1) * step + grow, (x + 1) * step + grow] for y in range(4) for x in range(4)}


def gains(image, spread, seed=2):
    """Each field as bright as its own factor says; the camera's offset stays."""
    random = np.random.default_rng(seed)
    dark, changed = np.percentile(image, 1, axis=(1, 2))[:, None, None], image.astype(np.float32)
    for y0, x0, y1, x1 in fields().values():
        place = np.s_[:, round(y0) : round(y1), round(x0) : round(x1)]
        changed[place] = (changed[place] - dark) * np.exp(random.normal(0, spread)) + dark
    return np.clip(np.rint(changed), 0, 65535).astype(np.uint16)


def blurred(image, um, pixel_um=PIXEL_UM):
    return np.rint(np.stack([cv2.GaussianBlur(plane.astype(np.float32), (0, 0), um / pixel_um) for plane in image])).astype(image.dtype)


def measured(folder, image, boxes=None, pixel_um=PIXEL_UM):
    """`measure` of a mosaic that is tissue everywhere; stain → figures."""
    height, width = image.shape[1:]
    made.write_image(folder / "s.zarr", image, 2)
    found = [Stain(n, "membrane" if i else "nucleus", *np.percentile(image[i], [1, 99])) for i, n in enumerate(("DAPI", "Ring", "Cyto")[: len(image)])]
    affine = np.diag([1 / pixel_um, 1 / pixel_um, 1]).tolist()
    sample = Sample("s", "merscope", affine, pixel_um, height, width, found, [], [], {}, [], details={"fov_boxes_px": boxes or {}})
    tissue = np.ones(grid_shape(sample.size_um), bool)
    return {s["name"]: s for s in stains.measure(StainImage(folder / "s.zarr", sample), sample, TissueGrid(tissue, tissue, sample.size_um))}


@pytest.mark.parametrize("blur_um", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("pixel_um", [0.1, 0.2])
def test_the_blur_of_an_edge_is_measured_in_um(tmp_path, blur_um, pixel_um):
    random = np.random.default_rng(0)
    n = round(48 / pixel_um)
    image = np.full((1, n, n), 1000.0, np.float32)
    image[:, :, n // 4 : 3 * n // 4] = 9000
    image = blurred(image, blur_um, pixel_um) + random.normal(0, 60, image.shape)
    found = measured(tmp_path, np.rint(image).astype(np.uint16), pixel_um=pixel_um)["DAPI"]["focus"]
    assert found["n_squares"] == 4
    assert found["blur_um"] == pytest.approx(blur_um, rel=0.15)
    assert found["out_of_focus"] == float(blur_um > stains.OUT_OF_FOCUS_UM)


def test_clean_tissue_is_sharp_and_without_steps(simulated, tmp_path):
    for figures in measured(tmp_path, simulated, fields()).values():
        assert figures["focus"]["n_squares"] > 60
        assert figures["focus"]["out_of_focus"] == 0
        assert figures["seams"]["excess"] < 0.15
        assert figures["seams"]["border_um"] > 1000


def test_a_blurred_region_is_found(simulated, tmp_path):
    image = simulated.copy()
    half = image.shape[2] // 2
    image[1:, :, half:] = blurred(image, 3.0)[1:, :, half:]
    found = measured(tmp_path, image)
    assert found["DAPI"]["focus"]["out_of_focus"] == 0
    assert found["DAPI"]["seams"] is None
    for name in ("Ring", "Cyto"):
        assert 0.25 < found[name]["focus"]["out_of_focus"] < 0.55
    whole = measured(tmp_path / "all", blurred(simulated, 3.0))
    assert all(s["focus"]["out_of_focus"] > 0.75 and s["focus"]["blur_um"] > stains.OUT_OF_FOCUS_UM for s in whole.values())


def test_noise_is_not_taken_for_sharpness(simulated, tmp_path):
    image = blurred(simulated, 3.0)
    noisy = np.clip(image + np.random.default_rng(2).normal(0, 150, image.shape), 0, 65535).astype(np.uint16)
    for figures in measured(tmp_path, noisy).values():
        assert figures["focus"]["out_of_focus"] > 0.7


@pytest.mark.parametrize("overlap_um", [0.0, 4.0])
def test_steps_between_fields_are_found(simulated, tmp_path, overlap_um):
    for figures in measured(tmp_path, gains(simulated, 0.3), fields(overlap_um)).values():
        assert figures["seams"]["excess"] == pytest.approx(0.3, abs=0.12)
        assert figures["seams"]["step"] > figures["seams"]["beside"]


def test_fields_that_lie_apart(simulated, tmp_path):
    """Pixels between fields that nobody imaged are no step; what lies on either side of them is compared."""
    hole, boxes = np.ones(simulated.shape[1:], bool), fields(-0.72)
    for y0, x0, y1, x1 in boxes.values():
        hole[round(y0) : round(y1), round(x0) : round(x1)] = False
    clean, stepped = (measured(tmp_path / name, np.where(hole, 0, image), boxes) for name, image in (("a", simulated), ("b", gains(simulated, 0.4))))
    for name in clean:
        assert clean[name]["seams"]["excess"] < 0.2 < stepped[name]["seams"]["excess"]


def test_nothing_stained_is_not_measured(tmp_path):
    random = np.random.default_rng(3)
    flat = random.normal(1000, 20, (1, 400, 400)).astype(np.uint16)
    figures = measured(tmp_path, flat, {"a": [0, 0, 200, 400], "b": [200, 0, 400, 400]})["DAPI"]
    assert figures["focus"] == {"blur_um": None, "out_of_focus": None, "n_squares": 0}
    constant = measured(tmp_path / "b", np.full((1, 400, 400), 7, np.uint16), {"a": [0, 0, 200, 400], "b": [200, 0, 400, 400]})["DAPI"]
    assert constant["focus"]["n_squares"] == 0
    assert constant["seams"] == {"step": None, "beside": None, "excess": None, "border_um": 0.0}
