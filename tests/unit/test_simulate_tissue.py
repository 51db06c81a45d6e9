"""The simulated plane: independent of order, without seams."""

import numpy as np
import pytest
from skimage.measure import label as connected

from istseg.simulate import seeds as seeding
from istseg.simulate.panel import GENES, TYPES, profiles
from istseg.simulate.randomness import Field, generator
from istseg.simulate.recipe import Recipe
from istseg.simulate.seeds import PIXEL_UM, Layout, Seeds, block_box, block_of, blocks_of, name_of, number_of
from istseg.simulate.tissue import Tissue


def recipe(**changes):
    values = {
        "width_um": 160.0, "height_um": 150.0, "planes": 1, "stains": ("Cellbound1", "Cellbound2"), "degraded_fraction": 0.5, "degraded_contour": 0.4,
        "transcripts_per_um2": 1.0, "empty_fraction": 0.1, "seed": 2, "depth": 1,
    }  # fmt: skip
    return Recipe(**{**values, **changes})


@pytest.fixture(scope="module")
def made():
    return recipe()


def test_order_of_blocks_does_not_matter(made):
    blocks = [(by, bx) for by in range(2) for bx in range(2)]
    other = recipe()
    for by, bx in reversed(blocks):
        other.molecules.block(by, bx)
    for by, bx in blocks:
        for a, b in zip(made.tissue.block(by, bx), other.tissue.block(by, bx), strict=True):
            assert (a == b).all()
        assert (made.tissue.vendor(by, bx) == other.tissue.vendor(by, bx)).all()
        for key, values in made.molecules.block(by, bx).items():
            assert (values == other.molecules.block(by, bx)[key]).all()


def test_every_cell_and_nucleus_is_one_piece_across_blocks(made):
    box = (0, 0, 690, 740)
    numbers, nuclei = made.tissue.labels(box)
    assert blocks_of(box) == (0, 0, 2, 2)
    whole = np.setdiff1d(np.unique(numbers), np.concatenate([numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1]]))
    assert len(whole) > 80
    seam = 512 - 112
    crossing = set(numbers[seam - 1]) & set(numbers[seam]) & set(whole)
    assert len(crossing) > 3
    inside = np.where(np.isin(numbers, whole), numbers, 0)
    assert connected(inside, connectivity=1).max() == len(whole)
    both = np.where((nuclei > 0) & (inside > 0), inside.astype(np.int64) * 2 + nuclei, 0)
    _, codes = np.unique(both, return_inverse=True)
    codes = codes.reshape(both.shape)
    assert connected(codes, connectivity=1).max() == codes.max()


def test_light_has_no_seam(made):
    """A box in one piece and in two gives the same light."""
    whole = made.optics.light((100, 100, 300, 400))
    left, right = made.optics.light((100, 100, 300, 237)), made.optics.light((100, 237, 300, 400))
    assert np.allclose(whole, np.concatenate([left, right], axis=-1), atol=2e-4)


def test_every_ring_stain_loses_its_own_arc(made):
    intact = recipe(degraded_contour=0.0)
    box = (50, 50, 450, 450)
    lost = intact.optics.light(box)[0] - made.optics.light(box)[0]
    assert np.abs(lost[0]).max() < 1e-5  # DAPI
    first, second = (lost[i] > 0.25 * np.percentile(intact.optics.light(box)[0, i], 99) for i in (1, 2))
    assert first.sum() > 500 and second.sum() > 300
    assert (first & second).sum() < 0.6 * min(first.sum(), second.sum())


def test_autofluorescence_shines_in_every_stain_and_only_in_tissue():
    dark, bright = recipe(empty_fraction=0.5), recipe(empty_fraction=0.5, autofluorescence=2.0)
    box = (50, 50, 650, 650)
    dapi, first, second = (bright.optics.light(box) - dark.optics.light(box))[0]
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.99 and np.corrcoef(first.ravel(), dapi.ravel())[0, 1] > 0.95
    ys, xs = ((np.arange(a, b) + 0.5) * PIXEL_UM for a, b in ((50, 650), (50, 650)))
    empty = bright.tissue.layout.empty_grid(ys, xs)
    assert empty.any() and first[~empty].mean() > 1.5 and first[~empty].mean() > 4 * first[empty].mean()
    assert dapi.max() < 0.2 * first.max()


def test_batches_give_the_same_as_one_candidate_after_the_other():
    layout = Layout(0, 100, 100, 0.0)
    plane = Seeds(0, layout, 0.0)
    candidates = plane._candidates(generator(0, "seeds", 0, 0), 0, 0, 500)
    conflicts = seeding._conflicts(candidates, candidates)
    taken = []
    for i in range(500):
        if not conflicts[i, taken].any():
            taken.append(i)
    assert (seeding._adsorb(candidates)["x"] == candidates["x"][taken]).all()


def test_no_two_seeds_conflict_across_blocks():
    plane = Seeds(3, Layout(3, 300, 300, 0.0), 0.0)
    cells = plane.near(0, 0, 3, 3)
    conflicts = seeding._conflicts(cells, cells)
    np.fill_diagonal(conflicts, False)
    assert len(cells["x"]) > 500 and not conflicts.any()


def test_numbers_and_names_are_unique():
    numbers = np.concatenate([number_of(by, bx, np.arange(1024)) for by, bx in ((0, 0), (0, 1), (1, 0), (900, 901))])
    assert numbers.dtype == np.int32 and (numbers > 0).all() and len(set(numbers.tolist())) == 4096
    assert set(zip(*(v.tolist() for v in block_of(numbers)), strict=True)) == {(0, 0), (0, 1), (1, 0), (900, 901)}
    assert len({name_of(n) for n in numbers.tolist()}) == 4096


def test_field_is_smooth_noise_of_unit_variance():
    noise = Field(1, "grain", 3.0)
    axis = np.arange(-300.0, 300.0, 0.9)
    grid = noise.grid(axis, axis)
    assert abs(grid.mean()) < 0.05 and 0.9 < grid.std() < 1.1
    assert np.allclose(noise.at(np.full(len(axis), 12.3), axis), noise.grid(axis, np.array([12.3]))[:, 0], atol=1e-5)
    assert (Field(2, "grain", 3.0).grid(axis[:9], axis[:9]) != grid[:9, :9]).all()


def test_a_block_far_outside_is_empty():
    tissue = Tissue(0, 50, 50, 0.0, 0.0)
    assert not tissue.labels((5000, 5000, 5100, 5100))[0].any()
    assert block_box(0, 0)[0] < 0


def test_profiles_are_probabilities_with_markers():
    table = profiles()
    assert np.allclose(table.sum(axis=1), 1) and table.shape == (len(TYPES) + 1, len(GENES)) and len(GENES) == len(set(GENES))
    for i, kind in enumerate(TYPES):
        for gene in kind.markers:
            others = np.delete(table[:-1, GENES.index(gene)], i)
            assert table[i, GENES.index(gene)] > 5 * others.max()
