"""Every row of the tables in configs/ablations is an experiment."""

from pathlib import Path

import pytest

from dmcodec.ablation import AblationConfig
from dmcodec.config import load_config

ROOT = Path(__file__).parents[2]
TABLES = sorted((ROOT / "configs" / "ablations").glob("*.toml"))


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_rows_differ_from_each_other_and_share_no_store_of_other_teachers(path):
    table = load_config(path, AblationConfig)

    experiments = [table.experiment_of(row, seed=7) for row in table.rows]

    assert all(experiment.seed == 7 for experiment in experiments)
    distillations = [experiment.distillation for experiment in experiments]
    teachers = {}
    for guidance in filter(None, distillations):
        for guide in guidance.teachers.values():
            if guide.store is not None:
                teachers.setdefault(guide.store, []).append(guide.teacher)
    for store, sharing in teachers.items():
        assert all(each == sharing[0] for each in sharing), store
    assert table.rows[0].published_wer is None  # the reference: no teacher
    assert distillations[0] is None


def test_every_row_of_the_paper_is_there():
    published = [
        row.published_wer
        for path in TABLES
        for row in load_config(path, AblationConfig).rows
        if row.published_wer is not None
    ]

    assert len(TABLES) == 7
    assert len(published) == 3 + 8 + 11 + 6 + 6
    assert min(published) == 4.05
    assert max(published) == 4.83
