"""Teachers: what they find, what they refuse, and that labels do not depend on the tiling."""

import numpy as np
import pytest
import shapely
import torch
from scipy import ndimage as ndi

import tissue_fixtures as made
from istseg.artifacts import cells as cells_file
from istseg.artifacts.files import sha256
from istseg.artifacts.labels import describe
from istseg.artifacts.tiles import Tile
from istseg.errors import DeviceError, InputError
from istseg.network.flows import flow_targets
from istseg.teachers import make_teacher
from istseg.teachers.vendor import rasterise
from istseg.teachers.watershed import Sizes, _fill_holes, label_cells, label_nuclei

UM = 0.253


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sheet")
    sheet = made.make_sheet(folder, 90, 110)
    return sheet, Tile.read(made.cut(sheet, folder / "out")[0])


def _iou(labels, centres_um, radius_um, um=UM):
    """Best intersection over union of each disk with a label."""
    y, x = ((np.arange(n) + 0.5) * um for n in labels.shape)
    result = []
    for cy, cx in centres_um:
        disk = np.hypot(y[:, None] - cy, x - cx) < radius_um
        label = np.bincount(labels[disk]).argmax()
        both = disk & (labels == label)
        result.append(both.sum() / (disk | (labels == label)).sum() if label else 0.0)
    return np.array(result)


def test_watershed_finds_nuclei_and_cells_of_both_kinds_of_stain(sheet):
    sheet, tile = sheet
    layers = make_teacher("watershed", Sizes()).label(tile)
    assert set(layers) == {"nuclei", "cells_Ring", "cells_Cyto"}
    assert all(image.dtype == np.int32 and image.shape == tile.shape for image in layers.values())
    inner = sheet.centres_um[(sheet.centres_um > 7).all(1) & (sheet.centres_um < (83, 103)).all(1)]
    assert len(inner) > 20
    for layer, radius in (("nuclei", 3.0), ("cells_Ring", 5.5), ("cells_Cyto", 5.5)):
        assert (_iou(layers[layer], inner, radius) > 0.85).all(), layer
    assert len(np.unique(layers["nuclei"])) - 1 == len(sheet.centres_um)


def test_touching_nuclei_are_cut_and_one_long_nucleus_is_not():
    y, x = np.mgrid[:120, :200] * UM
    pair = np.minimum(np.hypot(y - 10, x - 10), np.hypot(y - 10, x - 15.5)) < 3
    long = ((y - 20) / 2.6) ** 2 + ((x - 35) / 4.2) ** 2 < 1
    stain = ndi.gaussian_filter((pair | long).astype(np.float32), 1.5)
    labels = label_nuclei(stain, UM, 6.5, 8.0)
    assert len(np.unique(labels[:, :100])) - 1 == 2
    assert len(np.unique(labels[:, 100:])) - 1 == 1


def test_a_dark_stain_gives_no_cells_and_no_nuclei_no_cells(sheet):
    _, tile = sheet
    nuclei = label_nuclei(tile.normalised()[0], UM, 6.5, 8.0)
    assert label_cells(np.zeros(nuclei.shape, np.float32), nuclei, UM, 6.5, 12.8).max() == 0
    assert label_cells(tile.normalised()[1], np.zeros_like(nuclei), UM, 6.5, 12.8).max() == 0
    noise = np.random.default_rng(0).normal(0.02, 0.01, nuclei.shape).astype(np.float32)
    assert label_nuclei(noise, UM, 6.5, 8.0).max() == 0


@pytest.mark.parametrize("scale", [3.0, 6.0, 10.0])
def test_labels_of_any_texture_do_not_depend_on_the_tiling(scale):
    random = np.random.default_rng(int(scale))
    shape, side, reach = (220, 1900), 384, 448
    stains = []
    for sigma in (scale, 1.3 * scale):
        field = ndi.gaussian_filter(random.normal(size=shape), sigma)
        low, high = np.percentile(field, [1, 99])
        stains.append(((field - low) / (high - low)).astype(np.float32))

    def owned(x0, x1, core):
        nuclei = label_nuclei(stains[0][:, x0:x1], UM, 6.5, 8.0)
        cells = label_cells(stains[1][:, x0:x1], nuclei, UM, 6.5, 12.8)
        found = [describe(n, image, (0, core[0], shape[0], core[1]), (0, x0, shape[0], x1), shape) for n, image in (("n", nuclei), ("c", cells))]
        return {(o.layer, o.geometry) for objects in found for o in objects[objects["owned"]].itertuples()}

    whole = owned(0, shape[1], (0, shape[1]))
    tiles = [owned(max(x - reach, 0), min(x + side + reach, shape[1]), (x, min(x + side, shape[1]))) for x in range(0, shape[1], side)]
    assert len(whole) > 100
    assert sum(map(len, tiles)) == len(whole)
    assert set().union(*tiles) == whole


