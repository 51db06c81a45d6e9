"""Raw folders of simulated tissue: files as the instruments write them, and a truth that fits the pixels and the transcripts."""

import gzip
import hashlib
import importlib.machinery
import importlib.util
import json
from pathlib import Path

import cv2
import geopandas as gpd
import h5py
import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
from PIL import Image

from istseg.artifacts import annotations, cells
from istseg.artifacts.annotations import Frame
from istseg.artifacts.sample import apply_affine
from istseg.errors import InputError
from istseg.simulate import work
from istseg.stages import simulate

ROOT = Path(__file__).parents[2]
DEFAULTS = {
    "platform": "merscope", "width_um": 100.0, "height_um": 90.0, "planes": 1, "stains": "Cellbound1;PolyT", "degraded_fraction": 0.0,
    "degraded_contour": 0.5, "transcripts_per_um2": 1.0, "empty_fraction": 0.1, "generation": "", "seed": 1,
}  # fmt: skip
SMALL = {"width_um": 40.0, "height_um": 36.0}


def make(out, **changes):
    simulate.run(out=out, **{**DEFAULTS, **changes})
    return out


@pytest.fixture(scope="module")
def merscope(tmp_path_factory):
    return make(tmp_path_factory.mktemp("merscope"), planes=3, degraded_fraction=0.4, degraded_contour=0.6)


@pytest.fixture(scope="module", params=["A", "B", "C"])
def cosmx(request, tmp_path_factory):
    return request.param, make(tmp_path_factory.mktemp("cosmx"), platform="cosmx", generation=request.param, width_um=150.0, height_um=70.0)


def truth_json(sample):
    return json.loads((sample / "truth" / "truth.json").read_text())


def mask(polygons, matrix, shape):
    """Label image of polygons in µm."""
    labels = np.zeros(shape, np.int32)
    for i, polygon in enumerate(polygons, 1):
        cv2.fillPoly(labels, [np.rint(apply_affine(matrix, np.asarray(polygon.exterior.coords)) - 0.5).astype(np.int32)], i)
    return labels


def digest(folder):
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()


def read_annotations(sample):
    facts = truth_json(sample)
    frame = Frame(np.array(facts["micron_to_pixel"]), *facts["shape_px"], facts["pixel_um"][0], 0.253)
    return annotations.read(sample / "truth" / "annotations.geojson", None, frame), frame


def check_annotations(sample):
    """What a person would have drawn: the true cells that can be seen, all of them inside the region."""
    found, frame = read_annotations(sample)
    truth = cells.read(sample / "truth" / "cells.parquet").set_index("cell_id")
    image = shapely.box(*apply_affine(np.linalg.inv(frame.micron_to_pixel), [[0, 0], [frame.width_px, frame.height_px]]).ravel())
    seen = shapely.area(shapely.intersection(truth.geometry.to_numpy(), image)) / truth.geometry.area
    assert set(found.ids) == set(truth.index[seen >= 0.5]) and not found.warnings
    drawn = truth.geometry.reindex(found.ids).to_numpy()
    whole = shapely.covered_by(drawn, image)
    assert np.allclose(shapely.area(found.polygons)[whole], shapely.area(drawn)[whole], rtol=0.01)
    assert shapely.area(shapely.intersection(found.polygons, drawn)) == pytest.approx(shapely.area(found.polygons), rel=0.01)
    assert 0.5 * image.area < found.region.area < image.area and shapely.intersects(found.region, shapely.centroid(found.polygons)).sum() > 10


# ------------------------------------------------------------------------------------------------ MERSCOPE


def test_truth_as_annotations(merscope):
    check_annotations(merscope)


def test_truth_as_annotations_of_cosmx(cosmx):
    check_annotations(cosmx[1])


