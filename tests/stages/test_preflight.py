"""preflight: what it resolves, the machine it checks, that it is quick and that convert agrees with it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

import raw_fixtures as fx
from istseg import parameters, samplesheet
from istseg.artifacts.preflight import Preflight
from istseg.artifacts.sample import Sample
from istseg.errors import InputError
from istseg.stages import convert, preflight
from network_fixtures import BASE_MODEL

ROOT = Path(__file__).resolve().parents[2]


def sheet(folder: Path, *rows: str, header: str = "sample,platform,path") -> Path:
    path = folder / "sheet.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_what_it_says_is_what_convert_does(tmp_path: Path) -> None:
    fx.merscope(tmp_path / "m", stains=("DAPI", "PolyT", "Mbp"))
    fx.cosmx(tmp_path / "c")
    path = sheet(tmp_path, "brain,merscope,m,PolyT,,1-2", f"lung,cosmx,{tmp_path / 'c'},,1;2,", header="sample,platform,path,membrane_stains,fovs,z_planes")
    preflight.run(samplesheet=path, out=tmp_path / "out", disk=tmp_path)
    found = Preflight.read(tmp_path / "out" / "preflight.json")
    brain, lung = found.samples
    convert.run(raw=tmp_path / "m", sample="brain", platform="merscope", out=tmp_path / "b", membrane_stains="PolyT", z_planes="1-2")
    convert.run(raw=tmp_path / "c", sample="lung", platform="cosmx", out=tmp_path / "l", fovs="1;2")
    for told, folder in ((brain, "b"), (lung, "l")):
        made = Sample.read(tmp_path / folder / "sample.json")
        assert (told.height_px, told.width_px, told.generation) == (made.height_px, made.width_px, made.details["generation"])
        assert told.pixel_size_um == made.pixel_size_um
        assert told.micron_to_pixel == made.micron_to_pixel
        assert [(s["name"], s["role"]) for s in told.stains] == [(s.name, s.role) for s in made.stains]
        assert told.transcripts["sampled"] == made.transcripts["total"], "a small table is looked at in full"
        assert told.transcripts["inside_fraction"] == pytest.approx(1 - made.transcripts["outside_image"] / made.transcripts["total"])
        size = sum(f.stat().st_size for f in (tmp_path / folder).rglob("*") if f.is_file())
        assert told.disk_bytes > 0.5 * size, "the estimate is not below what is written"
    assert brain.stains[0]["planes"] == [1, 2]
    assert lung.evidence["orientation"]["agreement"]["y"] == 1
    assert found.machine["device"] == "cpu"
    assert found.machine["disk_needed_bytes"] == 2 * (brain.disk_bytes + lung.disk_bytes)


def test_parameters_count_where_the_samplesheet_is_silent(tmp_path: Path) -> None:
    fx.merscope(tmp_path / "m")
    fx.cosmx(tmp_path / "c")
    path = sheet(tmp_path, "a,merscope,m,", "b,merscope,m,2", "c,cosmx,c,", header="sample,platform,path,z_planes")
    (tmp_path / "p.json").write_text('{"input": "sheet.csv", "z_planes": "0-1", "pixel_size_um": 0.121}')
    preflight.run(samplesheet=path, out=tmp_path / "out", params=tmp_path / "p.json", schema=ROOT / "nextflow_schema.json")
    a, b, c = Preflight.read(tmp_path / "out" / "preflight.json").samples
    assert (a.stains[0]["planes"], b.stains[0]["planes"], c.stains[0]["planes"]) == ([0, 1], [2], [0])
    assert c.pixel_size_um == 0.121
    assert a.pixel_size_um == pytest.approx(fx.PIXEL_UM, rel=1e-3), "a MERSCOPE region says its own"


def test_staged_folders_are_read_and_told_by_the_path_people_wrote(tmp_path: Path) -> None:
    fx.merscope(tmp_path / "staged" / "raw1")
    path = sheet(tmp_path, "a,merscope,s3://bucket/run/region_0")
    preflight.run(samplesheet=path, out=tmp_path / "out", raw={"a": tmp_path / "staged" / "raw1"})
    assert Preflight.read(tmp_path / "out" / "preflight.json").samples[0].path == "s3://bucket/run/region_0"
    (tmp_path / "staged" / "raw1" / "detected_transcripts.csv").unlink()
    with pytest.raises(InputError) as error:
        preflight.run(samplesheet=path, out=tmp_path / "out", raw={"a": tmp_path / "staged" / "raw1"})
    assert "a: s3://bucket/run/region_0: has no transcript table" in str(error.value)
    with pytest.raises(InputError, match="no sample 'b'"):
        preflight.run(samplesheet=path, out=tmp_path / "out", raw={"a": tmp_path / "staged" / "raw1", "b": tmp_path})


def test_few_transcripts_inside_is_a_warning_none_an_error(tmp_path: Path) -> None:
    truth = fx.merscope(tmp_path / "m")
    path = sheet(tmp_path, "a,merscope,m")
    frame = truth["transcripts"]
    for outside, message in ((200, "Only 67%"), (580, None)):
        moved = frame.assign(global_x=np.where(frame.index < outside, frame["global_x"] + 1e4, frame["global_x"]))
        fx.write_table(moved, tmp_path / "m" / "detected_transcripts.csv")
        if message is None:
            with pytest.raises(InputError, match=r"only 3.3% of the transcripts lie inside the image"):
                preflight.run(samplesheet=path, out=tmp_path / "out")
        else:
            preflight.run(samplesheet=path, out=tmp_path / "out")
            warnings = Preflight.read(tmp_path / "out" / "preflight.json").samples[0].warnings
            assert any(message in w for w in warnings)


def test_repeated_rows_are_told(tmp_path: Path) -> None:
    import pandas as pd

    truth = fx.merscope(tmp_path / "m")
    fx.write_table(pd.concat([truth["transcripts"], truth["transcripts"].head(60)]), tmp_path / "m" / "detected_transcripts.csv")
    preflight.run(samplesheet=sheet(tmp_path, "a,merscope,m"), out=tmp_path / "out")
    sample = Preflight.read(tmp_path / "out" / "preflight.json").samples[0]
    assert sample.transcripts["repeated_fraction"] == pytest.approx(60 / 660, abs=1e-4)
    assert any("there twice" in w for w in sample.warnings)


def test_a_gpu_that_is_not_there_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    fx.merscope(tmp_path / "m")
    path = sheet(tmp_path, "a,merscope,m")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="sees no GPU here"):
        preflight.run(samplesheet=path, out=tmp_path / "out", device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    preflight.run(samplesheet=path, out=tmp_path / "out", device="cuda")
    assert Preflight.read(tmp_path / "out" / "preflight.json").machine["gpu"] == "Some GPU"


def test_a_full_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    fx.merscope(tmp_path / "m")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(InputError, match="GB are free, about"):
        preflight.run(samplesheet=sheet(tmp_path, "a,merscope,m"), out=tmp_path / "out", disk=tmp_path)


def test_comparators_count_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the run's teacher, which is not computed twice."""
    from collections import namedtuple

    fx.merscope(tmp_path / "m")
    path = sheet(tmp_path, "a,merscope,m")

    def needed(compare: str) -> int:
        (tmp_path / "p.json").write_text(json.dumps({"input": "sheet.csv", "teacher": "watershed", "compare": compare}))
        preflight.run(samplesheet=path, out=tmp_path / "out", params=tmp_path / "p.json", schema=ROOT / "nextflow_schema.json", disk=tmp_path)
        found = Preflight.read(tmp_path / "out" / "preflight.json")
        assert found.machine["disk_needed_bytes"] == 2 * found.samples[0].disk_bytes
        return found.machine["disk_needed_bytes"]

    without = needed("none")
    assert needed("vendor,teacher,watershed") == without
    with_one = needed("vendor,expansion")
    size = Preflight.read(tmp_path / "out" / "preflight.json").samples[0]
    working = size.height_px * size.width_px * (size.pixel_size_um / 0.253) ** 2
    assert with_one - without == pytest.approx(2 * preflight.comparator_bytes("expansion", working, size.size["mtx"] * 1e6), rel=0.01)
    assert preflight.comparator_bytes("proseg", 1e9, 1e8) > preflight.comparator_bytes("expansion", 1e9, 1e8) > 6e9

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage(10**12, 10**12 - without - 1000, without + 1000))
    assert needed("none") == without
    with pytest.raises(InputError, match="GB are free, about"):
        needed("expansion")


