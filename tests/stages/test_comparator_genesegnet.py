"""GeneSegNet through the stage comparator, and what preflight says of its weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from istseg import comparators
from istseg.artifacts import cells as cells_file
from istseg.artifacts.labels import TileLabels
from istseg.cli import app
from istseg.comparators import Surroundings, genesegnet
from istseg.network import weights
from network_fixtures import BASE_MODEL, cut, paint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random weights with thresholds that let something through."""
    net, card = genesegnet.new(3)
    path = tmp_path_factory.mktemp("model") / "g.safetensors"
    weights.save(path, net, replace(card, name="random", logit_threshold=-10.0, centre_threshold=1e-3))
    return path


def run(*arguments: object) -> None:
    done = CliRunner().invoke(app, ["comparator", *map(str, arguments)])
    assert done.exit_code == 0, done.output or done.exception


def test_tiles_are_labelled_and_merged(model, tmp_path):
    folders = cut(paint(300, 320, seed=2), tmp_path / "tiles", 2)
    asked = [word for folder in folders for word in ("--tile", folder)]
    run("tiles", "--method", "genesegnet", *asked, "--genesegnet-weights", model, "--no-genesegnet-membranes", "--out", tmp_path / "labels")
    labels = TileLabels.read(tmp_path / "labels" / folders[0].name, ["cells"])
    assert labels.method["comparator"] == "genesegnet" and labels.method["membranes"] is False and labels.method["model"] == "random"
    run("merge", "--segmentation", "genesegnet", "--tiles-json", tmp_path / "tiles" / "tiles.json", "--labels", tmp_path / "labels", "--out", tmp_path)
    cells = cells_file.read(tmp_path / "genesegnet.cells.parquet")
    owned = sum(int(TileLabels.read(tmp_path / "labels" / f.name, ["cells"]).objects["owned"].sum()) for f in folders)
    assert len(cells) == owned > 5
    one = tmp_path / "labels" / folders[0].name / "meta.json"
    one.write_text(one.read_text().replace('"membranes": false', '"membranes": true'))
    again = ["comparator", "merge", "--segmentation", "genesegnet", "--tiles-json", tmp_path / "tiles" / "tiles.json", "--labels", tmp_path / "labels"]
    assert "run comparator tiles again for all tiles" in str(CliRunner().invoke(app, [*map(str, again), "--out", str(tmp_path)]).exception)


def test_without_weights_it_says_what_to_give(tmp_path):
    (folder,) = cut(paint(200, 200, seed=2), tmp_path / "tiles", 9)
    done = CliRunner().invoke(app, ["comparator", "tiles", "--method", "genesegnet", "--tile", str(folder), "--out", str(tmp_path / "labels")])
    assert "--genesegnet-weights" in str(done.exception)


@pytest.mark.parametrize(
    ("staged", "params", "text"),
    [
        (None, {}, "needs --genesegnet_weights"),
        (BASE_MODEL, {"genesegnet_weights": "mine.safetensors"}, "mine.safetensors: is a model of the RNA2seg network"),
        ("model", {"genesegnet_sha256": "0" * 64}, "sha256"),
        ("model", {"working_um": 0.5}, "--working_um"),
    ],
)
def test_preflight_refuses_weights_that_cannot_be_used(model, staged, params, text):
    surroundings = Surroundings(params, {"genesegnet": model if staged == "model" else staged})
    (problem,) = comparators.problems(["genesegnet"], surroundings)
    assert problem.startswith("--compare genesegnet: ") and text in problem


def test_preflight_accepts_ours_and_the_published_form(model, tmp_path):
    torch.save(genesegnet.GeneSegNet(membranes=False).state_dict(), tmp_path / "published")
    for path in (model, tmp_path / "published"):
        assert comparators.problems(["genesegnet"], Surroundings({}, {"genesegnet": path})) == []