def test_region_folder_is_that_of_the_instrument(merscope):
    raw = merscope / "raw"
    matrix = np.loadtxt(raw / "images" / "micron_to_mosaic_pixel_transform.csv")
    assert np.allclose(matrix, truth_json(merscope)["micron_to_pixel"])
    assert matrix[0, 0] != matrix[1, 1] and abs(matrix[0, 2]) > 500
    manifest = json.loads((raw / "images" / "manifest.json").read_text())
    names = {entry["file_name"] for entry in manifest["mosaic_files"]}
    assert names == {p.name for p in (raw / "images").glob("*.tif")} == {f"mosaic_{s}_z{z}.tif" for s in ("DAPI", "Cellbound1", "PolyT") for z in range(3)}
    for name in names:
        with tifffile.TiffFile(raw / "images" / name) as tiff:
            assert tiff.pages[0].shape == (manifest["mosaic_height_pixels"], manifest["mosaic_width_pixels"]) == (833, 926)
            assert tiff.pages[0].dtype == np.uint16
    table = pd.read_csv(raw / "detected_transcripts.csv")
    assert list(table.columns) == ["Unnamed: 0", "barcode_id", "global_x", "global_y", "global_z", "x", "y", "fov", "gene", "transcript_id", "cell_id"]
    assert not table["global_z"].is_monotonic_increasing and set(table["global_z"]) == {0, 1, 2}
    assert table["Unnamed: 0"].duplicated().any()
    xy = apply_affine(matrix, table[["global_x", "global_y"]].to_numpy())
    outside = (xy < 0).any(axis=1) | (xy[:, 0] >= 926) | (xy[:, 1] >= 833)
    assert 0 < outside.mean() < 0.2
    assert xy.min() > -60 and (xy.max(axis=0) < [926 + 60, 833 + 60]).all()


def test_truth_of_cells_and_nuclei_is_consistent(merscope):
    truth = cells.read(merscope / "truth" / "cells.parquet")
    nuclei = cells.read(merscope / "truth" / "nuclei.parquet")
    assert {"has_nucleus", "n_nuclei", "degraded", "cell_type"} <= set(truth.columns)
    assert len(truth) == truth_json(merscope)["counts"]["cells"] > 60
    assert truth.geometry.is_valid.all() and (truth.geometry.geom_type == "Polygon").all()
    assert np.allclose(truth["area_um2"], truth.geometry.area) and truth["area_um2"].between(10, 900).all()
    assert truth["cell_type"].nunique() >= 4
    assert (truth["n_nuclei"] == 0).any()
    per_cell = nuclei["parent_id"].value_counts().reindex(truth["cell_id"]).fillna(0).to_numpy()
    assert (per_cell == truth["n_nuclei"]).all() and (truth["has_nucleus"] == (truth["n_nuclei"] > 0)).all()
    parents = truth.set_index("cell_id").geometry.reindex(nuclei["parent_id"]).to_numpy()
    share = shapely.area(shapely.intersection(nuclei.geometry.to_numpy(), parents)) / nuclei.geometry.area
    assert share.min() > 0.98
    overlap = (
        sum(
            shapely.area(shapely.intersection(truth.geometry.iloc[i], truth.geometry.iloc[j]))
            for i, j in zip(*truth.sindex.query(truth.geometry, predicate="overlaps"), strict=True)
        )
        / 2
    )
    assert overlap < 0.005 * truth["area_um2"].sum()


def test_transcripts_come_from_their_cells(merscope):
    raw = pd.read_csv(merscope / "raw" / "detected_transcripts.csv")
    truth = pd.read_parquet(merscope / "truth" / "transcripts.parquet")
    assert (truth["transcript_id"] == np.arange(len(raw))).all()
    control = raw["gene"].str.startswith("Blank-").to_numpy()
    assert control.any() and truth["cell_id"][control].isna().all()
    shapes = cells.read(merscope / "truth" / "cells.parquet").set_index("cell_id")
    known = truth["cell_id"].notna().to_numpy()
    assert set(truth["cell_id"][known]) <= set(shapes.index)
    polygons = shapes.geometry.reindex(truth["cell_id"][known]).to_numpy()
    inside = shapely.contains_xy(polygons, raw["global_x"][known], raw["global_y"][known])
    assert 0.88 < inside.mean() < 0.99  # some diffuse over the border
    per_area = truth["cell_id"].value_counts().reindex(shapes.index).fillna(0) / shapes["area_um2"]
    assert 0.6 < per_area.mean() < 1.6
    markers = pd.crosstab(shapes["cell_type"].reindex(truth["cell_id"][known]).to_numpy(), raw["gene"][known].to_numpy(), normalize="index")
    for kind, gene in (("tumour", "EPCAM"), ("t_cell", "CD3E"), ("fibroblast", "COL1A1")):
        if kind in markers.index:
            assert markers.loc[kind, gene] > 4 * markers.drop(kind)[gene].max()