def test_the_teacher_vendor_needs_vendor_cells(tmp_path: Path) -> None:
    fx.merscope(tmp_path / "m", cells="none")
    (tmp_path / "p.json").write_text('{"input": "sheet.csv", "teacher": "vendor"}')
    with pytest.raises(InputError, match="the teacher `vendor` needs the vendor's cells"):
        preflight.run(samplesheet=sheet(tmp_path, "a,merscope,m"), out=tmp_path / "o", params=tmp_path / "p.json", schema=ROOT / "nextflow_schema.json")


def test_what_comparators_lack_is_told_at_once_before_any_work(tmp_path: Path) -> None:
    fx.merscope(tmp_path / "c", cells="none")
    params = {"compare": "vendor,watershed,cellpose,proseg,comseg,baysor", "proseg_init": "vendor", "input": "i.csv", "outdir": "o"}
    (tmp_path / "p.json").write_text(json.dumps(params))
    given = {"samplesheet": sheet(tmp_path, "a,merscope,c"), "out": tmp_path / "out", "params": tmp_path / "p.json", "schema": ROOT / "nextflow_schema.json"}
    with pytest.raises(InputError) as error:
        preflight.run(**given, programs=tmp_path / "none")
    told = error.value.problems
    for words in (
        "--compare cellpose: needs --nuclei_weights", "--compare cellpose: needs --cyto_weights", "--compare baysor: needs --baysor",
        f"--compare proseg: there is no {tmp_path}/none/proseg/bin/proseg; install it with `make comparators`", "--compare comseg: there is no",
        "--proseg_init vendor needs the vendor's cells",
    ):  # fmt: skip
        assert sum(words in text for text in told) == 1, words
    assert len(told) == 6
    assert not (tmp_path / "out").exists()
    (tmp_path / "p.json").write_text(json.dumps(params | {"compare": "vendor,expansion,proseg", "proseg_init": "nuclei"}))
    preflight.run(**given, programs=None)
    assert "There are no cells of the vendor to compare with." in Preflight.read(tmp_path / "out" / "preflight.json").samples[0].warnings


