"""Split without leakage, targets of patches, training: it learns, repeats itself, and goes on after a kill."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from istseg.errors import InputError
from istseg.network import training, weights
from istseg.network.dataset import MIN_PATCHES, PatchRef, PatchStore, find_patches, outside, split, thin, window_box
from istseg.network.inference import computing_in
from istseg.network.training import Recipe, fit, rate_at
from training_fixtures import OVERLAP, SIZE, STRIDE, patch_of, tissue, write_patches

TINY = Recipe(epochs=3, batch_size=2, crop_wpx=64, learning_rate=1e-3, seed=1, freeze_norm=False)


def ref(gy, gx, sample="s"):
    return PatchRef(sample, (gy, gx), Path(f"{sample}_{gy}_{gx}.npz"), OVERLAP, 0.253, 1)


def grid(n, sample="s"):
    return [ref(gy, gx, sample) for gy in range(n) for gx in range(n)]


@pytest.mark.parametrize("n", [2, 3, 8, 20])
def test_split_uses_every_patch_once_and_gives_each_part_some(n):
    parts = split(grid(n), 0.05, 0.1, seed=3)
    used = parts.train + parts.validation + parts.holdout
    assert sorted(used) == grid(n) and len(set(used)) == n * n
    assert parts.validation and parts.holdout and parts.train
    if n == 20:
        assert len(parts.holdout) / n**2 == pytest.approx(0.1, abs=0.03) and len(parts.validation) / n**2 == pytest.approx(0.05, abs=0.03)


def test_split_takes_blocks_of_neighbours():
    holdout = {r.window for r in split(grid(20), 0.05, 0.1, seed=3).holdout}
    with_neighbour = [(gy, gx) for gy, gx in holdout if {(gy + 1, gx), (gy - 1, gx), (gy, gx + 1), (gy, gx - 1)} & holdout]
    assert len(with_neighbour) > 0.8 * len(holdout)


def test_split_depends_on_the_seed_and_not_on_the_order():
    a, b = split(grid(8), 0.1, 0.1, 0), split(list(reversed(grid(8))), 0.1, 0.1, 0)
    assert a == b
    assert any(split(grid(8), 0.1, 0.1, s).holdout != a.holdout for s in (1, 2))


def test_split_holds_out_of_every_sample_in_proportion():
    refs = grid(10, "a") + grid(10, "b") + grid(10, "c")
    counts = Counter(r.sample for r in split(refs, 0.1, 0.2, 0).holdout)
    assert set(counts) == {"a", "b", "c"} and max(counts.values()) <= 2 * min(counts.values())


def test_too_few_patches_say_how_many_are_needed():
    with pytest.raises(InputError, match=f"only 3 training patches.*at least {MIN_PATCHES}"):
        split(grid(2)[:3], 0.05, 0.1, 0)


def test_no_pixel_of_a_validation_or_heldout_window_teaches():
    refs = grid(5)
    parts = split(refs, 0.1, 0.2, 1)
    free = parts.validation + parts.holdout
    side = 6 * STRIDE
    taught = np.zeros((side, side), bool)
    offset = STRIDE // 2
    for r in parts.train:
        y0, x0, y1, x1 = window_box(r, (SIZE, SIZE))
        taught[y0 + offset : y1 + offset, x0 + offset : x1 + offset] |= outside(r, (SIZE, SIZE), free)
    assert taught.any()
    for r in free:
        y0, x0, y1, x1 = window_box(r, (SIZE, SIZE))
        assert not taught[y0 + offset : y1 + offset, x0 + offset : x1 + offset].any()
    assert outside(parts.train[0], (SIZE, SIZE), [replace(r, sample="another") for r in refs]).all()


def test_thinning_is_even_over_samples():
    chosen = thin(grid(10, "a") + grid(10, "b"), 20)
    assert len(set(chosen)) == 20 and Counter(r.sample for r in chosen) == {"a": 10, "b": 10}
    assert thin(grid(2), 20) == grid(2)


def test_find_patches_reports_all_problems(tmp_path):
    write_patches(tmp_path / "a", 2)
    assert [r.window for r in find_patches([tmp_path / "a"])] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    patch_of(tissue(96, 96), 0, 0).write(tmp_path / "b" / "again.npz")
    (tmp_path / "b" / "broken.npz").write_bytes(b"PK no")
    (tmp_path / "b" / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "b" / "other.npz", x=np.zeros(3))
    with pytest.raises(InputError) as error:
        find_patches([tmp_path / "a", tmp_path / "b"])
    assert len(error.value.problems) == 4
    assert sum("second patch" in p for p in error.value.problems) == 1


def test_targets_are_those_of_whole_cells_and_cut_cells_do_not_teach(tmp_path):
    t = tissue(300, 300)
    patch = patch_of(t, 1, 1, drop=0)
    patch.write(tmp_path / "p.npz")
    store = PatchStore(tmp_path)
    assert store.add(find_patches([tmp_path])[0])
    example = store.example(0, 0)
    edge = np.zeros((SIZE, SIZE), bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    cut = np.isin(patch.labels[0], np.unique(patch.labels[0][edge & (patch.labels[0] > 0)]))
    assert cut.any() and not example.teach[cut].any()
    assert example.teach[(patch.labels[0] > 0) & ~cut].all() and np.array_equal(example.cell, patch.labels[0] > 0)
    whole_cell = patch.labels[0] == np.unique(patch.labels[0][~cut & (patch.labels[0] > 0)])[0]
    yy, xx = np.nonzero(whole_cell)
    towards = np.array([yy.mean() - yy, xx.mean() - xx])
    far = np.linalg.norm(towards, axis=0) > 3
    cosine = (example.flow[:, whole_cell] * towards / np.maximum(np.linalg.norm(towards, axis=0), 1)).sum(0)[far]
    assert cosine.mean() > 0.95
    assert np.allclose(example.stains, patch.normalised())


def test_a_patch_that_may_not_teach_is_not_kept(tmp_path):
    patch = patch_of(tissue(96, 96), 0, 0)
    patch.teach[:] = False
    patch.write(tmp_path / "p.npz")
    store = PatchStore(tmp_path)
    assert not store.add(find_patches([tmp_path])[0]) and len(store) == 0


def test_the_rate_rises_and_falls():
    rates = [rate_at(s, 200, 1e-3) for s in range(200)]
    assert rates[0] < 2e-4 and max(rates) == pytest.approx(1e-3) and rates[-1] < 2e-5
    assert np.argmax(rates) == pytest.approx(10, abs=1)
    assert rate_at(0, 1, 1e-3) == 1e-3


def test_an_epoch_covers_the_patches_once_and_batches_are_of_one_kind(tmp_path):
    t = tissue(300, 300)
    store = PatchStore(tmp_path)
    for i in range(3):
        patch = patch_of(t, 1, i)
        if i == 2:
            patch.stains, patch.ranges, patch.stain_names = patch.stains[:1], patch.ranges[:1], patch.stain_names[:1]
        patch.write(tmp_path / f"{i}.npz")
    for r in find_patches([tmp_path]):
        store.add(r)
    batches = training._batches(store, replace(TINY, batch_size=3), 1)
    assert Counter(i for b in batches for i, _ in b) == {0: 4, 1: 4, 2: 4}
    assert all(len({store.kind(i) for i, _ in b}) == 1 and len(b) <= 3 for b in batches)
    assert batches != training._batches(store, replace(TINY, batch_size=3), 2)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    write_patches(folder / "p", 2)
    refs = find_patches([folder / "p"])
    train, validation = PatchStore(folder / "t"), PatchStore(folder / "v")
    for store, some in ((train, refs[:2]), (validation, refs[3:])):
        store.folder.mkdir()
        for r in some:
            store.add(r)
    return train, validation


def train_from_scratch(stores, checkpoint, recipe=TINY):
    model, _ = weights.new(5)
    return fit(model, *stores, recipe, "working", "cpu", checkpoint)


@pytest.fixture(scope="module")
def fitted(stores, tmp_path_factory):
    return train_from_scratch(stores, tmp_path_factory.mktemp("c") / "c.pt")


def test_it_learns(fitted):
    assert fitted.epochs[-1]["validation_loss"] < 0.6 * fitted.start["validation_loss"]
    assert fitted.epochs[fitted.best_epoch - 1]["validation_loss"] == min(e["validation_loss"] for e in fitted.epochs)
    assert [e["epoch"] for e in fitted.epochs] == [1, 2, 3]


def test_the_same_seed_gives_the_same_weights(fitted, stores, tmp_path):
    again = train_from_scratch(stores, tmp_path / "c.pt")
    assert all(torch.equal(v, again.state[k]) for k, v in fitted.state.items())
    other = train_from_scratch(stores, tmp_path / "d.pt", replace(TINY, seed=2, epochs=1))
    assert any(not torch.equal(v, other.state[k]) for k, v in fitted.state.items())


def test_it_goes_on_after_a_kill_to_the_same_result(fitted, stores, tmp_path, monkeypatch):
    saved = training._save

    def save_then_die(checkpoint, identity, state, model, optimiser):
        saved(checkpoint, identity, state, model, optimiser)
        if state["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        train_from_scratch(stores, tmp_path / "c.pt")
    monkeypatch.setattr(training, "_save", saved)
    resumed = train_from_scratch(stores, tmp_path / "c.pt")
    assert len(resumed.epochs) == 3 and resumed.best_epoch == fitted.best_epoch
    assert all(torch.equal(v, resumed.state[k]) for k, v in fitted.state.items())
    no_times = [{k: v for k, v in e.items() if k != "seconds"} for e in resumed.epochs]
    assert no_times == [{k: v for k, v in e.items() if k != "seconds"} for e in fitted.epochs]


def test_a_checkpoint_of_another_training_is_not_used(stores, tmp_path, caplog):
    train_from_scratch(stores, tmp_path / "c.pt", replace(TINY, epochs=1))
    other = train_from_scratch(stores, tmp_path / "c.pt", replace(TINY, epochs=1, seed=9))
    assert "another training" in caplog.text and len(other.epochs) == 1


def test_a_checkpoint_of_another_precision_or_version_is_not_used(stores, tmp_path, caplog, monkeypatch):
    once = replace(TINY, epochs=1)
    with computing_in(torch.float32):
        train_from_scratch(stores, tmp_path / "c.pt", once)
        train_from_scratch(stores, tmp_path / "c.pt", once)
        assert "another training" not in caplog.text
    with computing_in(torch.bfloat16):
        train_from_scratch(stores, tmp_path / "c.pt", once)
        assert caplog.text.count("precision, or the version") == 1
        monkeypatch.setattr(training, "__version__", "9.9.9")
        train_from_scratch(stores, tmp_path / "c.pt", once)
        assert caplog.text.count("precision, or the version") == 2


def test_frozen_statistics_stay_and_pieces_add_up_to_the_batch(stores, tmp_path, monkeypatch):
    recipe = replace(TINY, freeze_norm=True, epochs=1, learning_rate=1e-4)
    model, _ = weights.new(5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    monkeypatch.setattr(training, "autocast", lambda device: torch.autocast("cpu", enabled=False))
    in_pieces = fit(model, *stores, recipe, "working", "cpu", tmp_path / "a.pt").state
    assert all(torch.equal(v, before[k]) for k, v in in_pieces.items() if "running" in k)
    assert any(not torch.equal(v, before[k]) for k, v in in_pieces.items() if "running" not in k)
    monkeypatch.setattr(training, "CPU_PIECE", 8)
    at_once = fit(weights.new(5)[0], *stores, recipe, "working", "cpu", tmp_path / "b.pt").state
    moved = sum(float((v - before[k]).norm()) for k, v in in_pieces.items() if v.is_floating_point())
    apart = sum(float((v - at_once[k]).norm()) for k, v in in_pieces.items() if v.is_floating_point())
    assert apart < 0.1 * moved


def test_patience_stops(stores, tmp_path, monkeypatch):
    losses = iter([9.0, 3.0, 2.0, 2.5, 2.6, 1.0])
    monkeypatch.setattr(training, "validate", lambda *_: {"validation_loss": next(losses)})
    monkeypatch.setattr(training, "_epoch", lambda *_: (1.0, 1e-3))
    fitted = fit(weights.new(5)[0], *stores, replace(TINY, freeze_norm=True, epochs=9, patience=2), "working", "cpu", tmp_path / "a.pt")
    assert [e["validation_loss"] for e in fitted.epochs] == [3.0, 2.0, 2.5, 2.6] and fitted.best_epoch == 2 and fitted.start["validation_loss"] == 9.0


def test_divergence_is_an_error_that_says_what_to_do(stores, tmp_path):
    with pytest.raises(InputError, match="diverged in epoch 1.*lower --learning-rate"):
        fit(weights.new(5)[0], *stores, replace(TINY, freeze_norm=True, learning_rate=1e4), "working", "cpu", tmp_path / "a.pt")


def test_a_crop_that_the_network_cannot_take_is_refused(stores, tmp_path):
    with pytest.raises(InputError, match="multiple of 8"):
        train_from_scratch(stores, tmp_path / "c.pt", replace(TINY, crop_wpx=100))
