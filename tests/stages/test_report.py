"""The stage `report`: made-up artifacts in, `report.html` and `report.json` out."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

import report_fixtures as made
from istseg.errors import InputError
from istseg.report.summary import STAGES
from istseg.stages import report

SMALL = {"n_cells": 3000, "n_umap": 400, "side": 300}
EVIL = "x</script><script>alert(1)</script><img src=q onerror=alert(2)>\"'&{{7*7}}"


class Page(HTMLParser):
    """What a test wants to know of a page: elements, numbers with their places, texts of scripts and styles, visible text."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.numbers: list[tuple[str, str]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self._inside: str | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if "data-at" in attributes:
            self.numbers.append((attributes["data-at"], attributes["value"]))
        if tag in self.raw:
            self._inside = tag
            self.raw[tag].append("")

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = None

    def handle_data(self, data):
        if self._inside:
            self.raw[self._inside][-1] += data
        else:
            self.text += data

    def tags(self, tag):
        return [a for t, a in self.elements if t == tag]


def follow(value, pointer):
    """The value at a JSON pointer (RFC 6901)."""
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def write(folder: Path, run_json: Path) -> tuple[dict, Page]:
    report.run(run_json=run_json, results=folder / "results", out=folder / "report")
    return json.loads((folder / "report" / "report.json").read_text()), Page(folder / "report" / "report.html")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with a good sample of three segmentations, trained; one of 0 cells without vendor; one that stopped at `segment`; one without anything."""
    folder = tmp_path_factory.mktemp("report")
    results = folder / "results"
    failures = [{"sample": "lung", "stage": "segment", "message": "CUDA out of memory"}]
    run_json = made.write_run(folder, ["brain", "empty", "lung", "lost"], failures=failures)
    metrics = {
        "brain": made.write_whole(results, "brain", 0, **SMALL),
        "empty": made.write_whole(results, "empty", 1, ("istseg", "teacher"), n_cells=0, side=300),
    }
    made.write_tiles(results, made.write_sample(results, "lung", 2))
    made.write_thresholds(results, "lung")
    made.write_training(results, "brain", ["brain"])
    made.write_comparison(results, "brain", metrics["brain"])
    record, page = write(folder, run_json)
    return folder, record, page, metrics


def test_every_number_of_the_page_is_in_the_json(whole):
    _, record, page, _ = whole
    assert len(page.numbers) > 150
    for pointer, value in page.numbers:
        assert json.loads(value) == follow(record, pointer), pointer


def test_the_json_holds_the_metrics_unchanged(whole):
    folder, record, page, metrics = whole
    for sample, segmentations in metrics.items():
        entry = next(s for s in record["samples"] if s["sample"] == sample)
        assert list(entry["segmentations"]) == list(segmentations)
        for name in segmentations:
            expected = json.loads((folder / "results" / sample / "assess" / name / "metrics.json").read_text())
            n = len(expected.pop("embedding")["x"])
            del expected["maps"]
            assert entry["segmentations"][name] == {**expected, "n_embedded": n}
    shown = dict(page.numbers)
    rate = metrics["brain"]["istseg"].flags["inconsistent_rate"]
    assert json.loads(shown["/samples/0/segmentations/istseg/flags/inconsistent_rate"]) == rate
    assert f"{100 * rate:.1f}" in page.text


def test_focus_and_seams_are_those_of_the_tiles(whole):
    folder, record, page, _ = whole
    expected = json.loads((folder / "results" / "brain" / "tile" / "tiles" / "tiles.json").read_text())["stains"]
    assert record["samples"][0]["tiles"]["stains"] == expected
    shown = dict(page.numbers)
    for k, stain in enumerate(expected):
        assert json.loads(shown[f"/samples/0/tiles/stains/{k}/focus/blur_um"]) == stain["focus"]["blur_um"]
        assert json.loads(shown[f"/samples/0/tiles/stains/{k}/focus/out_of_focus"]) == stain["focus"]["out_of_focus"]
    assert json.loads(shown["/samples/0/tiles/stains/1/seams/excess"]) == expected[1]["seams"]["excess"]
    assert "/samples/0/tiles/stains/0/seams/excess" not in shown, "fields are not known"


def test_segmentations_side_by_side_and_their_agreement(whole):
    _, record, page, metrics = whole
    comparison = record["samples"][0]["comparison"]
    assert comparison["segmentations"] == ["istseg", "teacher", "vendor"]
    shown = dict(page.numbers)
    at = "/samples/0/comparison"
    assert json.loads(shown[f"{at}/annotations/n_cells"]) == 212
    assert json.loads(shown[f"{at}/against/vendor/dense/recall"]) == comparison["against"]["vendor"]["dense"]["recall"]
    pairs = {f"{at}/agreement/{k}/{key}" for k in range(3) for key in ("matched_first", "matched_second", "ari")}
    assert pairs <= set(shown) and sum(pointer.endswith("/ari") for pointer, _ in page.numbers) == 6, "the matrix of the index is symmetric"
    mecr = {n: json.loads(shown[f"/samples/0/segmentations/{n}/purity/mecr"]) for n in metrics["brain"]}
    assert mecr == {n: m.purity["mecr"] for n, m in metrics["brain"].items()}
    best = [a for a in page.tags("td") if "best" in (a.get("class") or "")]
    assert len(best) > 10
    assert "not whole" not in page.text and "Against 212 annotated cells" in re.sub(r"\s+", " ", page.text)


def test_tables_for_other_tools_hold_the_same_numbers(whole):
    folder, record, _, metrics = whole
    with open(folder / "report" / "metrics.tsv", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert list(rows[0]) == ["sample", "segmentation", "against", "metric", "value", "unit", "better"]
    keys = [(r["sample"], r["segmentation"], r["against"], r["metric"]) for r in rows]
    assert len(set(keys)) == len(keys)
    values = dict(zip(keys, (float(r["value"]) for r in rows), strict=True))
    assert values["brain", "teacher", "", "spurious_rate"] == metrics["brain"]["teacher"].flags["spurious_rate"]
    assert values["empty", "istseg", "", "n_cells"] == 0 and ("empty", "istseg", "", "mecr") not in values
    comparison = record["samples"][0]["comparison"]
    assert values["brain", "teacher", "istseg", "matched"] == comparison["agreement"][0]["matched_second"]
    assert values["brain", "vendor", "annotations", "ap_0.9"] == 0.12
    assert {r["better"] for r in rows if r["metric"] in ("mecr", "pixel_iou", "seam_area", "n_cells", "ari")} == {"low", "high", "one", ""}

    table = json.loads((folder / "report" / "istseg_mqc.json").read_text())
    assert table["plot_type"] == "table" and set(table["data"]) == {f"brain: {n}" for n in metrics["brain"]} | {"empty: istseg", "empty: teacher"}
    assert table["data"]["brain: vendor"]["rna_iou"] == pytest.approx(100 * comparison["against"]["vendor"]["rna_iou_mean"])
    assert {name for values in table["data"].values() for name in values} == set(table["headers"])


def test_annotations_that_are_not_whole(tmp_path):
    metrics = made.write_whole(tmp_path / "results", "a", 0, ("istseg", "proseg"), **SMALL)
    made.write_comparison(tmp_path / "results", "a", metrics, whole=False)
    record, page = write(tmp_path, made.write_run(tmp_path, ["a"]))
    assert "not whole: no precision" in page.text and "Panoptic" not in page.text
    assert [n for p, n in page.numbers if p.endswith("/agreement/0/matched_first")] == ["0.71"]


def test_samples_without_result_are_failed_where_they_stopped(whole):
    _, record, page, _ = whole
    by_name = {s["sample"]: s for s in record["samples"]}
    assert by_name["lung"]["failure"]["stage"] == "segment"
    assert by_name["lung"]["failure"]["messages"] == ["segment: CUDA out of memory"]
    assert by_name["lost"]["failure"]["stage"] == "convert"
    assert all(by_name[n]["verdict"] == "fail" and by_name[n]["checks"] == [] for n in ("lung", "lost"))
    assert "CUDA out of memory" in page.text
    assert STAGES["convert"].replace("`", "") in page.text
    assert record["verdict"] == {"verdict": "fail", "n_samples": 4, "n_pass": 1, "n_look": 0, "n_fail": 3}


def test_no_cells_is_a_failed_check_not_a_crash(whole):
    _, record, page, _ = whole
    empty = record["samples"][1]
    verdicts = {c["name"]: c["verdict"] for c in empty["checks"]}
    assert empty["failure"] is None
    assert verdicts["cells"] == "fail"
    assert verdicts["spurious_rate"] == verdicts["cell_area"] == "not measured"
    assert empty["verdict"] == "fail"
    assert "nan" not in page.text.lower().split()
    assert not any("/samples/1/segmentations/vendor" in p for p, _ in page.numbers)


def test_training_is_shown(whole):
    _, record, page, _ = whole
    assert record["samples"][0]["trainings"] == [0]
    assert "accepted" in page.text
    reason = record["trainings"][0]["decision"]["reason"]
    assert f"{reason[0].upper()}{reason[1:]}." in page.text and page.text.count(reason[1:]) == 1
    shown = dict(page.numbers)
    assert json.loads(shown["/trainings/0/decision/finetuned/ap50"]) == record["trainings"][0]["decision"]["finetuned"]["ap50"]
    figures = json.loads(page.raw["script"][0])
    validation = next(t for t in figures["training-0"]["data"] if t["name"] == "validation loss")
    curves = record["trainings"][0]["curves"]
    assert validation["y"] == [curves["validation_loss_before"], *(e["validation_loss"] for e in curves["epochs"])]
    assert validation["x"][0] == 0


def test_containers_and_costs(whole):
    _, record, page, _ = whole
    core, other = record["images"]
    if core["digest"] is None:
        core, other = other, core
    assert core["digest"] == f"sha256:{'ab' * 32}" and core["stages"] == ["convert", "segment"]
    assert core["digest"] in page.text and "the tag may have moved" in page.text
    assert other == {"image": made.IMAGES[1], "digest": None, "stages": ["comparator_tiles"]}
    cpu = record["costs"]["cpu_hours"]
    assert cpu["total"] == pytest.approx(0.0225 * 6)
    assert [d["stage"] for d in cpu["drivers"]] == ["comparator_tiles", "segment", "convert"]
    assert sum(d["share"] for d in cpu["drivers"]) == pytest.approx(1)
    assert [d["stage"] for d in record["costs"]["gpu_hours"]["drivers"]] == ["segment", "comparator_tiles"]
    assert "/costs/memory_gb_hours/drivers/0/share" in dict(page.numbers)


def test_without_containers_the_page_says_so(tmp_path):
    made.write_whole(tmp_path / "results", "s", segmentations=("istseg",), n_cells=300, n_umap=0, pictures=False)
    rows = [{"stage": "convert", "tasks": 1, "seconds": 3.0, "longest_seconds": 3.0, "cpu_hours": 0.001, "gpu_hours": 0, "memory_gb_hours": None,
             "peak_memory_bytes": None, "containers": []}]  # fmt: skip
    record, page = write(tmp_path, made.write_run(tmp_path, ["s"], container_engine=None, resources=rows))
    assert record["images"] == [] and list(record["costs"]) == ["cpu_hours"]
    assert "no container: programs of the machine" in page.text and "GPU hours" not in page.text


def test_curation_is_summed_over_tasks(whole):
    folder, record, _, _ = whole
    parts = [json.loads(p.read_text()) for p in (folder / "results" / "brain" / "curate").glob("*/curation.json")]
    assert len(parts) == record["samples"][0]["curation"]["n_tasks"] == 3
    for layer, rules in record["samples"][0]["curation"]["by_layer"].items():
        for rule, n in rules.items():
            assert n == sum(p["by_layer"][layer][rule] for p in parts)


def test_the_page_loads_nothing(whole):
    folder, _, page, _ = whole
    for tag, attributes in page.elements:
        for key in ("src", "srcset", "href", "action", "data", "poster", "background"):
            target = attributes.get(key)
            assert target is None or target.startswith(("data:", "#")), (tag, key, target)
    assert not re.search(r"@import|url\((?!['\"]?data:)", "".join(page.raw["style"]))
    policy = next(m["content"] for m in page.tags("meta") if m.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    for script in page.raw["script"][1:]:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert len(page.raw["script"]) == 3
    assert (folder / "report" / "report.html").stat().st_size < 12e6


def test_pictures_and_figures_have_words(whole):
    _, _, page, _ = whole
    pictures = [a for a in page.tags("img") if "src" in a]
    assert len(pictures) > 20
    assert all(a["alt"] and a["width"] and a["height"] for a in pictures)
    plots = [a for a in page.tags("div") if "data-figure" in a]
    figures = json.loads(page.raw["script"][0])
    assert {a["data-figure"] for a in plots} == set(figures)
    assert all(a["aria-label"] == figures[a["data-figure"]]["alt"] for a in plots)


def test_links_inside_the_page_lead_somewhere(whole):
    _, _, page, _ = whole
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.tags("a")} <= set(ids)


def test_same_input_same_bytes(whole, tmp_path):
    folder, *_ = whole
    report.run(run_json=folder / "run.json", results=folder / "results", out=tmp_path)
    for name in ("report.html", "report.json"):
        assert (tmp_path / name).read_bytes() == (folder / "report" / name).read_bytes()


@pytest.mark.parametrize(
    ("kept", "stage"),
    [
        ([], "convert"),
        (["convert"], "tile"),
        (["convert", "tile"], "calibrate"),
        (["convert", "tile", "calibrate"], "merge"),
        (["convert", "tile", "calibrate", "merge"], "assess"),
        (["convert", "tile", "calibrate", "merge", "assess"], None),
    ],
)
def test_furthest_stage(tmp_path, kept, stage):
    results = tmp_path / "results"
    made.write_whole(results, "s", segmentations=("istseg",), n_cells=300, n_umap=0, pictures=False)
    for folder in (results / "s").iterdir():
        if folder.name not in kept:
            shutil.rmtree(folder)
    record, page = write(tmp_path, made.write_run(tmp_path, ["s"]))
    failure = record["samples"][0]["failure"]
    assert (failure and failure["stage"]) == stage
    assert ("stopped at" in page.text) == (stage is not None)


def test_a_task_that_failed_beside_a_complete_segmentation_fails_the_sample(tmp_path):
    made.write_whole(tmp_path / "results", "s", segmentations=("istseg",), n_cells=3000, n_umap=0, pictures=False)
    record, page = write(tmp_path, made.write_run(tmp_path, ["s"], failures=[{"sample": "s", "stage": "export", "message": "disk full"}]))
    assert record["samples"][0]["verdict"] == "fail"
    assert record["samples"][0]["segmented"]
    assert "The segmentation is complete, but a task failed" in page.text
    assert any(p == "/samples/0/segmentations/istseg/n_cells" for p, _ in page.numbers)


def test_a_comparator_that_failed_is_shown_and_does_not_fail_the_sample(tmp_path):
    made.write_whole(tmp_path / "results", "s", segmentations=("istseg", "teacher"), n_cells=3000, n_umap=0, pictures=False)
    failures = [
        {"sample": "s", "stage": "proseg", "message": "it ran out of memory", "segmentation": "proseg"},
        {"sample": "s", "stage": "assign", "message": "no such array", "segmentation": "expansion"},
        {"sample": "other", "stage": "comseg", "message": "not of this sample", "segmentation": "comseg"},
    ]
    record, page = write(tmp_path, made.write_run(tmp_path, ["s"], failures=failures))
    (sample,) = record["samples"]
    assert sample["failure"] is None
    assert sample["verdict"] == "look"
    assert [(f["segmentation"], f["stage"]) for f in sample["failed_comparators"]] == [("expansion", "assign"), ("proseg", "proseg")]
    assert "The comparator proseg failed at proseg" in page.text
    assert "it ran out of memory" in page.text
    assert "comparator expansion failed, comparator proseg failed" in page.text
    assert "not of this sample" not in page.text


def test_nothing_from_the_data_becomes_html(tmp_path):
    results = tmp_path / "results"
    sample = made.write_sample(
        results,
        EVIL,
        stains=("DAPI", EVIL),
        details={"generation": EVIL, "warnings": [EVIL]},
        transcripts={"total": 10, "genes": 9, "controls": 1, "outside_image": 0, "by_plane": {EVIL: 5, "1": 5}},
    )
    made.write_tiles(results, sample)
    made.write_thresholds(results, EVIL)
    made.write_metrics(results, EVIL, "istseg", reasons={EVIL: 3000}, warnings=[EVIL], method={"model": EVIL}, **SMALL)
    metrics = made.write_metrics(results, EVIL, "vendor" + EVIL, pictures=False, n_cells=3000, n_umap=100)
    path = results / EVIL / "curate" / "curation.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"sample": EVIL, "tiles": [], "by_layer": {EVIL: {EVIL: 3}}}))
    made.write_training(results, "m", [EVIL])
    run_json = made.write_run(
        tmp_path,
        [EVIL, "other"],
        params={EVIL: EVIL},
        changed=[EVIL],
        defaults={EVIL: EVIL},
        versions={EVIL: EVIL},
        failures=[{"sample": "other", "stage": EVIL, "message": EVIL}],
    )
    record, page = write(tmp_path, run_json)
    assert record["samples"][0]["sample"] == EVIL
    assert metrics.segmentation in record["samples"][0]["segmentations"]
    assert len(page.tags("script")) == 3
    assert all(a.get("src", "data:").startswith("data:") for a in page.tags("img"))
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert EVIL in page.text
    assert "x49" not in page.text and "&49" not in page.text
    figures = json.loads(page.raw["script"][0])
    labels = [t["name"] for f in figures.values() for t in f["data"] if "name" in t]
    assert labels and not any("<" in label for label in labels)
    for pointer, value in page.numbers:
        assert json.loads(value) == follow(record, pointer)


def test_links_and_copies_of_artifacts_count_once(tmp_path):
    results = tmp_path / "results"
    made.write_whole(tmp_path / "elsewhere", "s", segmentations=("istseg",), n_cells=300, n_umap=0, pictures=False)
    results.mkdir()
    (results / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (results / "again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    shutil.copytree(tmp_path / "elsewhere", results / "copy")
    (results / "s.zarr").mkdir()
    (results / "s.zarr" / "metrics.json").write_text("not an artifact")
    record, _ = write(tmp_path, made.write_run(tmp_path, ["s"]))
    assert record["samples"][0]["curation"]["n_tasks"] == 3
    assert record["samples"][0]["segmented"]


def test_all_broken_and_contradicting_artifacts_are_named_at_once(tmp_path):
    results = tmp_path / "results"
    made.write_metrics(results / "new", "s", "istseg", n_cells=300, n_umap=0, pictures=False)
    made.write_metrics(results / "old", "s", "istseg", n_cells=301, n_umap=0, pictures=False)
    (results / "sample.json").write_text('{"sample": "s"')
    (results / "merge.json").write_text("{}")
    with pytest.raises(InputError) as caught:
        write(tmp_path, made.write_run(tmp_path, ["s"]))
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "contradicts" in text and "sample.json" in text and "merge.json" in text
    assert not (tmp_path / "report" / "report.html").exists()


def test_samples_of_other_runs_are_left_out_and_said(tmp_path):
    for name in ("s", "older"):
        made.write_whole(tmp_path / "results", name, segmentations=("istseg",), n_cells=300, n_umap=0, pictures=False)
    record, page = write(tmp_path, made.write_run(tmp_path, ["s"]))
    assert record["foreign"] == ["older"]
    assert "older" in page.text
    assert len(record["samples"]) == 1


def test_a_missing_picture_is_an_error(tmp_path):
    made.write_whole(tmp_path / "results", "s", segmentations=("istseg",), n_cells=300, n_umap=0, side=200)
    (tmp_path / "results" / "s" / "assess" / "istseg" / "overview.png").unlink()
    with pytest.raises(InputError, match=r"overview\.png.*run its stage again"):
        write(tmp_path, made.write_run(tmp_path, ["s"]))


def test_limits_beside_the_results_are_used(tmp_path):
    made.write_whole(tmp_path / "results", "s", segmentations=("istseg",), n_cells=3000, n_umap=0, pictures=False)
    run_json = made.write_run(tmp_path, ["s"])
    before, _ = write(tmp_path, run_json)
    (tmp_path / "results" / "qc_thresholds.yaml").write_text("cells: {look: 5000, fail: 4000}\nsaturation: {skip: true}\n")
    after, page = write(tmp_path, run_json)
    verdict = {c["name"]: c["verdict"] for c in after["samples"][0]["checks"]}
    assert before["samples"][0]["verdict"] == "pass"
    assert verdict["cells"] == "fail"
    assert "saturation" not in verdict
    assert "at least 5,000 (fail below 4,000)" in page.text


def test_no_membrane_stain_no_controls_no_transcripts(tmp_path):
    results = tmp_path / "results"
    sample = made.write_sample(
        results, "s", stains=("DAPI",), controls=[], transcripts={"total": 0, "genes": 0, "controls": 0, "outside_image": 0, "by_plane": {}}
    )
    made.write_tiles(results, sample, n=1, skipped=0)
    nothing = {"total": 0, "in_image": 0, "in_cells": 0, "fraction_in_cells": None, "controls": 0, "controls_in_cells": 0, "outside_image": 0}
    made.write_metrics(results, "s", "istseg", n_cells=300, n_umap=0, pictures=False, transcripts=nothing)
    record, _ = write(tmp_path, made.write_run(tmp_path, ["s"]))
    notes = {c["name"]: c["note"] for c in record["samples"][0]["checks"] if c["verdict"] == "not measured"}
    assert notes["control_rate"] == "no control probes"
    assert notes["transcripts_in_image"] == "no transcripts"


def test_fifty_samples_in_reasonable_time(tmp_path):
    names = [f"sample_{i:02d}" for i in range(50)]
    made.write_whole(tmp_path / "one", "x", n_cells=400, n_umap=400, pictures=False)
    _multiply(tmp_path, "x", names)
    run_json = made.write_run(tmp_path, names)
    # CPU time: other work on the machine says nothing about the report.
    begin = time.process_time()
    record, page = write(tmp_path, run_json)
    assert time.process_time() - begin < 30
    assert [s["sample"] for s in record["samples"]] == names
    assert all(s["segmented"] for s in record["samples"])
    assert len(json.loads(page.raw["script"][0])) > 50 * 10
    assert (tmp_path / "report" / "report.html").stat().st_size < 18e6


def test_eight_full_samples_fit_in_25_mb(tmp_path):
    names = [f"s{i}" for i in range(8)]
    made.write_whole(tmp_path / "one", "x", side=1200, n_cells=9000, n_umap=9000)
    _multiply(tmp_path, "x", names)
    _, page = write(tmp_path, made.write_run(tmp_path, names))
    assert len(page.tags("img")) > 8 * 20
    assert (tmp_path / "report" / "report.html").stat().st_size < 25e6


def _multiply(folder: Path, name: str, names: list[str]) -> None:
    """Copy the artifacts of one sample under other names."""
    for other in names:
        shutil.copytree(folder / "one" / name, folder / "results" / other)
        for path in (folder / "results" / other).rglob("*.json"):
            path.write_text(path.read_text().replace(f'"sample": "{name}"', f'"sample": "{other}"'))