@pytest.mark.parametrize("text", ["0.0", "0.5,.0", "0.5,1.5"])
def test_iou_thresholds_that_the_last_stage_would_refuse(tmp_path: Path, text: str) -> None:
    fx.merscope(tmp_path / "m")
    (tmp_path / "p.json").write_text(json.dumps({"input": "i.csv", "outdir": "o", "iou_thresholds": text}))
    with pytest.raises(InputError, match="--iou_thresholds: .* write numbers above 0 up to 1"):
        preflight.run(samplesheet=sheet(tmp_path, "a,merscope,m"), out=tmp_path / "o", params=tmp_path / "p.json", schema=ROOT / "nextflow_schema.json")


def test_the_teachers_weights_serve_the_comparator_of_its_name(tmp_path: Path) -> None:
    """Asked for by its own name, the run's teacher is not checked a second time."""
    fx.merscope(tmp_path / "m")
    params = {"compare": "cellpose", "teacher": "cellpose", "nuclei_weights": "n", "cyto_weights": "c", "input": "i.csv", "outdir": "o"}
    (tmp_path / "p.json").write_text(json.dumps(params))
    given = {"samplesheet": sheet(tmp_path, "a,merscope,m"), "params": tmp_path / "p.json", "schema": ROOT / "nextflow_schema.json"}
    with pytest.raises(InputError) as error:
        preflight.run(**given, out=tmp_path / "out", nuclei_weights=tmp_path / "n", cyto_weights=tmp_path / "c")
    assert not any("--compare" in text for text in error.value.problems)