def test_without_membrane_stain_nuclei_are_expanded(tmp_path):
    sheet = made.make_sheet(tmp_path, 60, 60, membranes=())
    layers = make_teacher("watershed", Sizes()).label(Tile.read(made.cut(sheet, tmp_path / "out")[0]))
    assert set(layers) == {"nuclei", "cells_expansion"}
    grown = layers["cells_expansion"][layers["nuclei"] > 0]
    assert np.array_equal(grown, layers["nuclei"][layers["nuclei"] > 0])
    area = (layers["cells_expansion"] > 0).sum() * UM**2 / (len(np.unique(layers["nuclei"])) - 1)
    assert 0.8 * np.pi * 6**2 < area < 1.2 * np.pi * 6**2


def test_vendor_cells_are_rasterised_where_they_lie(sheet, tmp_path):
    sheet, tile = sheet
    shift = np.array(made.SHIFT_UM)
    circles = [shapely.Point(*(c[::-1] + shift)).buffer(5.5, quad_segs=32) for c in sheet.centres_um]
    far = shapely.Point(9000, 9000).buffer(5)
    path = tmp_path / "vendor_cells.parquet"
    cells_file.write(path, cells_file.frame([f"v{i}" for i in range(len(circles) + 1)], np.array([far, *circles])))
    teacher = make_teacher("vendor", Sizes(), vendor_cells=path)
    layers = teacher.label(tile)
    assert set(layers) == {"nuclei", "cells_vendor"}
    inner = (sheet.centres_um > 7).all(1) & (sheet.centres_um < (83, 103)).all(1)
    assert (_iou(layers["cells_vendor"], sheet.centres_um[inner], 5.5) > 0.97).all()
    assert set(np.unique(layers["cells_vendor"])) - {0} == set(range(2, len(circles) + 2))
    assert teacher.method["vendor_cells_sha256"] == sha256(path)


