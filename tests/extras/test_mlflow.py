"""Curves in MLflow (a database file), as a run of its own and in the run that the program has begun."""

import pytest
from needs import needs
from tracked_run import KEY, tracked_run

from gradlens.recording.curve_keys import headed

mlflow = needs("mlflow", "mlflow")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)


def curve_of(run_id):
    return {metric.step: metric.value for metric in mlflow.MlflowClient().get_metric_history(run_id, headed(KEY))}


def test_mlflow_shows_the_curve_of_the_run_folder(tmp_path):
    reader, curve = tracked_run(tmp_path / "runs", "mlflow")
    (run,) = mlflow.search_runs(experiment_names=["gradlens"], output_format="list")
    assert run.info.run_name == reader.run_dir.name and run.info.status == "FINISHED"
    assert curve_of(run.info.run_id) == pytest.approx(curve, rel=1e-5)


def test_a_run_that_the_program_has_begun_is_joined_and_left_open(tmp_path):
    with mlflow.start_run() as run:
        _, curve = tracked_run(tmp_path / "runs", "mlflow")
        assert mlflow.active_run().info.run_id == run.info.run_id
        assert mlflow.get_run(run.info.run_id).info.status == "RUNNING"
        mlflow.log_metric("mine", 1.0)
    assert curve_of(run.info.run_id) == pytest.approx(curve, rel=1e-5)
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == 1
