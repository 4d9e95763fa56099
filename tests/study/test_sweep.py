import subprocess
import sys

import pytest

from rvlr_lib.disk import read_json, write_json
from rvlr_lib.study.claims import read_study, write_claims
from rvlr_lib.study.regime import map_frame
from rvlr_lib.study.runner import Runner
from rvlr_lib.study.sweep import parse_seeds, read_seeds, run_study
from rvlr_lib.study.tuning import draw_trials, tuned_arms


@pytest.fixture
def run(plan_file, tmp_path, monkeypatch):
    """The command in this process: workers would not know the tiny model."""
    from tests.tiny import tiny_towers

    tiny_towers()
    monkeypatch.setattr(
        Runner,
        "stream",
        lambda self, function, items, label: ((n, function(*item, "cpu", self.root)) for n, item in enumerate(items)),
    )

    def go(**options):
        run_study(
            str(plan_file), results=str(tmp_path / "results"), root=str(tmp_path / "runs"), device="cpu", **options
        )
        return tmp_path / "results"

    return go


def test_tune_seal_confirm_claim(run, plan_file):
    folder = run(tune=True)
    chosen = read_json(folder / "tuning.json")["chosen"]
    assert chosen["epochs"] in (1, 2)
    assert set(chosen["arms"]) == {"matching_longer", "rvlr", "mean_relation", "structure"}
    with pytest.raises(ValueError, match="no seal.json"):
        run()
    run(seal=True)
    run(seeds="0")
    assert read_study(str(plan_file), folder)[1]["scenes"].keys() == {0}
    assert "no verdict" in write_claims(str(plan_file), folder).read_text()
    run()
    cells = read_seeds(folder, "scenes")
    assert cells.keys() == {0, 1}
    assert cells[0].keys() >= {"rvlr|text", "rvlr/structure|image", "start|none"}
    assert "## Verdicts" in write_claims(str(plan_file), folder).read_text()
    run(regime_map=True)
    assert set(map_frame(folder)["teacher"]) == {"pretrained", "constant"}


def test_all_arms_get_as_many_trials_and_the_same_learning_rates(plan):
    trials = {name: draw_trials(plan, name) for name in tuned_arms(plan)}
    rates = {name: [trial["learning_rate"] for trial in own] for name, own in trials.items()}
    assert len({tuple(own) for own in rates.values()}) == 1
    assert len(rates["rvlr"]) == plan.tuning.trials
    constant, structure = ([trial["strengths"] for trial in trials[name]] for name in ("mean_relation", "structure"))
    assert [own["mean_relation"] for own in constant] == [own["structure"] for own in structure]


def test_seeds_of_another_seal_are_never_put_together(run, tmp_path):
    folder = tmp_path / "results" / "scenes"
    for seed, sealed in ((0, "a"), (1, "b")):
        write_json(folder / f"seed-{seed}.json", {"seed": seed, "sealed": sealed, "cells": {}})
    with pytest.raises(ValueError, match="under another seal"):
        read_seeds(tmp_path / "results", "scenes")


def test_results_of_a_gpu_and_of_a_cpu_are_never_put_together(tmp_path):
    for seed, device in ((0, "cpu"), (1, "cuda:0")):
        record = {"seed": seed, "sealed": "a", "cells": {"rvlr|text": {"device": device}}}
        write_json(tmp_path / "scenes" / f"seed-{seed}.json", record)
    with pytest.raises(ValueError, match="results of cpu and cuda"):
        read_seeds(tmp_path, "scenes")


def test_seeds_as_the_command_line_gives_them():
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]
    with pytest.raises(ValueError, match="expected something like"):
        parse_seeds("0..4")


def double(number, device, root):
    return 2 * number


def test_a_runner_keeps_the_order_of_its_items():
    assert Runner(jobs=2, say=lambda text: None).run(double, [(1,), (2,), (3,)], "cells") == [2, 4, 6]


@pytest.mark.slow
def test_a_cluster_gives_what_processes_give_though_a_worker_is_killed():
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, protocol="tcp")
    with cluster:
        runner = Runner(scheduler=cluster.scheduler_address, say=lambda text: None)
        found = {}
        for number, value in runner.stream(slow_double, [(n,) for n in range(8)], "cells"):
            if not found:
                next(iter(cluster.workers.values())).process.process.kill()
            found[number] = value
    assert found == {n: 2 * n for n in range(8)}


def slow_double(number, device, root):
    import time

    time.sleep(0.5)
    return 2 * number


def test_no_scheduler_is_one_line():
    pytest.importorskip("distributed")
    code = "from rvlr_lib.study.runner import connect; connect('tcp://127.0.0.1:9')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "no Dask scheduler answers" in done.stderr
