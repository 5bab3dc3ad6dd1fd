"""Curves in an Aim repository beside the run folders, read back with Aim's own query."""

from needs import needs
from tracked_run import assert_all_curves, tracked_run

aim = needs("aim", "aim")


def test_aim_shows_the_curves_of_the_run_folder(tmp_path):
    from aim.sdk.index_manager import RepoIndexManager

    reader, _ = tracked_run(tmp_path / "runs", "aim")
    repository = aim.Repo(str(tmp_path / "runs"))
    (name,) = repository.list_all_runs()
    RepoIndexManager.get_index_manager(repository).index(name)  # as `aim up` does with a run that is new
    repository.container_pool.clear()
    run = aim.Run(name, repo=repository, read_only=True)
    assert (run.name, run.experiment) == (reader.run_dir.name, "gradlens") and run.end_time is not None
    columns = {metric.name: metric.data.view(["val"]).items_list() for metric in run.metrics()}
    found = {key: dict(zip(steps, values, strict=True)) for key, (steps, (values,)) in columns.items()}
    assert_all_curves(found, reader)