def test_stains_show_the_cells(merscope):
    matrix = np.asarray(truth_json(merscope)["micron_to_pixel"])
    read = lambda stain: tifffile.imread(merscope / "raw" / "images" / f"mosaic_{stain}_z1.tif").astype(float)  # noqa: E731
    dapi, ring, cytoplasm = read("DAPI"), read("Cellbound1"), read("PolyT")
    truth = cells.read(merscope / "truth" / "cells.parquet")
    nuclei = mask(cells.read(merscope / "truth" / "nuclei.parquet").geometry, matrix, dapi.shape) > 0
    labels = mask(truth.geometry, matrix, dapi.shape)
    assert np.median(dapi[nuclei]) > 3 * np.median(dapi[(labels > 0) & ~nuclei])
    assert np.median(cytoplasm[(labels > 0) & ~nuclei]) > 1.4 * np.median(cytoplasm[labels == 0])
    rim, core = contours(truth[~truth["degraded"]], matrix, ring.shape)
    assert np.median(ring[rim]) > 1.5 * np.median(ring[core])


def contours(shapes, matrix, shape):
    """Pixels within 0.4 µm of the contours of cells, and pixels well inside of them."""
    rim = mask([p.buffer(0.4) for p in shapes.geometry], matrix, shape) > 0
    rim &= mask([p.buffer(-0.4) for p in shapes.geometry if p.buffer(-0.4).geom_type == "Polygon" and p.area > 20], matrix, shape) == 0
    core = mask([p.buffer(-1.2) for p in shapes.geometry if p.buffer(-1.2).geom_type == "Polygon" and p.area > 20], matrix, shape) > 0
    return rim, core


def test_degraded_cells_lose_that_share_of_their_contour(merscope):
    matrix = np.asarray(truth_json(merscope)["micron_to_pixel"])
    ring = tifffile.imread(merscope / "raw" / "images" / "mosaic_Cellbound1_z1.tif").astype(float)
    truth = cells.read(merscope / "truth" / "cells.parquet")
    assert 0.2 < truth["degraded"].mean() < 0.6

    def visible(polygon):
        """Share of the contour with a ridge: brighter than the cell's inside."""
        steps = np.arange(0, polygon.length, 0.3)
        points = apply_affine(matrix, shapely.get_coordinates(shapely.line_interpolate_point(polygon.exterior, steps)))
        window = cv2.dilate(ring.astype(np.float32), np.ones((7, 7)))
        x, y = (np.clip(points[:, axis].astype(int), 0, ring.shape[1 - axis] - 1) for axis in (0, 1))
        inside = np.median(ring[mask([polygon.buffer(-1.2)], matrix, ring.shape) > 0])
        return (window[y, x] > 1.45 * inside).mean()

    large = truth[truth["area_um2"] > 60]
    shares = np.array([visible(p) for p in large.geometry])
    broken = large["degraded"].to_numpy()
    assert np.median(shares[~broken]) > np.median(shares[broken]) + 0.2
    assert 0.2 < np.median(shares[broken]) < 0.65


def test_the_middle_plane_is_sharpest(merscope):
    for stain in ("DAPI", "Cellbound1"):
        planes = [tifffile.imread(merscope / "raw" / "images" / f"mosaic_{stain}_z{z}.tif").astype(np.float32) for z in range(3)]
        sharpness = [cv2.Laplacian(cv2.GaussianBlur(p, (0, 0), 1.5), cv2.CV_32F).var() / p.mean() ** 2 for p in planes]
        assert sharpness[1] > 2 * max(sharpness[0], sharpness[2])


