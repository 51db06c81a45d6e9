"""The parts of the report: verdicts, figures, numbers, pictures, methods text."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import report_fixtures as made
from istseg.errors import InputError
from istseg.report import checks, figures, methods, numbers, pictures, viewer
from istseg.report.collect import collect
from istseg.report.summary import derive, summarise

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    made.write_whole(folder / "results", "a", 0, n_cells=3000, n_umap=900, pictures=False)
    made.write_whole(folder / "results", "b", 1, ("istseg", "teacher"), n_cells=2000, n_umap=100, pictures=False)
    made.write_training(folder / "results", "a", ["a"], accepted=False)
    collection = collect(made.write_run(folder, ["a", "b"]), folder / "results")
    return collection, summarise(collection, checks.limits())


@pytest.mark.parametrize(
    ("good", "look", "fail", "expected"),
    [
        ("at_least", 0.5, 0.2, {0.5: "pass", 0.49: "look", 0.2: "look", 0.19: "fail", None: "not measured"}),
        ("at_most", 0.1, 0.3, {0.1: "pass", 0.11: "look", 0.3: "look", 0.31: "fail", 0: "pass"}),
        ("between", [0.8, 1.2], [0.5, 2.0], {0.8: "pass", 1.2: "pass", 0.79: "look", 2.0: "look", 2.01: "fail", 0.4: "fail"}),
    ],
)
def test_judge(good, look, fail, expected):
    for value, verdict in expected.items():
        assert checks.judge(value, {"good": good, "look": look, "fail": fail}) == verdict


def test_worst():
    assert checks.worst(["pass", "not measured", "look", "pass"]) == "look"
    assert checks.worst(["look", "fail"]) == "fail"
    assert checks.worst(["not measured"]) == checks.worst([]) == "pass"


def test_the_shipped_limits_are_whole_and_are_those_of_the_repository():
    definitions = checks.limits()
    assert set(definitions) == set(checks._VALUES)
    assert len(definitions) >= 18
    for name, definition in definitions.items():
        assert set(definition) == checks._KEYS, name
        assert len(definition["meaning"]) > 40 and len(definition["todo"]) > 20, name
    assert yaml.safe_load((ROOT / "assets" / "qc_thresholds.yaml").read_text()) == definitions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spurios_rate: {look: 0.1}", "there is no check 'spurios_rate'"),
        ("spurious_rate: {limit: 0.1}", "unknown fields \\['limit'\\]"),
        ("spurious_rate: {look: 0.5}", "stricter than `look`"),
        ("seam_area: {look: 0.5}", "should be \\[low, high\\]"),
        ("spurious_rate: {look: yes}", "should be numbers"),
        ("spurious_rate: {unit: furlong}", "unit is 'furlong'"),
        ("- a\n- b", "should name checks"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_wrong_limits_are_refused(tmp_path, text, message):
    path = tmp_path / "qc_thresholds.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        checks.limits(path)


def test_derived_figures(run):
    collection, _ = run
    found = collection.samples[0]
    derived = derive(found)
    metrics = found.assessed["istseg"].metrics
    area = 42_000 * 51_000 * 0.108**2
    assert derived["area_um2"] == pytest.approx(area)
    assert derived["transcripts_per_um2"] == pytest.approx(metrics.transcripts["in_image"] / (0.63 * area))
    assert derived["cells_vs_teacher"] == pytest.approx(3000 / 3000)
    assert derived["cut_fraction"] == 3 / 3000
    assert derived["tiles_skipped_fraction"] == 9 / 49
    assert derived["control_rate"] == pytest.approx(1 / 220, rel=1e-3)


def test_every_check_reads_its_own_number(run):
    _, report = run
    sample = report["samples"][0]
    metrics = sample["segmentations"]["istseg"]
    value = {c["name"]: c["value"] for c in sample["checks"]}
    assert value["spurious_rate"] == metrics["flags"]["spurious_rate"]
    assert value["inconsistent_rate"] == metrics["flags"]["inconsistent_rate"]
    assert value["without_nucleus_rate"] == metrics["flags"]["without_nucleus_rate"]
    assert value["transcripts_in_cells"] == metrics["transcripts"]["fraction_in_cells"]
    assert value["nuclei_in_one_cell"] == metrics["nuclei"]["fraction_in_one_cell"]
    assert value["seam_density"] == metrics["seams"]["density_ratio"]
    assert value["cell_area"] == metrics["quantiles"]["area_um2"]["median"]
    assert value["saturation"] == max(s["saturated_fraction"] for s in sample["input"]["stains"] if s["role"] != "other")
    assert None not in value.values()


def test_few_cells_at_borders_say_nothing(tmp_path):
    seams = {"n_border": 12, "n_inside": 90, "density_ratio": 0.2, "area_ratio": 0.3}
    made.write_whole(tmp_path, "s", segmentations=("istseg",), n_cells=300, n_umap=0, pictures=False, seams=seams)
    collection = collect(made.write_run(tmp_path, ["s"]), tmp_path)
    results = {c["name"]: c for c in summarise(collection, checks.limits())["samples"][0]["checks"]}
    assert results["seam_density"]["verdict"] == "not measured"
    assert results["seam_area"]["note"] == "only 12 cells at borders, 50 are needed"


def test_the_worst_stain_is_judged(tmp_path):
    made.write_tiles(tmp_path, made.write_sample(tmp_path, "s"))
    made.write_metrics(tmp_path, "s", "istseg", n_cells=300, n_umap=0, pictures=False)
    path = tmp_path / "s" / "tile" / "tiles" / "tiles.json"
    record = json.loads(path.read_text())

    def judged(*stains):
        record["stains"] = [
            {"name": name, "focus": {"blur_um": 1.4, "out_of_focus": share, "n_squares": n}, "seams": excess and {"excess": excess, "border_um": length}}
            for name, share, n, excess, length in stains
        ]
        path.write_text(json.dumps(record))
        found = summarise(collect(made.write_run(tmp_path, ["s"]), tmp_path), checks.limits())["samples"][0]["checks"]
        return [(c["verdict"], c["value"], c["note"]) for c in found if c["name"] in ("focus", "stain_seams")]

    assert judged(("DAPI", 0.3, 90, 0.1, 900), ("Ring", 0.1, 90, 0.9, 900)) == [("look", 0.3, "DAPI, edge blur 1.4 µm"), ("fail", 0.9, "Ring")]
    assert judged(("DAPI", 0.2, 90, 0.1, 900), ("Ring", 1.0, 3, 0.9, 90)) == [("pass", 0.2, "DAPI, edge blur 1.4 µm"), ("pass", 0.1, "DAPI")]
    focus, seams = judged(("DAPI", None, 0, None, 0))
    assert focus[0] == seams[0] == "not measured"
    assert "no stain shows something" in focus[2] and "less than 400 µm" in seams[2]


def all_figures(collection, report):
    metrics = {n: a.metrics for n, a in collection.samples[0].assessed.items()}
    thresholds = report["samples"][0]["thresholds"]
    yield figures.histogram("area_um2", "Cell area", "µm²", metrics)
    yield figures.flags(metrics)
    yield figures.density(thresholds)
    yield figures.nucleus_counts(thresholds)
    yield figures.curation(report["samples"][0]["curation"]["by_layer"])
    yield figures.planes({"0": 3, "10": 4, "2": 5})
    yield from figures.umap(metrics["istseg"], 500)
    yield from figures.maps(metrics["istseg"])
    yield figures.agreement({"square_um": 50.0, "cells": [[9, 0]], "matched": [[3, 0]]}, "istseg", "vendor")
    regions, folder = collection.samples[0].regions
    shown = viewer.figure(regions, regions.regions[0], folder, 20_000, "istseg")
    yield {k: v for k, v in shown.items() if k != "colours"}
    yield figures.training({"train_loss": [2.0, 1.0], "validation_loss": [2.0, None]}, 1, 3.0)
    yield figures.cohort(report["samples"])


def test_plotly_accepts_every_figure(run):
    import plotly.graph_objects as go

    n = 0
    for figure in all_figures(*run):
        go.Figure(data=figure["data"], layout=figure["layout"])
        json.dumps(figure, allow_nan=False)
        assert figure["alt"].endswith(".")
        n += 1
    assert n == 15


def test_histogram_is_a_density(run):
    collection, _ = run
    metrics = {n: a.metrics for n, a in collection.samples[0].assessed.items()}
    for trace in figures.histogram("n_genes", "Genes", "", metrics)["data"]:
        assert np.trapezoid(trace["y"], trace["x"]) == pytest.approx(100, rel=1e-3)


def test_flags_bar_adds_up(run):
    collection, _ = run
    metrics = {n: a.metrics for n, a in collection.samples[0].assessed.items()}
    traces = figures.flags(metrics)["data"]
    for k in range(3):
        assert sum(t["x"][k] for t in traces) == pytest.approx(100, abs=1e-2)
    assert sum(t["customdata"][-1] for t in traces) == metrics["istseg"].n_cells


def unpacked(array):
    return np.frombuffer(base64.b64decode(array["bdata"]), "<f4")


def test_umap_is_capped_and_keeps_colours_with_points(run):
    collection, _ = run
    metrics = collection.samples[0].assessed["istseg"].metrics
    by_flag, by_counts, by_cluster = figures.umap(metrics, 500)
    for figure in (by_flag, by_cluster):
        assert sum(len(unpacked(t["x"])) for t in figure["data"]) == 500
    x, counts = unpacked(by_counts["data"][0]["x"]), unpacked(by_counts["data"][0]["marker"]["color"])
    first = int(np.flatnonzero(np.isclose(metrics.embedding["x"], x[7], atol=1e-5))[0])
    assert counts[7] == pytest.approx(metrics.embedding["log_counts"][first], abs=1e-5)
    assert figures.umap_cap(1) == 5000 and figures.umap_cap(150) == 1000


def test_nothing_to_draw_gives_no_figure():
    assert figures.histogram("n_genes", "Genes", "", {}) is None
    assert figures.flags({}) is None
    assert figures.curation({"cells": {}}) is None
    assert figures.planes({"0": 5}) is None
    assert figures.training({}, None) is None
    assert figures.cohort([]) is None


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (12345, "count", "12,345"),
        (57.5, "count", "57.5"),
        (0.5, "share", "50 %"),
        (0.0723, "share", "7.2 %"),
        (0.0004, "share", "0.04 %"),
        (0.99996, "share", "99.99 %"),
        (1.0, "share", "100 %"),
        (0, "share", "0 %"),
        (25_000_000, "mm2", "25 mm²"),
        (1.01321, "ratio", "1.01"),
        (0.00001234, "number", "1.23e-05"),
        (81.29, "um2", "81.3 µm²"),
    ],
)
def test_numbers_are_written_for_readers(value, kind, text):
    assert numbers.show(value, kind) == text


@pytest.mark.parametrize("limit", [3_000, 40_000, 300_000])
def test_pictures_fit_their_limit(tmp_path, limit):
    noise = np.random.default_rng(0).integers(0, 255, (900, 1400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    uri, width, height = pictures.data_uri(tmp_path / "noise.png", limit, 2000)
    encoded = base64.b64decode(uri.removeprefix("data:image/webp;base64,"))
    assert len(encoded) <= limit
    assert Image.open(io.BytesIO(encoded)).size == (width, height)
    assert width / height == pytest.approx(1400 / 900, rel=0.05)


def test_budget_of_pictures_stays_below_the_total():
    for n in (1, 3, 8, 50, 200):
        budget = pictures.Budget.of(n)
        assert n * (budget.main_overview + 2 * budget.overview + budget.max_crops * budget.crop) < 1.1 * pictures.TOTAL_BYTES
        assert budget.max_crops >= 6


def test_broken_picture(tmp_path):
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(InputError, match="cannot be read as a picture"):
        pictures.data_uri(tmp_path / "x.png", 1000, 100)


def test_methods_say_what_was_done_and_no_more(run):
    _, report = run
    text, references = methods.paragraph(report)
    assert "istseg 0.1.0" in text and "2 samples" in text and "Cellpose [2]" in text
    assert "base model was kept" in text
    assert f"{3000 + 2000:,} cells" in text
    assert references[0].startswith("Defard T, Blondel A,") and "Genome Biology. 2026" in references[0]
    assert text.count(f"[{len(references)}]") == 1
    report = json.loads(json.dumps(report))
    for training in report["trainings"]:
        training["decision"]["accepted"], training["decision"]["base"] = True, {}
    assert "trained from scratch" in methods.paragraph(report)[0]
    for training in report["trainings"]:
        training["decision"]["accepted"], training["decision"]["finetuned"] = False, {}
    text, _ = methods.paragraph(report)
    assert "not possible" in text and "was fine-tuned" not in text
    report["run"]["params"]["teacher"] = "watershed"
    report["trainings"] = []
    text, references = methods.paragraph(report)
    assert "Cellpose" not in text + "".join(references)
    assert "fine-tuned" not in text
    assert "SpatialData [2]" in text


def test_methods_without_any_result(tmp_path):
    report = summarise(collect(made.write_run(tmp_path, ["a"]), tmp_path), checks.limits())
    text, _ = methods.paragraph(report)
    assert text.startswith("No sample of this run was segmented")


def test_sparse_counts_of_nuclei_keep_their_gaps(run):
    _, report = run
    thresholds = {**report["samples"][0]["thresholds"], "count_histogram": {"values": [0, 3, 400], "counts": [5, 3, 2]}, "spurious_count": 2.0}
    bars = figures.nucleus_counts(thresholds)["data"][0]
    shown = {x: y for x, y in zip(bars["x"], bars["y"], strict=True) if y}
    assert shown == {3.0: 80.0, 399.0: 20.0}


def test_bins_of_unequal_width_are_drawn_as_density(run):
    _, report = run
    thresholds = {**report["samples"][0]["thresholds"], "density_histogram": {"edges": [0, 1, 3], "counts": [1, 1]}, "background_density": 0.5}
    figure = figures.density(thresholds)
    assert figure["data"][0]["y"] == [50.0, 25.0]
    assert figure["layout"]["yaxis"]["title"]["text"].endswith("per unit")


def test_thresholds_of_zero_ask_for_a_look(tmp_path):
    made.write_whole(tmp_path, "s", segmentations=("istseg",), n_cells=3000, n_umap=0, pictures=False)
    path = tmp_path / "s" / "calibrate" / "thresholds.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"background_density": 0.0, "spurious_count": 0.0}))
    sample = summarise(collect(made.write_run(tmp_path, ["s"]), tmp_path), checks.limits())["samples"][0]
    assert {c["name"] for c in sample["checks"] if c["verdict"] == "look"} == {"background_threshold", "spurious_threshold"}
    assert sample["verdict"] == "look"


def test_bins_that_grow_by_a_factor_are_drawn_logarithmic(run):
    _, report = run
    edges = [0.0, *np.geomspace(0.01, 10, 13).tolist()]
    thresholds = {**report["samples"][0]["thresholds"], "density_histogram": {"edges": edges, "counts": [4, *[8] * 12]}, "background_density": edges[3]}
    figure = figures.density(thresholds)
    bars = figure["data"][0]
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert sum(bars["y"]) == pytest.approx(100, rel=1e-4)
    assert bars["y"][0] == 4.0 and min(bars["x"]) > 0
    assert bars["marker"]["color"] == ["#D55E00"] * 3 + ["#56B4E9"] * 10
    assert figure["layout"]["annotations"][0]["x"] == pytest.approx(np.log10(figure["layout"]["shapes"][0]["x0"]))
