"""Image models on the command line: train, evaluate, study, cost."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from matmix.experiments import cli
from matmix.experiments.models import create_model
from matmix.experiments.run import Result, RunConfig, read_config
from tests.vision.folders import TINY, make_folder
from vision.tasks.imagefolder import ImageFolder


@pytest.fixture(autouse=True)
def no_workers(monkeypatch):
    monkeypatch.setenv("MATMIX_WORKERS", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(make_folder(tmp_path_factory.mktemp("images")))


def here(command: str, capsys) -> tuple[int, str, str]:
    """In this process: exit status, stdout, stderr."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(shlex.split(command))
    out, error = capsys.readouterr()
    return exit_.value.code, out, error


def quick(folder: str) -> str:
    return (
        f"imagefolder --data {folder} --model '{TINY}' --task.img-size 32 --task.shrink 0 --recipe.steps 4 "
        "--recipe.batch-size 8 --recipe.log-every 2 --recipe.eval-every 2"
    )


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> str:
    """A run, and with it its weights."""
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.raises(SystemExit) as exit_:
        cli.main(shlex.split(f"train {quick(folder)} --seed 1 --quiet --out {out}"))
    assert exit_.value.code == 0
    return str(out)


def test_train_by_model_name(folder, trained):
    config, result = read_config(trained), Result.read(trained)
    assert (config.task, config.mixer, config.seed) == ("imagefolder", "", 1)
    assert config.options["architecture"] == TINY and config.options["data"] == folder
    assert result.status == "finished" and set(result.test) == {"loss", "accuracy"} and result.macs > 0


def test_reproduce_is_the_same_run(trained, capsys, tmp_path):
    words = shlex.split(Result.read(trained).reproduce)
    assert "--mixer" not in words
    words[words.index("--out") + 1] = str(tmp_path / "again")
    status, *_ = here(shlex.join(words[1:]), capsys)
    assert status == 0 and read_config(tmp_path / "again") == read_config(trained)
    assert Result.read(tmp_path / "again").test == Result.read(trained).test


def test_named_recipes(folder, tmp_path, capsys):
    """The published values, with the typed ones on top."""
    command = (
        f"train imagefolder --data {folder} --model 'caformer_s18(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))' "
        f"--recipe published --steps 2 --recipe.batch-size 8 --recipe.lr 0.01 --task.img-size 32 --task.shrink 0 "
        f"--task.mixup 0.1 --quiet --out {tmp_path}/run"
    )
    status, _, error = here(command, capsys)
    assert status == 0, error
    config = read_config(tmp_path / "run")
    assert (config.recipe["optimizer"], config.recipe["lr"], config.recipe["steps"]) == ("lamb", 0.01, 2)
    assert (config.options["drop_path"], config.options["mixup"], config.options["cutmix"]) == (0.15, 0.1, 1.0)


def test_evaluate_gives_the_score_of_the_run(folder, trained, capsys):
    task = f"imagefolder --data {folder} --model '{TINY}' --task.img-size 32 --task.shrink 0"
    status, out, error = here(f"evaluate {task} --weights {trained}/best.safetensors", capsys)
    assert status == 0, error
    accuracy = Result.read(trained).test["accuracy"]
    assert f"accuracy {accuracy:.4g}" in out and out.startswith("imagefolder test of ")
    assert f"data: {folder}\n  train: 24 images (train), 3 classes: blue 8, green 8, red 8\n" in error


def test_evaluate_published_weights(folder, tmp_path, capsys):
    """A training's file with other things in it: averaged weights first, and in the authors' naming."""
    from matmix.cost import evaluating

    name = "convformer_s18(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))"
    model = create_model(name, num_classes=3)
    other = create_model(name, num_classes=3)
    torch.save(
        {"state_dict": other.state_dict(), "state_dict_ema": model.state_dict(), "epoch": 3}, tmp_path / "own.pth"
    )
    command = f"evaluate imagefolder --data {folder} --model '{name}' --task.img-size 32 --task.shrink 0"
    status, out, error = here(f"{command} --weights {tmp_path}/own.pth", capsys)
    assert status == 0, error
    with evaluating(model), torch.no_grad():
        batch = next(ImageFolder(architecture=name, data=folder, img_size=32, shrink=0).batches("test", 9))
        accuracy = (model(batch.x).argmax(1) == batch.y).float().mean().item()
    assert f"accuracy {accuracy:.4g}" in out


