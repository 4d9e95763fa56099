import time
from dataclasses import replace
from itertools import islice

import pytest
import torch

from rvlr_lib import config
from rvlr_lib.disk import read_json, write_json
from rvlr_lib.study.claims import map_frame, read_study, write_claims
from rvlr_lib.study.runner import Runner, connect
from rvlr_lib.study.sweep import _choose, draw_trials, mean_score, read_seeds, run_study, tuned_arms


def test_tune_seal_confirm_claim(write_plan, tmp_path, monkeypatch, refuses, capsys):
    stream = lambda self, function, items, _: ((n, function(*item, "cpu", self.root)) for n, item in enumerate(items))  # noqa: E731
    monkeypatch.setattr(Runner, "stream", stream)  # in this process: workers would not know the tiny model
    profile, folder = write_plan(), tmp_path / "results"

    def run(**options):
        run_study(profile, results=str(folder), root=str(tmp_path / "runs"), device="cpu", **options)

    run(tune=True)
    tuned = read_json(folder / "tuning.json")
    assert tuned["chosen"]["epochs"] in (1, 2)
    assert set(tuned["chosen"]["arms"]) == {"matching_longer", "rvlr", "mean_relation", "structure"}
    for trials in tuned["trials"].values():  # two trials on the first seed, the better one on both
        once, twice = sorted(trials, key=lambda trial: len(trial["scores"]))
        assert (len(once["scores"]), len(twice["scores"])) == (1, 2)
        assert mean_score({"100": twice["scores"]["100"]}, "r_mean") >= mean_score(once["scores"], "r_mean")
        assert all(scores.keys() == {"text", "image"} for trial in trials for scores in trial["scores"].values())
    refuses("seal.json is missing", run)
    run(seal=True)
    refuses("holds a sealed study, whose tuning is final", run, tune=True)
    with monkeypatch.context() as killed:  # after the first seed's three dial settings
        killed.setattr(Runner, "stream", lambda *args: islice(stream(*args), 2))
        killed.setitem(config.ARMS, "rvlr", replace(config.ARMS["rvlr"], description="in other words"))
        killed.setitem(config.ARMS, "another", config.ARMS["matching"])  # an arm that the plan does not have
        run()
    refuses("holds confirmation seeds already: a seal comes before them", run, seal=True)
    assert read_study(profile, folder)[1]["scenes"].keys() == {0}
    assert "no verdict" in write_claims(profile, folder).read_text()
    for name in ("matching", "structure"):
        with monkeypatch.context() as edited:
            edited.setitem(config.ARMS, name, replace(config.ARMS[name], shuffled=True))
            refuses("presets or arms give other settings than", run)
    path = folder / "scenes" / "seed-1.json"
    theirs = read_json(folder / "scenes" / "seed-0.json") | {"seed": 1, "cells": {}, "provenance": "theirs"}
    with monkeypatch.context() as meanwhile:  # another process writes it
        meanwhile.setattr(Runner, "stream", lambda *args: write_json(path, theirs) or stream(*args))
        run()
    assert read_json(path)["provenance"] == "theirs"
    before = (folder / "scenes" / "seed-0.json").read_text()
    run()
    assert "0 cells to compute" in capsys.readouterr().out
    assert (folder / "scenes" / "seed-0.json").read_text() == before
    write_json(folder / "scenes" / "seed-2.json", read_json(folder / "scenes" / "seed-1.json"))  # not planned
    cells = read_seeds(folder, "scenes", read_json(folder / "seal.json")["sha256"], 2)
    assert cells.keys() == {0, 1}
    assert cells[0].keys() >= {"rvlr|text", "structure/structure|image", "start|none"}
    assert "## Verdicts" in write_claims(profile, folder).read_text()
    with monkeypatch.context() as killed:
        killed.setattr(Runner, "stream", lambda *args: islice(stream(*args), 3))
        run(regime_map=True)
    assert [path.name for path in (folder / "map").iterdir()] == ["seed-200.json"]
    monkeypatch.setattr(Runner, "stream", lambda *args: stream(*args) if len(args[2]) == 2 else ())  # the other seed's
    run(regime_map=True)
    cells = map_frame(folder)
    assert (set(cells["teacher"]), set(cells["seed"])) == ({"pretrained", "constant"}, {200, 201})


def test_all_arms_get_as_many_trials_and_the_same_learning_rates(plan):
    trials = {name: draw_trials(plan, name) for name in tuned_arms(plan)}
    rates = {name: [trial["learning_rate"] for trial in trials[name]] for name in trials}
    assert len(set(map(tuple, rates.values()))) == 1
    assert len(rates["rvlr"]) == plan.tuning.trials
    constant, structure = ([trial["strengths"] for trial in trials[name]] for name in ("mean_relation", "structure"))
    assert [drawn["mean_relation"] for drawn in constant] == [drawn["structure"] for drawn in structure]


UNLIKE = [({"sealed": "b"}, "under another seal"), ({"seed": None}, "is not a result")]
UNLIKE += [({"cells": {"a": {"device": name}}}, f"results of cpu and {name[:5]}") for name in ("cuda", "cpu without")]


@pytest.mark.parametrize(("changed", "fault"), UNLIKE)
def test_results_that_do_not_belong_together_are_refused(tmp_path, changed, fault, refuses):
    record = {"seed": 0, "sealed": "a", "cells": {"rvlr|text": {"device": "cpu"}}}
    other = {key: value for key, value in {**record, "seed": 1, **changed}.items() if value is not None}
    for seed, content in enumerate((record, other)):
        write_json(tmp_path / "scenes" / f"seed-{seed}.json", content)
    refuses(fault, read_seeds, tmp_path, "scenes", "a", 2)


def double(number, wait, device, root):
    time.sleep(wait)
    return 2 * number, torch.get_num_threads()


def test_structure_chooses_among_trials_within_the_slack_of_the_best_recall(plan):
    score = lambda recall, structure: {"0": {"none": {"r_mean": recall, "structure": structure}}}  # noqa: E731
    trials, slack = {("rvlr", n): {"learning_rate": n} for n in range(3)}, plan.tuning.slack
    scores = [score(50.0, 1.0), score(50.0 - slack, 5.0), score(49.9 - slack, 9.0)]
    chosen = _choose(plan, trials, dict(zip(trials, scores, strict=True)))
    assert [chosen["rvlr"][way]["learning_rate"] for way in ("recall", "structure")] == [0, 1]


def test_a_runner_keeps_the_order_of_its_items_each_in_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # for the workers
    assert Runner(2).run(double, [(n, n == 1) for n in (1, 2, 3)], "cells") == [(2, 1), (4, 1), (6, 1)]


@pytest.mark.slow
def test_a_cluster_gives_what_processes_give_though_a_worker_is_killed():
    import distributed

    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, protocol="tcp")
    with cluster:
        runner = Runner(scheduler=cluster.scheduler_address)
        results = {}
        for number, value in runner.stream(double, [(n, 0.5) for n in range(8)], "cells"):
            if not results:
                next(iter(cluster.workers.values())).process.process.kill()
            results[number] = value
    assert results == {n: (2 * n, 1) for n in range(8)}


def test_no_scheduler_is_one_line():
    with pytest.raises(OSError, match=r"tcp://127.0.0.1:9\b.*"):
        connect("tcp://127.0.0.1:9")
