"""Cells → export → programs that need an environment of their own → the same cells and counts.

Their environments lie below `ISTSEG_PEERS` (docs/exports.md tells how to make them); what is not there is left out with a word.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from PIL import Image

import result_fixtures as fx
from export_fixtures import CENTRES, iou, peers, python
from istseg.report import palette

QUPATH = """
import java.nio.file.Path;
import qupath.lib.io.PathIO;

public class Read {
    public static void main(String[] arguments) throws Exception {
        for (var cell : PathIO.readObjects(Path.of(arguments[0]))) {
            var measured = cell.getMeasurementList();
            System.out.println(String.join("\\t", cell.getID().toString(), cell.getName(), String.valueOf(cell.isCell()), cell.getPathClass().toString(),
                Integer.toHexString(cell.getPathClass().getColor()), String.valueOf(cell.getROI().getArea()), String.valueOf(measured.get("n_transcripts")),
                String.valueOf(measured.size())));
        }
    }
}
"""


def test_qupath_reads_the_geojson(exported, tmp_path):
    """QuPath's own reader of objects, compiled from its source without its window."""
    qupath = peers("qupath", "lib").parent
    (tmp_path / "Read.java").write_text(QUPATH)
    path = exported.root / "out" / "s1.geojson"
    done = subprocess.run(["java", "-cp", f"{qupath}/lib/*:{qupath}/classes", tmp_path / "Read.java", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [r[0] for r in rows] == [f["id"] for f in json.loads(path.read_text())["features"]], "ids are kept"
    assert [r[1] for r in rows] == exported.table.obs_names.tolist() and {r[2] for r in rows} == {"true"}
    assert [r[3] for r in rows] == exported.table.obs["qc_flag"].tolist() and [r[4] for r in rows] == [
        f"ff{palette.FLAGS[f][1:].lower()}" for f in exported.table.obs["qc_flag"]
    ]
    np.testing.assert_allclose([float(r[5]) * fx.PIXEL_UM**2 for r in rows], exported.table.obs["area_um2"], rtol=1e-3)
    assert [float(r[6]) for r in rows] == exported.table.obs["n_transcripts"].tolist() and all(int(r[7]) > 10 for r in rows)


def test_vpt_counts_the_same(exported, tmp_path):
    """The real `vpt` reads boundaries and transcripts and makes its own table of counts and of cells."""
    vpt, folder = peers("vpt") / "vpt", exported.root / "out" / "vizgen"
    boundaries = ["--input-boundaries", folder / "cell_boundaries.parquet"]
    counting = ["partition-transcripts", *boundaries, "--input-transcripts", folder / "detected_transcripts.csv", "--output-entity-by-gene", tmp_path / "g.csv"]
    describing = ["derive-entity-metadata", *boundaries, "--input-entity-by-gene", folder / "cell_by_gene.csv", "--output-metadata", tmp_path / "m.csv"]
    for arguments in (counting, describing):
        done = subprocess.run([vpt, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    theirs = pd.read_csv(tmp_path / "g.csv", index_col=0)
    ours = pd.read_csv(folder / "cell_by_gene.csv", index_col=0)
    assert theirs.index.tolist() == ours.index.tolist()
    # vpt asks the polygons, we ask the label image: single molecules at outlines differ.
    assert (theirs[ours.columns] - ours).abs().to_numpy().sum() <= 0.05 * ours.to_numpy().sum()
    described, written = pd.read_csv(tmp_path / "m.csv"), pd.read_csv(folder / "cell_metadata.csv")
    for column in ("EntityID", "volume", "center_x", "center_y", "min_x", "max_y", "anisotropy", "transcript_count", "perimeter_area_ratio", "solidity"):
        np.testing.assert_allclose(described[column], written[column], rtol=1e-3, err_msg=column)


SQUIDPY = """
import json, sys, anndata, squidpy as sq
table = anndata.read_h5ad(sys.argv[1])
sq.gr.spatial_neighbors(table, coord_type="generic", delaunay=True)
cosmx = sq.read.nanostring(sys.argv[2], counts_file="s1_exprMat_file.csv", meta_file="s1_metadata_file.csv", fov_file="s1_fov_positions_file.csv")
vizgen = sq.read.vizgen(sys.argv[3], counts_file="cell_by_gene.csv", meta_file="cell_metadata.csv")
print(json.dumps([table.obsp["spatial_connectivities"].nnz, cosmx.shape, float(cosmx.X.sum()), vizgen.n_obs, float(vizgen.X.sum())]))
"""


def test_squidpy_reads_table_cosmx_and_vizgen(exported):
    out = exported.root / "out"
    edges, shape, total, n, of_genes = python(SQUIDPY, "peers", exported.root / "assessed" / "counts.h5ad", out / "cosmx", out / "vizgen")
    assert edges > 2 * len(CENTRES) and shape == list(exported.everything.shape) and total == exported.everything.to_numpy().sum()
    assert n == len(CENTRES) and of_genes == exported.everything[fx.GENES].to_numpy().sum()


def in_r(packages: tuple[str, ...], script: str, where: Path, *arguments: object) -> str:
    """What an R script prints; packages below `ISTSEG_PEERS`/R are found too."""
    rscript, needed = shutil.which("Rscript"), ", ".join(f"'{name}'" for name in packages)
    env = {**os.environ, "R_LIBS": str(Path(os.environ.get("ISTSEG_PEERS", "/nowhere")) / "R")}
    if not rscript or subprocess.run([rscript, "-e", f"quit(status = !all(sapply(c({needed}), requireNamespace)))"], env=env, capture_output=True).returncode:
        pytest.skip(f"no R with {' and '.join(packages)} (docs/exports.md)")
    (where / "read.R").write_text(script)
    done = subprocess.run([rscript, where / "read.R", *map(str, arguments)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


SEURAT = r"""
suppressMessages(library(Seurat))
folder <- commandArgs(trailingOnly = TRUE)
save <- function(counts, centroids, name) {
    write.csv(as.matrix(counts), file.path(folder[3], paste0(name, ".csv")))
    write.csv(centroids, file.path(folder[3], paste0(name, "_centroids.csv")), row.names = FALSE)
}
nano <- ReadNanostring(folder[1], type = c("centroids", "segmentations"))
save(nano$matrix, nano$centroids, "cosmx")
write.csv(nano$segmentations, file.path(folder[3], "cosmx_outlines.csv"), row.names = FALSE)
object <- LoadNanostring(folder[1], fov = "s1")
vizgen <- ReadVizgen(folder[2], type = "centroids", z = 0L)
save(vizgen$transcripts, vizgen$centroids, "vizgen")
cat(ncol(object), length(Cells(object[["s1"]])))
"""


def test_seurat_reads_cosmx_and_vizgen(exported, tmp_path):
    out = exported.root / "out"
    said = in_r(("Seurat", "data.table"), SEURAT, tmp_path, out / "cosmx", out / "vizgen", tmp_path)
    counted = exported.everything.iloc[:, 1:]  # its reader leaves out the first gene of every CosMx matrix, and cells without counts
    names = [f"{i + 1}_1" for i in range(len(exported.everything))]
    held = counted.to_numpy().sum(1) > 0
    cosmx = pd.read_csv(tmp_path / "cosmx.csv", index_col=0, keep_default_na=False).T
    assert [str(n).removeprefix("X") for n in cosmx.index] == [n for n, there in zip(names, held, strict=True) if there]
    assert (cosmx.to_numpy() == counted[held].to_numpy()).all() and cosmx.columns.tolist() == counted.columns.tolist()
    assert [int(n) for n in said.split()[-2:]] == [held.sum()] * 2
    pixel, top = 0.120280945, exported.sample.height_px * fx.PIXEL_UM

    def um(xy: np.ndarray) -> np.ndarray:
        return np.column_stack([xy[:, 0] * pixel, top - xy[:, 1] * pixel]) + fx.ORIGIN_UM

    centres = pd.read_csv(tmp_path / "cosmx_centroids.csv")
    assert centres["cell"].tolist() == names
    expected = exported.cells.set_index("cell_id").loc[exported.everything.index, ["centroid_x_um", "centroid_y_um"]].to_numpy()
    np.testing.assert_allclose(um(centres[["x", "y"]].to_numpy()), expected, atol=0.1)
    outlines = pd.read_csv(tmp_path / "cosmx_outlines.csv").groupby("cell", sort=False)
    polygons = {name: shapely.Polygon(um(ring[["x", "y"]].to_numpy())) for name, ring in outlines}
    assert (iou([polygons[n] for n in names], exported.cells.geometry) > 0.99).all()
    vizgen = pd.read_csv(tmp_path / "vizgen.csv", index_col=0, keep_default_na=False, dtype=str).T
    written = pd.read_csv(out / "vizgen" / "cell_by_gene.csv", dtype=str).set_index("cell")
    assert [n.removeprefix("X") for n in vizgen.index] == written.index.tolist()
    assert (vizgen[fx.GENES].astype(float).to_numpy() == exported.everything[fx.GENES].to_numpy()).all()
    np.testing.assert_allclose(pd.read_csv(tmp_path / "vizgen_centroids.csv")[["x", "y"]], expected, atol=0.1)


ANNDATAR = r"""
table <- anndataR::read_h5ad(commandArgs(trailingOnly = TRUE)[1])
counts <- as.matrix(table$X)
colnames(counts) <- table$var_names
write.csv(cbind(table$obs, counts), commandArgs(trailingOnly = TRUE)[2], row.names = table$obs_names)
cat(sapply(table$obs, function(column) class(column)[1]), "\n")
cat(levels(table$obs$qc_flag), "\n", dim(table$obsm$spatial), dim(table$obsm$controls), names(table$uns$istseg), "\n")
"""


def test_anndatar_reads_the_table(exported, tmp_path):
    said = in_r(("anndataR", "rhdf5"), ANNDATAR, tmp_path, exported.root / "assessed" / "counts.h5ad", tmp_path / "read.csv").splitlines()
    found, table = pd.read_csv(tmp_path / "read.csv", index_col=0, keep_default_na=False), exported.table
    assert found.index.tolist() == table.obs_names.tolist() and found.columns.tolist() == [*table.obs.columns, *table.var_names]
    kinds = dict(zip(table.obs.columns, said[0].split(), strict=True))
    assert {kinds[c] for c in ("qc_flag", "qc_reason", "sample")} == {"factor"} and {kinds[c] for c in ("is_spurious", "is_inconsistent")} == {"logical"}
    assert {kinds["area_um2"], kinds["n_transcripts"]} == {"numeric", "integer"}
    assert (found[table.var_names].to_numpy() == table.X.toarray()).all() and found["qc_flag"].tolist() == table.obs["qc_flag"].tolist()
    assert said[1].split() == table.obs["qc_flag"].cat.categories.tolist()
    assert said[2].split()[:4] == [str(n) for name in ("spatial", "controls") for n in table.obsm[name].shape]
    assert set(said[2].split()[4:]) == set(table.uns["istseg"])


NAPARI = """
import json, os, sys, time
os.environ["QT_QPA_PLATFORM"] = "offscreen"
import spatialdata
from napari_spatialdata import Interactive
from qtpy.QtWidgets import QApplication
sdata = spatialdata.read_zarr(sys.argv[1])
shown = Interactive(sdata, headless=True)
for n, name in enumerate(("stains", "istseg_labels", "istseg_cells"), 1):
    shown.add_element(element=name, element_coordinate_system="global")
    end = time.monotonic() + 60
    while len(shown._viewer.layers) < n and time.monotonic() < end:  # layers are made by threads
        QApplication.processEvents()
        time.sleep(0.05)
print(json.dumps({layer.name: type(layer).__name__ for layer in shown._viewer.layers}), flush=True)
os._exit(0)
"""


def test_napari_spatialdata_shows_image_labels_and_cells(exported):
    layers = python(NAPARI, "peers", exported.root / "out" / "s1.zarr")
    assert sorted(layers.values()) == ["Image", "Labels", "Shapes"], layers


def test_view_opens_napari_with_outlines_in_the_colours_of_their_flags(exported, tmp_path):
    """The command itself, on a screen that nobody sees; the colours are looked for in the picture of its window."""
    xvfb = shutil.which("xvfb-run")
    if not xvfb:
        pytest.skip("no xvfb-run (Debian, Ubuntu: apt-get install xvfb xauth)")
    picture = tmp_path / "view.png"
    napari = peers("peers") / "python"
    istseg = [Path(sys.executable).with_name("istseg"), "view", exported.root / "out" / "s1.zarr", "--python", napari, "--picture", picture]
    done = subprocess.run([xvfb, "-a", "-s", "-screen 0 1500x1000x24", *map(str, istseg)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3).astype(int)
    for flag in exported.table.obs["qc_flag"].unique():
        colour = list(bytes.fromhex(palette.FLAGS[flag][1:]))
        assert (np.abs(seen - colour).max(axis=1) < 12).sum() > 50, flag
