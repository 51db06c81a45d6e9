"""The gate: scores under partial annotation by hand, and the decision."""

import numpy as np
import pytest
from scipy import ndimage

from istseg.artifacts.patches import Patch
from istseg.network.gate import compare, decide, foregone, noise
from istseg.network.tally import MIN_CELLS, Tally, judge
from training_fixtures import STRIDE, patch_of, tissue

SIZE = 96


def patch(curated, background, counts=None, nuclei=None, stand_ins=None):
    """A patch of (label, y0, x0, y1, x1) curated cells; P = cells and background boxes."""
    labels, teach = np.zeros((SIZE, SIZE), np.int32), np.zeros((SIZE, SIZE), bool)
    for label, y0, x0, y1, x1 in curated:
        labels[y0:y1, x0:x1] = label
    for y0, x0, y1, x1 in background:
        teach[y0:y1, x0:x1] = True
    teach |= labels > 0
    blank = np.zeros((SIZE, SIZE), np.uint16)
    return Patch(
        "s", (0, 0), 32, ["DAPI"], [(0.0, 1.0)], ["cells"], 0.253, blank[None], blank if counts is None else counts, labels[None], teach[None],
        None if stand_ins is None else [stand_ins], nuclei,
    )  # fmt: skip


def image(*rows):
    labels = np.zeros((SIZE, SIZE), np.int32)
    for label, y0, x0, y1, x1 in rows:
        labels[y0:y1, x0:x1] = label
    return labels


def judged(p, predicted):
    tally = Tally()
    judge(p, predicted, tally)
    return tally


def test_unlabelled_area_is_neither_right_nor_wrong():
    p = patch([(1, 20, 20, 30, 30), (2, 40, 20, 50, 30)], background=[(60, 16, 80, 80)])
    tally = judged(p, image((1, 20, 20, 30, 30), (2, 20, 60, 30, 70), (3, 65, 30, 75, 40)))
    assert (tally.total("tp"), tally.total("fn")) == (1, 1)
    assert tally.total("fp") == 1, "in background"
    assert tally.total("ignored") == 1, "in unlabelled area"
    assert tally.figures()["ap50"] == pytest.approx(1 / 3)


def test_a_merged_cell_is_wrong_and_a_split_one_too():
    p = patch([(1, 20, 20, 30, 30), (2, 20, 30, 30, 40), (3, 20, 40, 30, 50)], background=[])
    merged = judged(p, image((1, 20, 20, 30, 50)))
    assert (merged.total("tp"), merged.total("fn"), merged.total("fp")) == (0, 3, 1)
    p = patch([(1, 20, 20, 40, 40)], background=[])
    quarters = judged(p, image((1, 20, 20, 30, 30), (2, 20, 30, 30, 40), (3, 30, 20, 40, 30), (4, 30, 30, 40, 40)))
    assert (quarters.total("tp"), quarters.total("fn"), quarters.total("fp")) == (0, 1, 4)


def test_stand_in_nuclei_are_not_taken_for_cells():
    p = patch([(1, 20, 20, 30, 30), (9, 50, 50, 56, 56)], background=[], stand_ins=[9])
    tally = judged(p, image((1, 20, 20, 30, 30), (2, 45, 45, 61, 61), (3, 70, 70, 76, 76)))
    assert (tally.total("tp"), tally.total("fn"), tally.total("fp")) == (1, 0, 0)
    nucleus_sized = judged(p, image((1, 20, 20, 30, 30), (2, 50, 50, 56, 56)))
    assert (nucleus_sized.total("tp"), nucleus_sized.total("fp")) == (1, 0), "a cell as small as the nucleus is not judged either"


def test_cells_of_the_margin_belong_to_the_neighbour():
    p = patch([(1, 4, 40, 12, 50), (2, 20, 20, 30, 30)], background=[(0, 0, 4, 96)])
    tally = judged(p, image((1, 0, 60, 3, 70), (2, 20, 20, 30, 30)))
    assert (tally.total("tp"), tally.total("fn"), tally.total("fp"), tally.total("predicted")) == (1, 0, 0, 1)


def test_boundary_and_best_iou_by_cell():
    p = patch([(1, 20, 20, 40, 40), (2, 50, 50, 70, 70)], background=[])
    tally = judged(p, image((1, 20, 20, 40, 40)))
    assert tally.by_square("best_iou").sum() == tally.by_square("boundary_iou").sum() == tally.total("curated") / 2 == 1
    assert 0 < judged(p, image((1, 20, 20, 40, 42))).value("boundary_iou") < 0.5


