"""Pictures of what a model does with an image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

import vision
from matmix.experiments import cli
from tests.vision.folders import TINY, make_folder
from vision.data.decoding import BrokenImage
from vision.pictures import (
    _entries,
    _middle_row,
    _stages,
    class_activation,
    prepare,
    receptive_field,
    spectra,
    stage_matrices,
)

DRAW = {"receptive-field": receptive_field, "spectra": spectra, "matrices": stage_matrices, "cam": class_activation}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("one"), {"test": 1}) / "test" / "red" / "0.jpg"


def tiny(mixers: str, **options):
    torch.manual_seed(0)
    options = {"img_size": 64, "num_classes": 5, "depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), **options}
    return vision.create_model("metaformer_s18", mixers=mixers, **options).eval()


@pytest.mark.parametrize("kind", sorted(DRAW))
def test_one_command_each(kind, image, tmp_path, capsys):
    out = tmp_path / "deep" / f"{kind}.png"
    words = ["picture", kind, "--model", TINY.replace("metaformer", "dfformer"), "--image", str(image)]
    with pytest.raises(SystemExit) as exit_:
        cli.main([*words, "--img-size", "64", "--out", str(out)])
    said, error = capsys.readouterr()
    assert exit_.value.code == 0, error
    assert said.splitlines()[0] == str(out) and len(said.splitlines()) >= 4
    pixels = np.asarray(Image.open(out).convert("L"), float)
    assert pixels.shape[0] > 200 and pixels.std() > 20


def test_the_receptive_field_is_the_models(image, tmp_path):
    """Without mixing, a map's middle sees the patch below it; with attention everything."""
    local = receptive_field(tiny("identity"), image, tmp_path / "a.png")
    everywhere = receptive_field(tiny("attention(head_dim=4)"), image, tmp_path / "b.png")
    first = next(line for line in local.splitlines() if "stage 1" in line)
    share = float(first.rpartition("95 % on ")[2].split(" %")[0])
    assert 0 < share <= 100 * 49 / 64**2  # the stem's 7 x 7 kernel
    assert float(everywhere.splitlines()[1].rpartition("95 % on ")[2].split(" %")[0]) > 20 * share


def test_the_matrices_are_those_of_the_model(image):
    model = tiny("global_filter, sep_conv, attention(head_dim=4), pooling")
    x, _ = prepare(model, image, 64)
    stages = _stages(model, x)
    assert [grid for _, _, grid in stages] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    for _, matrix, grid in stages:
        dense = matrix.to_dense().detach()[0]
        heads = [0, dense.shape[0] - 1]
        torch.testing.assert_close(_entries(matrix, heads, chunk=7), dense[heads], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(_entries(matrix, heads, 3), dense[heads, :3, :3], atol=1e-5, rtol=1e-4)
        middle = grid[0] // 2 * grid[1] + grid[1] // 2
        row = _middle_row(matrix, grid)
        torch.testing.assert_close(row.flatten(1), dense[:, middle, : math.prod(grid)], atol=1e-5, rtol=1e-4)


def test_the_spectrum_of_a_filter_is_its_spectrum(image):
    model = tiny("global_filter")
    x, _ = prepare(model, image, 64)
    _, matrix, grid = _stages(model, x)[0]
    response = torch.fft.fft2(_middle_row(matrix, grid)).abs()
    wanted = torch.view_as_complex(matrix.spectrum)[0].abs()
    torch.testing.assert_close(response[..., : grid[1] // 2 + 1], wanted, atol=1e-4, rtol=1e-3)


def test_evidence_lies_where_the_class_is(tmp_path):
    """A model that is nothing but the brightness of its last map looks at the bright corner."""

    class Bright(torch.nn.Module):
        num_features, num_classes, in_chans = 1, 2, 3

        def __init__(self):
            super().__init__()
            self.pretrained_cfg = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward_features(self, x):
            return self.scale * torch.nn.functional.avg_pool2d(x.mean(1, keepdim=True), 8) + 1

        def forward_head(self, x):
            total = x.mean((1, 2, 3))
            return torch.stack([total, -total], 1)

    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[8:24, 40:56] = 255
    Image.fromarray(pixels).save(tmp_path / "corner.png")
    seen = {}
    import vision.pictures as pictures

    def note(rows, heading, real=pictures._panels):
        seen["heat"] = [content[1] for _, content, _ in rows[0] if isinstance(content, tuple)]
        return real(rows, heading)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_panels", note)
        class_activation(Bright().eval(), tmp_path / "corner.png", tmp_path / "cam.png")
    heat, against = seen["heat"]
    row, column = divmod(int(heat.argmax()), 64)
    assert 8 <= row < 24 and 40 <= column < 56 and heat[48:, :16].max() < 0.1
    assert against.max() == 0  # nothing speaks for the other class
    with pytest.raises(ValueError, match="target must be a class, 0 to 1, got 2"):
        class_activation(Bright().eval(), tmp_path / "corner.png", tmp_path / "cam.png", target=2)


def test_models_of_others(image, tmp_path):
    import timm

    model = timm.create_model("resnet18", num_classes=4).eval()
    assert "class" in class_activation(model, image, tmp_path / "a.png", size=64)
    assert "stage 5" in receptive_field(model, image, tmp_path / "b.png", size=64)
    with pytest.raises(ValueError, match="contains no Mixer"):
        spectra(model, image, tmp_path / "c.png", size=64)


def test_bad_images(image, tmp_path):
    (tmp_path / "x.jpg").write_text("no image")
    with pytest.raises(BrokenImage, match=r"x.jpg cannot be read"):
        class_activation(tiny("pooling"), tmp_path / "x.jpg", tmp_path / "a.png", size=64)
    with pytest.raises(ValueError, match="takes 5 channels"):
        prepare(tiny("pooling", in_chans=5), image, 64)
    with pytest.raises(ValueError, match="no classifier"):
        class_activation(tiny("pooling", num_classes=0), image, tmp_path / "a.png", size=64)