def test_the_source_of_published_weights_is_found_by_their_names(tmp_path):
    from timm.models.metaformer import LayerNorm2dNoBias, MetaFormer, SepConv

    from matmix.experiments.weights import load_weights

    sizes = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "num_classes": 3}
    theirs = MetaFormer(token_mixers=SepConv, norm_layers=LayerNorm2dNoBias, use_mlp_head=True, **sizes).eval()
    theirs.head.fc.norm.eps = 1e-5  # as published; timm's 1e-6 is felt where the model is this small
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = create_model("convformer_s18", **sizes).eval()
    assert set(theirs.state_dict()) != set(ours.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for source in ("", "timm"):
        other = create_model("convformer_s18", **sizes).eval()
        load_weights(other, tmp_path / "timm.pth", source)
        with torch.no_grad():
            torch.testing.assert_close(other(x), theirs(x), atol=1e-4, rtol=1e-3)
    state = theirs.state_dict()
    state.pop("stem.conv.bias")
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(
        ValueError, match=r"less.pth does not fit MetaFormer: as weights of timm: missing: stem.conv.bias$"
    ):
        load_weights(ours, tmp_path / "less.pth")


def test_weights_of_another_model_are_refused(folder, trained, tmp_path, capsys):
    task = f"evaluate imagefolder --data {folder} --task.img-size 32 --task.shrink 0"
    weights = f"{trained}/best.safetensors"
    status, _, error = here(f"{task} --model dfformer_s18 --weights {weights}", capsys)
    assert status == 2 and f"{weights} does not fit" in error and "missing: " in error and error.count("\n") == 1
    status, _, error = here(f"{task} --model '{TINY}' --source no/body --weights {weights}", capsys)
    assert status == 2 and "loads no weights of 'no/body'" in error
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    status, _, error = here(f"{task} --model '{TINY}' --weights {tmp_path}/bad.pth", capsys)
    assert status == 2 and f"{tmp_path}/bad.pth cannot be read as weights" in error
    torch.save({"model": {"a": 3}}, tmp_path / "odd.pth")
    status, _, error = here(f"{task} --model '{TINY}' --weights {tmp_path}/odd.pth", capsys)
    assert status == 2 and "holds no state dict of tensors" in error


def test_files_are_never_unpickled(folder, tmp_path, capsys):
    import pickle

    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    with open(tmp_path / "evil.pth", "wb") as file:
        pickle.dump(Evil(), file)
    torch.save(Evil(), tmp_path / "evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        command = (
            f"evaluate imagefolder --data {folder} --model '{TINY}' --task.img-size 32 --weights {tmp_path}/{name}"
        )
        status, _, error = here(command, capsys)
        assert status == 2 and "cannot be read as weights" in error and not (tmp_path / "ran").exists()


def test_a_study_of_mixers_in_one_model(folder, tmp_path, capsys):
    command = (
        f"study {quick(folder)} --mixers identity pooling 'sep_conv(kernel=3)' --seeds 2 --jobs 1 --reference pooling"
    )
    status, _, error = here(f"{command} --out {tmp_path}/study", capsys)
    assert status == 0, error
    report = (tmp_path / "study" / "report" / "report.md").read_text()
    assert "minus pooling" in report and "[" in report.partition("minus pooling")[2]
    study = json.loads((tmp_path / "study" / "study.json").read_text())
    assert study["seeds"] == [0, 1] and study["tasks"][0]["options"]["architecture"] == TINY
    assert len(list((tmp_path / "study").rglob("result.json"))) == 6


def test_study_needs_mixers(folder, capsys):
    status, _, error = here(f"study {quick(folder)}", capsys)
    assert status == 2 and "name the mixers: --mixers" in error


def test_cost(capsys):
    _, out, _ = here("cost caformer_s18 --img-size 224", capsys)
    assert "26,341,656" in out and "4,106,941,440" in out and "3 x 224 x 224" in out
    _, out, _ = here("cost 'global_filter' --dim 16 --grid 8 12", capsys)
    numbers = {line.split("  ")[0]: line.split()[-1] for line in out.splitlines() if "FFT" not in line}
    assert "FFT operations" in out and "96 x 16" in out and numbers["parameters"] != "0"
    _, out, _ = here(f"cost '{TINY}' --img-size 32 48", capsys)
    assert "3 x 32 x 48" in out
    _, out, _ = here("cost 'randformer_s12' --img-size 224", capsys)
    assert "frozen" in out
    status, _, error = here("cost caformr_s18", capsys)
    assert status == 2 and "unknown model 'caformr_s18'; did you mean caformer_s18" in error
    status, out, error = here("cost pooling --img-size 224", capsys)  # an option of models: a mixer has others
    assert status == 2 and "--img-size" in out + error
    _, out, _ = here("cost timm:resnet18 --img-size 64", capsys)
    assert "11,689,512" in out and "3 x 64 x 64" in out


def test_models_by_name():
    assert type(create_model("caformer_s18(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))")).__module__.startswith("vision.")
    assert type(create_model("timm:resnet18")).__module__.startswith("timm.")
    for spec, message in (
        ("caformer_s18(3)", "options are given by name"),
        ("caformer s18", "is not of the form"),
        ("tim:resnet18", "unknown package of models 'tim'"),
        ("timm:resnet19x", "unknown model 'timm:resnet19x'; did you mean"),
        ("caformer_s18(depths=open('x'))", "literals"),
    ):
        with pytest.raises(ValueError, match=message.replace("(", r"\(")):
            create_model(spec)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train imagefolder --model caformer_s18", "name the data: --data PATH"),
        ("train imagenet --data synthetic", "name the model: --model"),
        ("train imagenet --data synthetic --model caformer_s18 --recipe publish", "did you mean published"),
        ("train imagenet --data synthetic --model affnet --recipe published", "no recipe 'published' is known"),
        ("train digits --mixer identity --recipe published", "Digits has no recipe 'published'"),
        ("train imagefolder --data /none --model caformer_s18", "'/none'"),
        ("train imagefolder --data folder:none --model caformer_s18", "has no 'none'"),
        ("train imagefolder --data hf:a/b/c --model caformer_s18", "a data set of the hub is owner/name"),
        ("train imagefolder --data . --model caformer_s18", "has no folders of classes, nothing at all"),
        ("train segmentation --data none --model caformer_s18", "there is no folder 'none'"),
        ("picture --model caformer_s18 --image a.jpg --out b.png", "name the kind of picture first"),
        ("picture spectrum --model caformer_s18 --image a.jpg --out b.png", "did you mean spectra?"),
    ],
)
def test_wrong_input_is_one_line(command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, printed, error = here(command, capsys)
    assert status == 2, (printed, error)
    assert message in error and error.startswith("matmix: ") and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir()), "it left something behind"


def test_a_stored_run_does_not_depend_on_defaults(trained):
    config = json.loads((Path(trained) / "config.json").read_text())
    assert RunConfig.from_json(config) == read_config(trained)
    assert {"optimizer", "ema"} <= set(config["recipe"]) and "erasing" in config["options"]