def test_rates_by_nuclei_and_transcripts():
    nuclei = image((1, 22, 22, 28, 28), (2, 42, 22, 48, 28), (3, 62, 22, 68, 28), (4, 62, 32, 68, 38))
    counts = np.zeros((SIZE, SIZE), np.uint16)
    counts[nuclei > 0] = 1
    counts[22, 62] = 2
    cells = image((1, 20, 20, 30, 30), (2, 45, 20, 55, 30), (3, 60, 20, 70, 40), (4, 20, 60, 30, 70))
    figures = judged(patch([], [], counts, nuclei), cells).figures()
    assert figures["predicted_cells"] == 4
    assert figures["inconsistent_rate"] == 0.5, "one cuts a nucleus, one holds two"
    assert figures["spurious_below_transcripts"] == 36 and figures["spurious_rate"] == 0.25, "one without nucleus has 2 transcripts"
    assert figures["ap50"] is None and figures["curated_cells"] == 0


def test_without_nuclei_transcripts_alone_speak():
    counts = np.zeros((SIZE, SIZE), np.uint16)
    counts[20:30, 20:30] = 1
    figures = judged(patch([(1, 20, 20, 30, 30)], [], counts), image((1, 20, 20, 30, 30), (2, 50, 50, 60, 60))).figures()
    assert figures["inconsistent_rate"] is None and figures["spurious_rate"] == 0.5


def test_a_perfect_and_an_empty_prediction_of_tissue():
    t = tissue(300, 300)
    p = patch_of(t, 1, 1)
    y0 = x0 = 96 - 16
    truth = t.cells[y0 : y0 + 128, x0 : x0 + 128]
    perfect = judged(p, truth).figures()
    assert perfect["ap50"] == perfect["mean_best_iou"] == perfect["boundary_iou"] == 1 and perfect["inconsistent_rate"] == 0
    empty = judged(p, np.zeros_like(truth)).figures()
    assert empty["ap50"] == 0 and empty["spurious_rate"] is None
    assert "ap50 1.000 → 0.000" in compare(perfect, empty, {})[1]


BASE = {"ap50": 0.7, "boundary_iou": 0.5, "spurious_rate": 0.1, "inconsistent_rate": 0.1, "curated_cells": 200, "predicted_cells": 300}


@pytest.mark.parametrize(
    ("change", "better", "worse"),
    [
        ({"ap50": 0.75}, ["ap50"], []),
        ({"spurious_rate": 0.05}, ["spurious_rate"], []),
        ({"ap50": 0.75, "inconsistent_rate": 0.15}, ["ap50"], ["inconsistent_rate"]),
        ({"ap50": 0.6, "boundary_iou": 0.65}, ["boundary_iou"], ["ap50"]),
        ({"ap50": 0.705, "spurious_rate": 0.105}, [], []),
        ({"ap50": 0.72}, [], []),
        ({"boundary_iou": 0.58}, [], []),
        ({"boundary_iou": 0.58, "shared_cells": 40, "shared_cells_found": 0.6, "shared_cells_found_by_teacher": 0.7}, ["boundary_iou"], []),
        ({"boundary_iou": 0.58, "shared_cells": 40, "shared_cells_found": 0.7, "shared_cells_found_by_teacher": 0.7}, [], []),
        ({"boundary_iou": 0.65}, ["boundary_iou"], []),
        ({"inconsistent_rate": None, "ap50": 0.8}, ["ap50"], ["inconsistent_rate"]),
        ({"density_in_cells": None, "ap50": 0.8}, ["ap50"], ["density_in_cells"]),
    ],
)
def test_what_counts_as_better_and_worse(change, better, worse):
    checks = {name: value for name, value in change.items() if name.startswith("shared")}
    found = compare(BASE | {"density_in_cells": 0.8} | checks, BASE | {"density_in_cells": 0.8} | change, {})
    assert [[text.split()[0] for text in part] for part in found] == [better, worse]


def test_a_difference_within_its_noise_does_not_count():
    change = {"ap50": 0.75, "spurious_rate": 0.15}
    assert compare(BASE, BASE | change, {"ap50": 0.06, "spurious_rate": 0.06}) == ([], [])
    assert [len(part) for part in compare(BASE, BASE | change, {"ap50": 0.04, "spurious_rate": 0.04})] == [1, 1]


def test_a_figure_that_neither_has_does_not_count():
    base = BASE | {"inconsistent_rate": None}
    assert compare(base, base | {"ap50": 0.8}, {})[1] == []