def test_vendor_cells_are_imperfect_and_fit_their_tables(merscope):
    raw = merscope / "raw"
    boundaries = gpd.read_parquet(raw / "cell_boundaries.parquet")
    assert list(boundaries.columns) == ["ID", "EntityID", "ZIndex", "Geometry", "Type", "ZLevel", "Name", "ParentID", "ParentType"]
    assert boundaries.crs is None and boundaries["ID"].is_unique
    ids = boundaries["EntityID"].unique()
    assert (boundaries["EntityID"].value_counts() == 3).all() and (ids > 2**53).all()
    transcripts = pd.read_csv(raw / "detected_transcripts.csv")
    assert set(transcripts["cell_id"]) <= {-1, *ids} and (transcripts["cell_id"] == -1).any()
    counts = pd.read_csv(raw / "cell_by_gene.csv", dtype={"cell": str}).set_index("cell")
    found = transcripts[transcripts["cell_id"] != -1]
    expected = pd.crosstab(found["cell_id"].astype(str), found["gene"]).reindex(index=counts.index, columns=counts.columns, fill_value=0)
    assert (counts == expected).all(axis=None)
    metadata = pd.read_csv(raw / "cell_metadata.csv", dtype={"EntityID": str}).set_index("EntityID")
    assert (metadata["transcript_count"] == counts.sum(axis=1)).all()
    assert set(metadata.index) == set(ids.astype(str))
    truth = cells.read(merscope / "truth" / "cells.parquet")
    first = boundaries[boundaries["ZIndex"] == 0]
    hits = truth.sindex.query(first.geometry.representative_point(), predicate="within")
    best = [shapely.area(a & b) / shapely.area(a | b) for a, b in zip(first.geometry.iloc[hits[0]], truth.geometry.iloc[hits[1]], strict=True)]
    assert 0.4 < np.mean(best) < 0.95
    # The instrument misses some cells that have a nucleus, also away from the edge.
    edge = shapely.box(*truth.total_bounds).buffer(-8)
    nucleated = truth[truth["has_nucleus"] & truth.geometry.within(edge)]
    found = nucleated.sindex.query(first.geometry, predicate="intersects")[1]
    assert 0.8 < len(set(hits[1]) & set(nucleated.index)) / len(nucleated) < 1
    assert len(set(found)) > 0.8 * len(nucleated)


def test_older_generation(tmp_path):
    raw = make(tmp_path, **SMALL, generation="hdf5", planes=7, stains="Cellbound1;Cellbound2;PolyT") / "raw"
    assert not (raw / "cell_boundaries.parquet").exists()
    header = (raw / "detected_transcripts.csv").read_text().splitlines()[0]
    assert header == ",barcode_id,global_x,global_y,global_z,x,y,fov,gene,transcript_id"
    assert (raw / "cell_metadata.csv").read_text().splitlines()[0] == ",fov,volume,center_x,center_y,min_x,max_x,min_y,max_y"
    names = [line.split(",")[0] for line in (raw / "cell_by_gene.csv").read_text().splitlines()[1:]]
    assert len(set(names)) == len(names) > 5 and all(36 <= len(n) <= 39 for n in names)
    empty = 0
    with h5py.File(raw / "cell_boundaries" / "feature_data_0.hdf5") as file:
        assert set(file["featuredata"]) == set(names)
        for cell in file["featuredata"].values():
            assert cell["z_coordinates"].shape == (7,)
            planes = [cell[f"zIndex_{z}"] for z in range(7)]
            empty += sum(len(p) == 0 for p in planes)
            outline = cell["zIndex_3/p_0/coordinates"]
            assert outline.shape[0] == 1 and outline.shape[2] == 2
    assert empty


# ------------------------------------------------------------------------------------------------ CosMx


def cosmx_table(raw, suffix):
    path = next(raw.glob(f"*{suffix}*"))
    assert path.name.endswith(".gz") == (suffix in path.name and path.suffix == ".gz")
    return pd.read_csv(path)