def test_samplesheets_as_spreadsheets_write_them(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(b'\xef\xbb\xbfsample,platform,path,fovs\r\n\r\nA.1 , cosmx,"some, folder",1-2;5\r\n,,,\r\nb,merscope,x\r\n')
    problems: list[str] = []
    rows = samplesheet.read(path, problems)
    assert problems == []
    assert [(r.sample, r.platform, r.path, r.fovs, r.line) for r in rows] == [("A.1", "cosmx", "some, folder", "1-2;5", 3), ("b", "merscope", "x", None, 5)]


def test_the_rules_are_those_of_the_schema() -> None:
    """Nextflow checks by `assets/schema_input.json`, preflight by samplesheet.py: they must not part."""
    schema = json.loads((ROOT / "assets" / "schema_input.json").read_text())["items"]
    assert set(schema["properties"]) == {*samplesheet.REQUIRED, *samplesheet.OPTIONAL}
    assert schema["required"] == list(samplesheet.REQUIRED)
    assert schema["properties"]["sample"]["pattern"] == samplesheet.NAME_PATTERN
    assert schema["properties"]["platform"]["enum"] == list(samplesheet.READERS)
    assert schema["properties"]["nucleus_stain"]["pattern"] == samplesheet.STAIN_PATTERN


def test_every_default_passes_its_own_rule() -> None:
    schema = json.loads((ROOT / "nextflow_schema.json").read_text())
    defaults = {name: rule["default"] for group in schema["$defs"].values() for name, rule in group["properties"].items() if "default" in rule}
    assert parameters.check({"input": "a.csv", **defaults, "nucleus_stain": None}, schema) == []


@pytest.mark.real_data
def test_the_real_samples_pass_in_seconds(tmp_path: Path) -> None:
    data = fx.real_data()
    rows = [f"brain,merscope,{data}/merscope_mouse_brain", f"liver,merscope,{data}/merscope_mouse_liver/region_0", f"lung,cosmx,{data}/cosmx_human_lung/Lung12"]
    start = time.process_time()
    preflight.run(samplesheet=sheet(tmp_path, *rows), out=tmp_path / "out")
    assert time.process_time() - start < 10
    brain, liver, lung = Preflight.read(tmp_path / "out" / "preflight.json").samples
    assert [s["role"] for s in brain.stains] == ["nucleus", "membrane", "other", "other"]
    assert liver.transcripts["inside_fraction"] == pytest.approx(3334 / 5936, abs=1e-4)
    assert any("56%" in w for w in liver.warnings)
    assert round(lung.evidence["orientation"]["agreement"]["y"], 3) == 0.989
    assert lung.pixel_size_um == 0.18
    assert any("0.18 µm" in w for w in lung.warnings)


def test_annotations_are_read_before_any_work(tmp_path: Path) -> None:
    fx.merscope(tmp_path / "m")
    header = "sample,platform,path,annotations,annotations_unit"
    ring = [[100, 100], [160, 100], [160, 160], [100, 160], [100, 100]]
    cell = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    (tmp_path / "cells.geojson").write_text(json.dumps([cell, cell]))
    preflight.run(samplesheet=sheet(tmp_path, "a,merscope,m,cells.geojson,", "b,merscope,m,,", header=header), out=tmp_path / "out")
    a, b = Preflight.read(tmp_path / "out" / "preflight.json").samples
    assert a.annotations == {"path": "cells.geojson", "cells": 1, "region": False} and b.annotations is None
    assert any("there twice" in w for w in a.warnings)
    (tmp_path / "staged").write_text(json.dumps([{**cell, "geometry": {"type": "Point", "coordinates": [5, 5]}}]))
    rows = ["a,merscope,m,cells.geojson,um", "b,merscope,m,s3://bucket/b.json,", "c,merscope,m,none.geojson,", "d,merscope,m,,px", "e,merscope,m,x,mm"]
    with pytest.raises(InputError) as caught:
        preflight.run(samplesheet=sheet(tmp_path, *rows, header=header), out=tmp_path / "out2", annotations={"b": tmp_path / "staged"})
    told = caught.value.problems
    assert any(t.endswith("line 5: has an annotations_unit but no annotations.") for t in told)
    assert any(t.endswith("line 6: annotations_unit is 'mm'; it should be px or um.") for t in told)
    assert any(t.startswith("a: cells.geojson: 2 of 2 cells lie outside the image") and t.endswith("set annotations_unit to px.") for t in told)
    assert "b: s3://bucket/b.json: features 1: Point is no polygon. Draw cells as closed polygons and export them again." in told
    assert any(t.startswith("c: none.geojson: cannot be read") for t in told)


def test_weights_are_opened_before_any_work(tmp_path: Path) -> None:
    fx.merscope(tmp_path / "m")
    path = sheet(tmp_path, "a,merscope,m")
    (tmp_path / "cut.safetensors").write_bytes(BASE_MODEL.read_bytes()[:100_000])
    (tmp_path / "staged_nuclei").write_bytes(b"no weights")
    values = {
        "input": "sheet.csv", "teacher": "cellpose", "base_model": "s3://models/cut.safetensors", "nuclei_weights": "/models/nuclei",
        "cyto_weights": "/models/cyto", "cyto_sha256": "ab" * 32, "qc_thresholds": "limits.yaml", "marker_pairs": "pairs.csv", "markers": "pairs.csv",
    }  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps(values))
    (tmp_path / "staged_cyto").write_bytes(b"no weights either")
    (tmp_path / "limits.yaml").write_text("no_such_check: {look: 1}\n")
    (tmp_path / "pairs.csv").write_text("gene,other\n")
    with pytest.raises(InputError) as caught:
        preflight.run(
            samplesheet=path, out=tmp_path / "out", params=tmp_path / "p.json", schema=ROOT / "nextflow_schema.json",
            model=tmp_path / "cut.safetensors", nuclei_weights=tmp_path / "staged_nuclei", cyto_weights=tmp_path / "staged_cyto",
            limits=tmp_path / "limits.yaml", marker_pairs=tmp_path / "pairs.csv", markers=tmp_path / "pairs.csv",
        )  # fmt: skip
    text = "\n".join(caught.value.problems)
    assert "s3://models/cut.safetensors: is not a safetensors file" in text
    assert "/models/nuclei: cannot be read as Cellpose weights" in text
    assert "/models/cyto: has the sha256" in text
    assert "--qc_thresholds: " in text and "no_such_check" in text
    assert "--marker_pairs: pairs.csv: lacks the columns gene_a, gene_b" in text and "--markers: pairs.csv: lacks the columns cell_type" in text
    assert str(tmp_path) not in text, "people know the paths they wrote"
    assert not (tmp_path / "out" / "preflight.json").exists()


def test_a_model_of_another_resolution_is_refused(tmp_path: Path) -> None:
    fx.merscope(tmp_path / "m")
    path = sheet(tmp_path, "a,merscope,m")
    (tmp_path / "p.json").write_text('{"input": "sheet.csv", "working_um": 0.5, "base_model": "base.safetensors"}')
    with pytest.raises(InputError, match="--base_model: .*working pixel is 0.5 µm"):
        preflight.run(samplesheet=path, out=tmp_path, params=tmp_path / "p.json", schema=ROOT / "nextflow_schema.json", model=BASE_MODEL)
    (tmp_path / "p.json").write_text('{"input": "sheet.csv", "base_model": "base.safetensors", "base_model_sha256": "' + "0" * 64 + '"}')
    with pytest.raises(InputError, match="sha256 is"):
        preflight.run(samplesheet=path, out=tmp_path, params=tmp_path / "p.json", schema=ROOT / "nextflow_schema.json", model=BASE_MODEL)
    (tmp_path / "p.json").write_text('{"input": "sheet.csv", "base_model": "base.safetensors"}')
    preflight.run(samplesheet=path, out=tmp_path, params=tmp_path / "p.json", schema=ROOT / "nextflow_schema.json", model=BASE_MODEL)
