"""The dry run of the schedule on roads whose length is known."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from istseg.cli import app
from istseg.errors import InputError
from istseg.schedule import Node, Task, cohort, read_trace, simulate

GB = 1 << 30


def road(sample: str, tiles: int = 4, segment: float = 40) -> list[Task]:
    """CONVERT 10, TILE 5, TEACH 4 x 20, CALIBRATE 1, SEGMENT 4 x 40, MERGE 2: without limits 10 + 5 + 40 + 2 = 57 s after PREFLIGHT."""
    each = [Task("TEACH", sample, 20)] * tiles + [Task("SEGMENT", sample, segment, gpus=0)] * tiles
    return [Task("CONVERT", sample, 10), Task("TILE", sample, 5), *each, Task("CALIBRATE", sample, 1), Task("MERGE", sample, 2)]


SHARED = [Task("PREFLIGHT", "", 3), Task("REPORT", "", 0)]


def test_the_longest_chain_decides_where_there_is_room():
    plan = simulate(SHARED + road("a"), [Node(64, 64 * GB)])
    assert plan.seconds == 3 + 10 + 5 + 40 + 2
    assert plan.bottleneck == "segment" and plan.share == pytest.approx(40 / 60)
    assert plan.waited == {}
    assert plan.busy == pytest.approx((3 + 10 + 5 + 80 + 160 + 1 + 2) / (60 * 64))


def test_one_cpu_does_one_after_the_other():
    plan = simulate(SHARED + road("a"), [Node(1, 64 * GB)])
    assert plan.seconds == 3 + 10 + 5 + 80 + 160 + 1 + 2
    assert plan.busy == pytest.approx(1)
    assert plan.bottleneck == "segment" and plan.waited["segment"] > 0


def test_nodes_share_the_work_and_samples_are_independent():
    tasks = cohort(SHARED + road("a"), 2)
    assert {t.sample for t in tasks} == {"", "0", "1"} and len(tasks) == 2 + 2 * 12
    assert simulate(tasks, [Node(8, 64 * GB)] * 2).seconds == 60
    assert simulate(tasks, [Node(1, 64 * GB)] * 2).seconds >= (3 + 2 * 258) / 2


def test_memory_and_gpus_bound_what_runs_at_once():
    tasks = SHARED + [Task("CONVERT", "a", 10), Task("TILE", "a", 5)] + [Task("SEGMENT", "a", 40, memory=10 * GB, gpus=1)] * 4
    assert simulate(tasks, [Node(8, 64 * GB, 4)]).seconds == 58
    assert simulate(tasks, [Node(8, 64 * GB, 1)]).seconds == 18 + 160
    assert simulate(tasks, [Node(8, 20 * GB, 4)]).seconds == 18 + 80
    plan = simulate(tasks, [Node(8, 64 * GB, 1)])
    assert plan.bottleneck == "segment" and plan.share == pytest.approx(160 / 178)
    with pytest.raises(InputError, match="SEGMENT: asks for 1 CPUs, 10.7 GB and 1 GPUs, which no node has"):
        simulate(tasks, [Node(8, 64 * GB, 0)])


def test_a_cohort_is_trained_before_any_of_it_is_segmented():
    tasks = road("a") + road("b") + [Task("CURATE", "a", 1), Task("CURATE", "b", 30), Task("TRAIN", "", 100)]
    assert simulate(tasks, [Node(64, 64 * GB)]).seconds == 10 + 5 + 20 + 1 + 30 + 100 + 40 + 2


TRACE = "task_id\tprocess\ttag\tstatus\trealtime\tcpus\tpeak_rss\n"


def test_a_trace(tmp_path):
    path = tmp_path / "trace.tsv"
    path.write_text(
        TRACE + "1\tISTSEG:PREFLIGHT\t2 samples\tCOMPLETED\t2.5s\t1\t300 MB\n2\tISTSEG:SEGMENT\ta 0\tFAILED\t1h\t4\t1 GB\n"
        "3\tISTSEG:SEGMENT\ta 0\tCACHED\t1h 2m 3s\t4\t1.5 GB\n4\tISTSEG:TRAIN\tcohort\tCOMPLETED\t720ms\t8\t-\n"
    )
    assert read_trace(path, gpus=True) == [
        Task("PREFLIGHT", "", 2.5, 1, 300 << 20),
        Task("SEGMENT", "a", 3723, 4, 3 << 29, 1),
        Task("TRAIN", "", 0.72, 8, 0, 1),
    ]
    told = CliRunner().invoke(app, ["schedule", "--trace", str(path), "--samples", "8", "--nodes", "2"])
    assert told.exit_code == 0 and "bottleneck segment" in told.output and "wall time 1.03 h" in told.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the columns"),
        (TRACE, "lacks the columns"),
        (TRACE + "1\tX\ta\tCOMPLETED\t1s\t1\t1 MB\n", "none of this pipeline"),
        (TRACE + "1\tTILE\ta\tFAILED\t1s\t1\t-\n", "no task"),
    ],
)
def test_what_is_no_trace(tmp_path, text, message):
    (tmp_path / "t").write_text(text)
    with pytest.raises(InputError, match=message):
        read_trace(tmp_path / "t")


def test_every_process_of_the_pipeline_has_its_place():
    from conftest import ROOT
    from istseg.schedule import PARENTS

    assert {p.parent.name.upper() for p in (ROOT / "modules").glob("*/main.nf")} - {"CANARY"} == set(PARENTS), "but for the run that tries a site"