def test_slide_folder_is_that_of_the_instrument(cosmx):
    generation, sample = cosmx
    raw = sample / "raw"
    gz = ".gz" if generation == "B" else ""
    expected = {f"Sim1{s}.csv{gz}" for s in ("_tx_file", "_exprMat_file", "_metadata_file", "_fov_positions_file")} | (
        {"Sim1-polygons.csv"} if generation == "C" else set()
    )
    assert {p.name for p in raw.iterdir() if p.is_file()} == expected
    if generation == "A":
        pictures = sorted((raw / "CellComposite").iterdir())
        assert [p.name for p in pictures] == ["CellComposite_F001.jpg"] or len(pictures) == truth_json(sample)["fovs"]
        assert Image.open(pictures[0]).mode == "RGB"
    else:
        images = sorted((raw / "CellStatsDir" / "Morphology2D").glob("*.TIF"))
        assert len(images) == truth_json(sample)["fovs"]
        with tifffile.TiffFile(images[0]) as tiff:
            assert len(tiff.pages) == 5 and tiff.pages[0].dtype == np.uint16
            about = json.loads(tiff.pages[0].description)
            assert [r["BiologicalTarget"] for r in about["MorphologyKit"]["MorphologyReagents"]] == ["Membrane", "rRNA", "PanCK", "CD45", "DNA"]
            assert len(about["ChannelOrder"]) == 5
    config = next((raw / "RunSummary").glob("*_ExptConfig.txt")).read_text()
    assert f"ImPixel_nm: {180.0 if generation == 'A' else 120.2809:.4f}" in config
    columns = {
        "A": ["fov", "x_global_px", "y_global_px"],
        "B": ["Slide", "X_mm", "Y_mm", "Z_mm", "ZOffset_mm", "ROI", "FOV", "Order"],
        "C": ["FOV", "x_global_px", "y_global_px", "x_global_mm", "y_global_mm"],
    }
    assert list(cosmx_table(raw, "_fov_positions_file").columns) == columns[generation]


def test_cosmx_label_below_a_transcript_is_its_cell(cosmx):
    generation, sample = cosmx
    raw = sample / "raw"
    height, width = truth_json(sample)["frame_px"]
    for fov, table in cosmx_table(raw, "_tx_file").groupby("fov"):
        path = raw / "CellLabels" / f"CellLabels_F{fov:03d}.tif" if generation == "A" else raw / "CellStatsDir" / f"FOV{fov:05d}" / f"CellLabels_F{fov:05d}.tif"
        labels = tifffile.imread(path)
        assert labels.shape == (height, width)
        row = height - table["y_local_px"] if generation == "A" else table["y_local_px"]
        y, x = np.floor(row).astype(int).to_numpy(), np.floor(table["x_local_px"]).astype(int).to_numpy()
        inside = (y >= 0) & (x >= 0) & (y < height) & (x < width)
        assert 0.97 < inside.mean() < 1 or fov > 1
        assert (labels[y[inside], x[inside]] == table["cell_ID"].to_numpy()[inside]).mean() > 0.999
        assert (labels[::-1][y[inside], x[inside]] == table["cell_ID"].to_numpy()[inside]).mean() < 0.7


def test_cosmx_global_coordinates(cosmx):
    generation, sample = cosmx
    table = cosmx_table(sample / "raw", "_tx_file")
    positions = cosmx_table(sample / "raw", "_fov_positions_file").rename(columns=str.lower).set_index("fov")
    x, y = (positions[c] / 0.000120280945 for c in ("x_mm", "y_mm")) if generation == "B" else (positions["x_global_px"], positions["y_global_px"])
    sign = 1 if generation == "A" else -1
    assert np.allclose(table["x_global_px"], table["fov"].map(x) + table["x_local_px"], atol=1e-3)
    assert np.allclose(table["y_global_px"], table["fov"].map(y) + sign * table["y_local_px"], atol=1e-3)


def test_cosmx_truth_lies_under_the_transcripts(cosmx):
    """Micron frame: mosaic pixel × pixel size, y down from the highest field's upper edge."""
    generation, sample = cosmx
    pixel = truth_json(sample)["pixel_um"][0]
    height = truth_json(sample)["frame_px"][0]
    table = cosmx_table(sample / "raw", "_tx_file")
    positions = cosmx_table(sample / "raw", "_fov_positions_file").rename(columns=str.lower)
    x0, top = (
        (positions["x_mm"].min() / 0.000120280945, positions["y_mm"].max() / 0.000120280945)
        if generation == "B"
        else (positions["x_global_px"].min(), positions["y_global_px"].max())
    )
    top += height if generation == "A" else 0
    x, y = (table["x_global_px"] - x0) * pixel, (top - table["y_global_px"]) * pixel
    truth = pd.read_parquet(sample / "truth" / "transcripts.parquet")
    shapes = cells.read(sample / "truth" / "cells.parquet").set_index("cell_id")
    known = truth["cell_id"].notna().to_numpy()
    assert len(truth) == len(table)
    assert shapely.contains_xy(shapes.geometry.reindex(truth["cell_id"][known]).to_numpy(), x[known], y[known]).mean() > 0.88


