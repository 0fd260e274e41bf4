"""What a report says of matrices that were exchanged in trained models."""

from pathlib import Path

from matmix.experiments.report.ablations import ablation_table, sentences
from matmix.experiments.report.collect import collect
from matmix.experiments.runner import write_json
from matmix.experiments.study import Study, StudyTask
from tests.experiments.synthetic import write_run


def test_a_matrix_that_does_nothing_is_named(tmp_path: Path) -> None:
    """Of 0.4: justdense loses 0.03 and 0.05 % without its matrix, dense 25 %, hydra keeps all with its diagonal."""
    study = Study("s", (StudyTask("recall"),), ("dense", "justdense", "hydra", "identity"), seeds=(0, 1))
    write_json(tmp_path / "study.json", study.to_json())
    after = {
        "dense": {"zero": 0.3, "diagonal": 0.35},
        "justdense": {"zero": 0.40012, "diagonal": 0.4001},
        "hydra": {"zero": 0.3, "diagonal": 0.401},
        "identity": {"zero": 0.4, "diagonal": 0.4},
    }
    for run in study.runs():
        found = {how: score + 8e-5 * (run.seed and run.mixer == "justdense") for how, score in after[run.mixer].items()}
        write_run(tmp_path, run, 0.4, ablations=found)
    collected = collect(tmp_path)
    assert sentences(collected, 0.01) == [
        "The matrices of justdense do nothing: zeroed, the score changes by at most 0.05 % on recall.",
        "The matrices of hydra need not mix: with their diagonal alone, the score changes by at most 0.25 % on recall.",
    ]
    table = ablation_table(collected.settings[0])
    assert table is not None
    cells = table.set_index("mixer")["matrices zeroed"].to_dict()
    assert cells["dense"] == "-25.00 (-25.00)" and cells["justdense"] == "+0.04 (+0.05)"
    assert sentences(collected, 0.0004) == []