@pytest.mark.parametrize(
    ("figure", "good", "bad"),
    [("spurious_rate", 0.1, 0.9), ("inconsistent_rate", 0.1, 0.9), ("cells_without_nucleus", 0.3, 0.9), ("density_in_cells", 0.8, 0.1)],
)
def test_limits_where_the_base_predicts_no_cell(figure, good, bad):
    base = BASE | {"ap50": 0.0, "boundary_iou": 0.0, "spurious_rate": None, "inconsistent_rate": None}
    tuned = BASE | {"density_in_cells": 0.8, "cells_without_nucleus": 0.3}
    assert compare(base, tuned | {figure: good}, {})[1] == []
    (reason,) = compare(base, tuned | {figure: bad}, {})[1]
    assert figure in reason and "the limit is" in reason


def tally_of(**counts):
    """Of one patch; each list counts square by square, None stands for what is not given."""
    n = max(len(numbers) for numbers in counts.values())
    filled = {count: np.pad(np.asarray(numbers, float), (0, n - len(numbers))) for count, numbers in counts.items()}
    return Tally(
        patches=[{"predicted": np.zeros(n), **{count: np.zeros(n) for count in ("tp", "fn", "fp", "boundary_iou", "shared")}, **filled}],
        bare=[(np.zeros(0, int), np.zeros(0))],
    )


def cells_of(tp, fp, fn):
    """Curated cells one by one in as many squares, the matched ones first; a false positive lies at each of the last missed cells."""
    n = tp + fn
    at = np.arange(n)
    return tally_of(tp=at < tp, fn=at >= tp, fp=at >= n - fp, predicted=np.ones(n))


def test_one_cell_does_not_decide_and_many_do():
    base = {"s": cells_of(20, 1, 10)}
    accepted, reason = decide(base, {"s": cells_of(21, 0, 9)})
    assert not accepted and "nothing by more than the margin and the noise" in reason
    assert decide(base, {"s": cells_of(26, 0, 4)})[0]
    assert not decide(base, {"s": cells_of(17, 1, 13)})[1].startswith("the base is kept: fine-tuning made worse")
    assert "made worse ap50" in decide(base, {"s": cells_of(12, 1, 18)})[1]


def test_the_noise_shrinks_with_the_hold_out_and_is_that_of_repeated_draws():
    small, large = (noise(cells_of(7 * k, k, 3 * k), cells_of(8 * k, k, 2 * k))["ap50"] for k in (5, 500))
    assert small == pytest.approx(10 * large, rel=0.02) and large < 0.02
    rng = np.random.default_rng(0)
    base, tuned = rng.random(300) < 0.7, rng.random(300) < 0.8
    fp = rng.random((2, 300)) < 0.2

    def difference(i):
        return tuned[i].sum() / (len(i) + fp[1, i].sum()) - base[i].sum() / (len(i) + fp[0, i].sum())

    drawn = np.std([difference(rng.integers(0, 300, 300)) for _ in range(4000)])
    assert noise(tally_of(tp=base, fn=~base, fp=fp[0]), tally_of(tp=tuned, fn=~tuned, fp=fp[1]))["ap50"] == pytest.approx(2 * drawn, rel=0.05)


def test_a_few_cells_of_one_side_say_little():
    """No inconsistent cell among three is no rate of zero."""
    few, many = tally_of(predicted=[1, 1, 1], inconsistent=[0]), tally_of(predicted=np.ones(300), inconsistent=np.ones(30))
    few.patches[0] = {count: np.pad(numbers, (0, 297)) for count, numbers in few.patches[0].items()}
    assert noise(few, many)["inconsistent_rate"] == pytest.approx(1 / 3)


def test_a_ruined_sample_of_a_cohort_is_not_hidden():
    base = {"large": cells_of(630, 90, 270), "small": cells_of(70, 10, 30)}
    tuned = {"large": cells_of(765, 45, 135), "small": cells_of(20, 10, 80)}
    accepted, reason = decide(base, tuned)
    assert not accepted and "ap50 0.636 → 0.182 in the sample small" in reason and "better: ap50" in reason
    assert decide(base, tuned | {"small": cells_of(72, 10, 28)})[0]
    few = {"large": base["large"], "small": cells_of(MIN_CELLS - 3, 0, 2)}
    assert decide(few, few | {"large": tuned["large"], "small": cells_of(0, 0, MIN_CELLS - 1)})[0], "nine cells judge no sample"