def test_cosmx_tables_count_the_same_cells(cosmx):
    generation, sample = cosmx
    raw = sample / "raw"
    tx, counts, metadata = (cosmx_table(raw, f"_{kind}_file") for kind in ("tx", "exprMat", "metadata"))
    genes = [c for c in counts.columns if c not in ("fov", "cell_ID", "cell")]
    assert any(g.startswith("Neg") for g in genes)
    expected = pd.crosstab([tx["fov"], tx["cell_ID"]], tx["target"]).reindex(columns=genes, fill_value=0)
    observed = counts.set_index(["fov", "cell_ID"])[genes]
    assert (observed.loc[expected.index] == expected).all(axis=None) and observed.to_numpy().sum() == len(tx)
    assert (metadata["cell_ID"] > 0).all() and len(metadata) == truth_json(sample)["counts"]["vendor_cells"]
    if generation == "C":
        outlines = cosmx_table(raw, "-polygons")
        ring = outlines[(outlines["fov"] == 1) & (outlines["cellID"] == 1)][["x_local_px", "y_local_px"]].to_numpy()
        assert not np.array_equal(ring[0], ring[-1])
        area = metadata[(metadata["fov"] == 1) & (metadata["cell_ID"] == 1)]["Area"].iloc[0]
        assert shapely.Polygon(ring).area == pytest.approx(area, rel=0.15)


def test_generation_b_is_gzipped_without_a_time(tmp_path):
    raw = make(tmp_path, platform="cosmx", generation="B", **SMALL) / "raw"
    packed = (raw / "Sim1_tx_file.csv.gz").read_bytes()
    assert packed[4:8] == b"\0\0\0\0" and gzip.decompress(packed).startswith(b"fov,cell_ID,cell,")


# ------------------------------------------------------------------------------------------------ both


def test_converts(merscope, cosmx, tmp_path):
    from istseg.artifacts.sample import Sample
    from istseg.stages import convert

    options = {"nucleus_stain": None, "membrane_stains": None, "z_planes": "focus", "fovs": None, "pixel_size_um": None}
    for name, sample in (("merscope", merscope), ("cosmx", cosmx[1])):
        convert.run(raw=sample / "raw", sample=name, platform=name, out=tmp_path / name, **options)
        found = Sample.read(tmp_path / name / "sample.json")
        facts = truth_json(sample)
        assert np.allclose(found.micron_to_pixel, facts["micron_to_pixel"])
        assert found.transcripts["total"] == facts["counts"]["transcripts"]
        # Convert may drop invalid or tiny shapes of the instrument.
        assert found.n_vendor_cells == pytest.approx(facts["counts"]["vendor_cells"], rel=0.05)


@pytest.mark.parametrize("platform", ["merscope", "cosmx"])
def test_same_seed_same_bytes(platform, tmp_path):
    first, again, other = (make(tmp_path / name, platform=platform, **SMALL, seed=seed) for name, seed in (("a", 4), ("b", 4), ("c", 5)))
    assert digest(first) == digest(again) != digest(other)


@pytest.mark.parametrize(
    "changes",
    [
        {"stains": "none"},
        {"transcripts_per_um2": 0.0},
        {"empty_fraction": 0.9},
        {"platform": "cosmx", "stains": "none", "generation": "C"},
        {"platform": "cosmx", "empty_fraction": 0.9},
    ],
)
def test_little_or_nothing_in_the_sample(changes, tmp_path):
    sample = make(tmp_path, **SMALL, **changes)
    truth = cells.read(sample / "truth" / "cells.parquet")
    transcripts = pd.read_parquet(sample / "truth" / "transcripts.parquet")
    counts = truth_json(sample)["counts"]
    assert len(truth) == counts["cells"] and len(transcripts) == counts["transcripts"]
    assert (len(transcripts) == 0) == (changes.get("transcripts_per_um2") == 0.0)
    if changes.get("empty_fraction"):
        assert len(truth) < 5


def test_empty_fraction_is_empty(tmp_path):
    sample = make(tmp_path, width_um=300.0, height_um=250.0, stains="none", transcripts_per_um2=0.0, empty_fraction=0.5)
    truth = cells.read(sample / "truth" / "cells.parquet")
    covered = truth["area_um2"].sum() / (300 * 250)
    assert 0.2 < covered < 0.55
    corner = shapely.box(*(np.linalg.inv(np.asarray(truth_json(sample)["micron_to_pixel"])) @ [300 * 9.2594 - 600, 250 * 9.2594 - 600, 1])[:2], 1e9, 1e9)
    assert not truth.geometry.intersects(corner).any()