def test_rasterising_takes_pixels_by_their_centre_and_the_first_polygon_wins():
    shapes = np.array([shapely.box(1.6, 1.0, 4.4, 3.0), shapely.box(3, 0, 6, 3), None, shapely.Polygon()], object)
    image = rasterise(shapes, np.array([1, 2, 3, 4]), (0, 0, 4, 6))
    assert image.tolist() == [[0, 0, 0, 2, 2, 2], [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [0] * 6]


def test_vendor_without_cells_is_refused(tmp_path):
    with pytest.raises(InputError, match="--vendor-cells"):
        make_teacher("vendor", Sizes())
    cells_file.write(tmp_path / "none.parquet", cells_file.frame([], np.empty(0, object)))
    with pytest.raises(InputError, match="holds no cell"):
        make_teacher("vendor", Sizes(), vendor_cells=tmp_path / "none.parquet")
    with pytest.raises(InputError, match="unknown"):
        make_teacher("stardist", Sizes())


@pytest.fixture(scope="module")
def net():
    from cellpose.resnet_torch import CPnet

    torch.manual_seed(0)
    return CPnet([2, 32, 64, 128, 256], 3, 3, diam_mean=17.0)


@pytest.fixture(scope="module")
def weights(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "nuclei_weights"
    net.save_model(path)
    return path


def test_cellpose_says_every_problem_of_its_weights_at_once(tmp_path, weights):
    with pytest.raises(InputError) as error:
        make_teacher("cellpose", Sizes(), nuclei_weights=tmp_path / "gone", cyto_weights=None)
    assert len(error.value.problems) == 2
    assert "gone: no such file" in error.value.problems[0] and "--cyto-weights" in error.value.problems[1]
    with pytest.raises(InputError, match="not 00FF as asked for"):
        make_teacher("cellpose", Sizes(), nuclei_weights=weights, cyto_weights=weights, cyto_sha256="00FF")


@pytest.mark.parametrize("kind", ["text", "other network", "one tensor missing"])
def test_cellpose_refuses_what_it_would_replace_by_random_weights(tmp_path, net, weights, kind):
    path = tmp_path / "weights"
    if kind == "text":
        path.write_text("cyto3")
    elif kind == "other network":
        torch.save(torch.nn.Linear(3, 3).state_dict(), path)
    else:
        state = dict(net.state_dict())
        state.pop("output.2.bias")
        torch.save(state, path)
    with pytest.raises(InputError, match="Cellpose 3"):
        make_teacher("cellpose", Sizes(), nuclei_weights=weights, cyto_weights=path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cellpose_does_not_fall_back_to_the_cpu(weights):
    with pytest.raises(DeviceError):
        make_teacher("cellpose", Sizes(), nuclei_weights=weights, cyto_weights=weights, device="cuda")


def test_cellpose_runs_windows_alike_alone_and_in_a_batch(weights):
    from istseg.teachers.cellpose import NUCLEI_DIAMETER, load, run_windows

    model = load(weights, NUCLEI_DIAMETER, torch.device("cpu"))
    windows = torch.rand((2, 2, 96, 96), generator=torch.Generator().manual_seed(0))
    both = run_windows(model, windows, 0.6, 8)
    assert both.shape == (2, 3, 96, 96) and both.dtype == torch.float32
    for i in range(2):
        assert torch.allclose(run_windows(model, windows[i : i + 1], 0.6, 8)[0], both[i], atol=1e-5)
    flow, logit = model.eval(windows[0].permute(1, 2, 0).numpy(), channel_axis=-1, normalize=False, rescale=0.6, compute_masks=False)[1][1:]
    assert np.allclose(both[0, :2].numpy() * 5, flow, atol=1e-4) and np.allclose(both[0, 2].numpy(), logit, atol=1e-4)
    assert float(both.std()) > 0.01


@pytest.mark.slow
def test_cellpose_trained_on_disks_finds_the_nuclei(net, tmp_path):
    """A few steps on synthetic disks give a network that finds nuclei through the whole teacher."""
    random, size = np.random.default_rng(0), 64
    y, x = np.mgrid[:size, :size]

    def batch():
        images, labels = np.zeros((2, 2, size, size), np.float32), np.zeros((2, size, size), np.int64)
        for image, label in zip(images, labels, strict=True):
            for k, (cy, cx) in enumerate(np.argwhere(np.ones((2, 2))) * 30 + 17 + random.uniform(-4, 4, (4, 2)), 1):
                distance, radius = np.hypot(y - cy, x - cx), random.uniform(7, 10)
                label[distance < radius] = k
                image[0] += 1 / (1 + np.exp((distance - radius) / 0.8))
        return torch.from_numpy(images + random.normal(0, 0.03, images.shape).astype(np.float32)), torch.from_numpy(labels)

    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    net.train()
    for _ in range(90):
        images, labels = batch()
        flow, _ = flow_targets(labels)
        predicted = net(images)[0]
        loss = torch.nn.functional.mse_loss(predicted[:, :2], 5 * flow) / 2
        loss = loss + torch.nn.functional.binary_cross_entropy_with_logits(predicted[:, 2], (labels > 0).float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    path = tmp_path / "nuclei"
    net.save_model(path)
    sheet = made.make_sheet(tmp_path, 60, 60, membranes=())
    tile = Tile.read(made.cut(sheet, tmp_path / "out")[0])
    teacher = make_teacher("cellpose", Sizes(nucleus_diameter_um=6.0), nuclei_weights=path, cyto_weights=path, nuclei_sha256=sha256(path))
    layers = teacher.label(tile)
    assert set(layers) == {"nuclei", "cells_expansion"}
    inner = sheet.centres_um[(sheet.centres_um > 5).all(1) & (sheet.centres_um < 55).all(1)]
    assert (_iou(layers["nuclei"], inner, 3.0) > 0.6).mean() > 0.8
    assert teacher.method["nuclei_sha256"] == sha256(path) and teacher.method["device"] == "cpu"
    # Weights say to which size their objects were rescaled: these would need pictures twice as large, or nuclei twice as wide.
    torch.save(net.state_dict() | {"diam_mean": torch.tensor([34.0])}, tmp_path / "other")
    other = make_teacher("cellpose", Sizes(nucleus_diameter_um=12.0), nuclei_weights=tmp_path / "other", cyto_weights=path)
    assert np.array_equal(other.label(tile)["nuclei"], layers["nuclei"])


def test_texture_shows_no_outline():
    """Nuclei in a sheet of even, grainy stain: no cell is given; rims around them: all are."""
    y, x = np.mgrid[:200, :300] * UM
    centres = [(cy, cx) for cy in (12, 25, 38) for cx in (12, 25, 38, 51, 64)]
    distance = np.min([np.hypot(y - cy, x - cx) for cy, cx in centres], axis=0)
    nuclei = ndi.label(distance < 3)[0].astype(np.int32)
    grain = ndi.gaussian_filter(np.random.default_rng(0).normal(size=y.shape), 2.0)
    flat = (0.6 + 0.1 * grain / grain.std()).astype(np.float32)
    rims = (flat + 0.5 * np.exp(-0.5 * ((distance - 5) / 0.5) ** 2)).astype(np.float32)
    assert len(np.unique(label_cells(flat, nuclei, UM, 6.5, 12.8))) - 1 <= 3
    assert len(np.unique(label_cells(rims, nuclei, UM, 6.5, 12.8))) - 1 == len(centres)


def test_only_holes_of_one_cell_are_filled():
    labels = np.full((12, 20), 3, np.int32)
    labels[:, 10:] = 7
    labels[3:5, 3:5] = 0  # inside one
    labels[8, 8:12] = 0  # between two
    labels[0, 15] = 0  # at the border
    filled = _fill_holes(labels)
    assert (filled[3:5, 3:5] == 3).all() and (filled[8, 8:12] == 0).all() and filled[0, 15] == 0
    assert np.array_equal(filled[labels > 0], labels[labels > 0])