def test_labels_of_two_samples_or_stains_displaced_against_each_other_are_seen():
    rng = np.random.default_rng(0)
    for keys in ([("a", "cells_x"), ("b", "cells_x")], [("a", "cells_x"), ("a", "cells_y")]):
        base = {sample: cells_of(70, 10, 30) for sample, _ in keys}
        for (sample, layer), shift in zip(keys, (2, -2), strict=True):
            base[sample].offsets_um[sample, layer] = (rng.normal(0, 0.5, (50, 2)) + [0, shift]).tolist()
        reason = foregone(base)
        assert "beside their nuclei" in reason and any(f"{sample}, {layer}" in reason for sample, layer in keys)
        for (sample, layer), shift in zip(keys, (2, -2), strict=True):
            base[sample].offsets_um[sample, layer] = (rng.normal(0, 0.5, (50, 2)) + [0, shift / 8]).tolist()
        assert foregone(base) is None
    scattered = cells_of(70, 10, 30)
    scattered.offsets_um["a", "x"] = [(0.9 + 3 * (-1) ** i, 0.0) for i in range(10)]
    assert foregone({"a": scattered}) is None, "ten cells that lie anywhere have no direction"


def test_too_few_curated_cells_are_foregone():
    assert "only 9 curated cells" in foregone({"a": cells_of(5, 0, 2), "b": cells_of(2, 0, 0)})
    assert foregone({"a": cells_of(5, 0, 2), "b": cells_of(3, 0, 0)}) is None


def test_labels_noisier_than_the_base_decide_nothing():
    first, second = image((1, 20, 20, 40, 40), (2, 50, 50, 70, 70)), image((1, 20, 20, 40, 25), (2, 50, 50, 70, 70), (3, 20, 60, 30, 70))
    p = patch([], [])
    p.labels, p.teach = np.stack((first, second)), np.stack((first > 0, second > 0))
    p.label_names = ["cells_a", "cells_b"]
    figures = judged(p, first).figures()
    assert figures["shared_cells"] == 4, "cell 3 is labelled by one stain only"
    assert figures["shared_cells_found_by_teacher"] == 0.5 and figures["shared_cells_found"] == 0.75


def test_labels_are_noisier_than_the_base_only_beyond_the_noise():
    def reason(n, by_model, by_teacher):
        at = np.arange(n)
        return foregone({"s": tally_of(tp=np.ones(n), shared=np.ones(n), shared_by_model=at < by_model, shared_by_teacher=at < by_teacher)})

    assert "noisier than the base" in reason(40, 30, 20)
    assert reason(40, 16, 20) is None, "labels that agree with each other can show a gain"
    assert reason(40, 40, 40) is None, "a perfect teacher is not noisier than a perfect base"
    assert reason(40, 21, 20) is None, "one cell"
    assert reason(40, 40, 0) and reason(9, 9, 0).startswith("the base is kept: only 9 curated"), "nine cells say nothing about the labels"


def grow(labels, by):
    """Labels `by` pixels wider (narrower when negative), no label over another."""
    distance, (iy, ix) = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    if by > 0:
        return np.where(distance <= by, labels[iy, ix], 0)
    return np.where(ndimage.distance_transform_edt(labels > 0) > -by, labels, 0)


def nucleus_sized(t):
    return grow(t.nuclei, 2)


def too_narrow(t):
    return np.maximum(grow(t.cells, -4), grow(t.nuclei, 1) * (t.cells > 0))


def too_wide(t):
    return grow(t.cells, 6)


def shifted(t):
    """By 2 µm."""
    return np.roll(t.cells, 8, 1)