def test_all_problems_at_once_and_nothing_written(tmp_path):
    with pytest.raises(InputError) as error:
        make(tmp_path / "x", platform="cosmx", generation="D", stains="A;A;../evil", width_um=200_000.0)
    assert len(error.value.problems) == 4 and not (tmp_path / "x").exists()
    with pytest.raises(InputError, match="RGB"):
        make(tmp_path / "x", platform="cosmx", generation="A", stains="Membrane;PanCK;CD45")
    with pytest.raises(InputError, match="named twice"):
        make(tmp_path / "x", stains="DAPI")


@pytest.mark.parametrize("name", ["raw", "truth"])
def test_folders_that_are_there_are_not_replaced(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
    with pytest.raises(InputError) as error:
        make(tmp_path, **SMALL, generation="D")
    (first, second) = error.value.problems
    assert "--generation D" in first and second == f"{tmp_path / name}: is there already; give another --out, or move it away."
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == [name, f"{name}/notes.txt"]


def test_strips_change_no_pixel_and_no_row(tmp_path, monkeypatch):
    from istseg.simulate import merscope as writer

    monkeypatch.setattr(work.os, "sched_getaffinity", lambda pid: {0})
    whole = make(tmp_path / "whole", width_um=130.0, height_um=40.0)
    monkeypatch.setattr(writer, "_ONE_STRIP", 1)
    monkeypatch.setattr(writer, "_STRIP", 1)
    parts = make(tmp_path / "parts", width_um=130.0, height_um=40.0)
    for path in (whole / "raw" / "images").glob("*.tif"):
        assert (tifffile.imread(path) == tifffile.imread(parts / "raw" / "images" / path.name)).all()
    for name, key in (("cells", "cell_id"), ("nuclei", "cell_id")):
        a, b = (cells.read(s / "truth" / f"{name}.parquet").sort_values(key).reset_index(drop=True) for s in (whole, parts))
        pd.testing.assert_frame_equal(pd.DataFrame(a), pd.DataFrame(b))
    rows = [sorted((s / "raw" / "detected_transcripts.csv").read_text().splitlines()) for s in (whole, parts)]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_processes_change_nothing(tmp_path, monkeypatch):
    from istseg.simulate import merscope as writer

    monkeypatch.setattr(writer, "_ONE_STRIP", 1)
    monkeypatch.setattr(writer, "_STRIP", 1)
    made = []
    for processors in ({0, 1}, {0}):
        monkeypatch.setattr(work.os, "sched_getaffinity", lambda pid, found=processors: found)
        made.append(digest(make(tmp_path / str(len(processors)), width_um=130.0, height_um=40.0)))
    assert made[0] == made[1]


@pytest.mark.slow
def test_the_demo_can_be_made_again(tmp_path):
    loader = importlib.machinery.SourceFileLoader("make_demo", str(ROOT / "bin" / "make_demo"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("make_demo", loader))
    loader.exec_module(module)
    module.make(tmp_path / "demo")
    kept = ROOT / "assets" / "demo"
    names = sorted(str(p.relative_to(kept)) for p in kept.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(tmp_path / "demo")) for p in (tmp_path / "demo").rglob("*") if p.is_file())
    for name in names:
        a, b = kept / name, tmp_path / "demo" / name
        if name.endswith(".tif"):
            assert (tifffile.imread(a) == tifffile.imread(b)).all(), name
        elif name.endswith(".jpg"):
            assert (np.asarray(Image.open(a)) == np.asarray(Image.open(b))).all(), name
        elif name.endswith(".parquet"):
            pd.testing.assert_frame_equal(pd.read_parquet(a), pd.read_parquet(b))
        else:
            assert a.read_bytes() == b.read_bytes(), name
    assert sum(p.stat().st_size for p in kept.rglob("*") if p.is_file()) < 8e6
    sheet = pd.read_csv(kept / "samplesheet.csv")
    for place in sheet["path"]:
        truth = cells.read(kept / Path(place).parent / "truth" / "cells.parquet")
        assert (kept / place).is_dir() and len(truth) >= 100 and truth["degraded"].any() and not truth["has_nucleus"].all()