def in_pairs(t):
    """Neighbours in a row of the grid share a label and the gap between them."""
    labels = np.where(t.cells > 0, (t.cells + 1) // 2, 0)
    closed = ndimage.grey_closing(labels, (1, 15))
    return np.where(ndimage.grey_erosion(np.where(labels, labels, 99999), (1, 15)) >= closed, closed, labels)


def cut(t):
    """A line beside the nucleus cuts every cell."""
    labels = t.cells.copy()
    for i, box in enumerate(ndimage.find_objects(t.nuclei), 1):
        if box is not None:
            below = labels[box[0].stop :]
            below[below == i] = 5000 + i
    return labels


def held_against(labels, base, tuned):
    """Figures of two predictions on patches whose curated cells are `labels`, with one membrane stain."""
    t = tissue(4 * STRIDE, 4 * STRIDE)
    tallies = Tally(), Tally()
    for gy in range(4):
        for gx in range(4):
            patch = patch_of(t, gy, gx, cells=labels(t))
            for tally, predicted in zip(tallies, (base(t), tuned(t)), strict=True):
                judge(patch, patch_of(t, gy, gx, cells=predicted, drop=0).labels[0], tally)
    return [{"s": tally} for tally in tallies]


def truth(t):
    return t.cells


def fair(t):
    """As a usable base: some cells missed, outlines a little wide."""
    return np.where(t.cells % 8 == 0, 0, grow(t.cells, 1))


def bloated(t):
    """As a base that takes a dim surrounding for cells: background inside, cells touch."""
    return grow(t.cells, 5)


@pytest.mark.parametrize("poison", [nucleus_sized, too_narrow, too_wide, shifted, in_pairs, cut])
def test_a_model_that_has_learnt_consistently_wrong_labels_is_refused(poison):
    """It agrees with the held-out labels perfectly: only nuclei and transcripts can tell."""
    base, tuned = held_against(poison, fair, poison)
    before, after = base["s"].figures(), tuned["s"].figures()
    assert after["ap50"] > 0.9 > before["ap50"] or after["boundary_iou"] > before["boundary_iou"] + 0.3
    accepted, reason = decide(base, tuned)
    assert not accepted and ("made worse" in reason or "beside their nuclei" in reason), reason


def test_displaced_labels_are_refused_even_if_the_model_is_better():
    base, tuned = held_against(shifted, in_pairs, truth)
    assert base["s"].figures()["label_offset_um"] == pytest.approx(2, abs=0.3)
    accepted, reason = decide(base, tuned)
    assert not accepted and "beside their nuclei" in reason
    assert held_against(truth, fair, truth)[0]["s"].figures()["label_offset_um"] < 0.3


@pytest.mark.parametrize("base", [fair, bloated, nucleus_sized, in_pairs, shifted])
def test_a_model_that_has_learnt_the_truth_is_accepted(base):
    accepted, reason = decide(*held_against(truth, base, truth))
    assert accepted, reason


def test_the_reflection_outside_the_mosaic_does_not_count():
    nuclei = image((1, 22, 22, 28, 28), (2, 44, 44, 48, 48))
    counts = np.zeros((SIZE, SIZE), np.uint16)
    counts[20:30, 20:30] = counts[70:80, 20:30] = 1
    p = patch([(1, 20, 20, 30, 30)], [], counts, nuclei)
    p.mosaic_box = (10, 0, 50, 90)
    # 1 has its nucleus, 2 is the reflection of 1, of 3 the half with the nucleus lies inside.
    cells = image((1, 20, 20, 30, 30), (2, 70, 20, 80, 30), (3, 42, 42, 58, 50))
    figures = judged(p, cells).figures()
    assert figures["predicted_cells"] == 2 and figures["transcripts_in_cells"] == 1
    assert figures["cells_without_nucleus"] == figures["spurious_rate"] == 0 and figures["nuclei_in_own_cell"] == 1
    assert figures["density_in_cells"] == pytest.approx((100 / 164) / (36 / 52))
    p.mosaic_box = None
    assert judged(p, cells).figures()["predicted_cells"] == 3


def test_guards_by_hand():
    nuclei = image((1, 22, 22, 28, 28), (2, 42, 22, 48, 28), (3, 62, 22, 68, 28), (4, 62, 32, 68, 38))
    counts = np.zeros((SIZE, SIZE), np.uint16)
    counts[image((1, 20, 20, 30, 30), (2, 40, 20, 50, 30), (3, 60, 20, 70, 40)) > 0] = 1
    cells = image((1, 20, 20, 30, 30), (3, 60, 20, 70, 40), (4, 20, 60, 30, 70))
    figures = judged(patch([], [], counts, nuclei), cells).figures()
    assert figures["nuclei_in_own_cell"] == 0.25, "one of four is alone in a cell, two share one"
    assert figures["transcripts_in_cells"] == 0.75
    assert figures["cells_without_nucleus"] == pytest.approx(1 / 3)
    assert figures["density_in_cells"] == 0.75, "cell 4 is empty; nuclei hold one per pixel"


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        ({"nuclei_in_own_cell": 0.86}, False),
        ({"nuclei_in_own_cell": 0.88}, True),
        ({"transcripts_in_cells": 0.74}, False),
        ({"density_in_cells": 0.84}, False),
        ({"cells_without_nucleus": 0.21}, False),
        ({"nuclei_in_own_cell": 0.99, "transcripts_in_cells": 0.95, "density_in_cells": 1.5, "cells_without_nucleus": 0.0}, True),
    ],
)
def test_guards_refuse_and_never_speak_for_a_model(change, accepted):
    guards = {"nuclei_in_own_cell": 0.9, "transcripts_in_cells": 0.8, "density_in_cells": 1.0, "cells_without_nucleus": 0.1}
    better, worse = compare(BASE | guards, BASE | guards | change, {})
    assert not better and bool(worse) is not accepted
