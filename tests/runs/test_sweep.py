"""Sweeps: strict files, the same trials each time, what their folders say; with Ray (not installed in CI) what survives.

.venv/bin/pip install -r requirements-sweep.txt && .venv/bin/python -m pytest tests/runs/test_sweep.py
"""

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest

from helpers import standin
from lib import params
from lib.common import errors, files
from lib.common.errors import UserError
from lib.record import run_record
from lib.runs.sweep import command, sweep_file
from lib.runs.sweep import states as sweep

GOOD = "base: params/cpu.yaml\nset: {max_steps: 20, eval_steps: 5}\ngrid: {learning_rate: [1.0e-3, 1.0e-4], lora_r: [4, 8]}\nmetric: eval_loss_after\ndirection: min\n"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """trials(text of a sweep file), as the command makes them."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def make(text, overrides=""):
        (path := tmp_path / "try.yaml").write_text(text)
        return sweep_file.make_trials(sweep_file.read_sweep(str(path)), str(path), overrides)

    return make


# ---------------------------------------------------------------------------------------------------------------------
# the file


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("metric:", "metrik:"), "unknown key `metrik`; did you mean `metric`?"),
        (("direction: min", "direction: down"), '`direction` is "down"; expected one of min, max'),
        (("direction: min\n", ""), "`direction` is missing; expected one of min, max"),
        (("eval_loss_after", "accuracy"), '`metric` is "accuracy"; expected one of steps,'),
        (("grid:", "gird:"), "unknown key `gird`; did you mean `grid`?"),
        (
            ("grid: {learning_rate: [1.0e-3, 1.0e-4], lora_r: [4, 8]}\n", ""),
            "expected exactly one of grid, list, random; the file has none",
        ),
        (
            ("metric:", "list: [{lora_r: 4}]\nmetric:"),
            "expected exactly one of grid, list, random; the file has grid and list",
        ),
        (("lora_r: [4, 8]", "lora_r: []"), "`grid`: no values for lora_r; expected one or more"),
        (("lora_r: [4, 8]", "lora_r: 4"), "`grid` is {"),
        (
            ("lora_r: [4, 8]", "lora_rr: [4, 8]"),
            "trial 1 (learning_rate=0.001 lora_rr=4):\n  - unknown parameter `lora_rr`; did you mean `lora_r`?",
        ),
        (
            ("lora_r: [4, 8]", "lora_r: [4, 0]"),
            "trial 2 (learning_rate=0.001 lora_r=0):\n  - `lora_r` is 0; expected a whole number >= 1",
        ),
        (
            ("lora_r: [4, 8]", "save_steps: [4, 8]"),
            "trial 2 (learning_rate=0.001 save_steps=8) is the same run as (learning_rate=0.001 save_steps=4)",
        ),
        (
            ("lora_r: [4, 8]", "max_steps: [4, 8]"),
            "max_steps is both varied and set for every trial",
        ),
        (
            ("max_steps: 20", "max_stepz: 20"),
            "unknown parameter `max_stepz`; did you mean `max_steps`?",
        ),
        (("eval_steps: 5", "eval_steps: 0"), "early_stop compares held-out losses during training"),
        (
            ("eval_steps: 5", "eval_steps: 20"),
            "early_stop compares held-out losses during training",
        ),
        (
            ("max_steps: 20", "load_in_4bit: true"),
            "which needs an NVIDIA GPU, but gpus_per_trial is 0. Set gpus_per_trial: 1.",
        ),
        (
            ("max_steps: 20", "packing: true, neftune_noise_alpha: 5.0"),
            "Set packing: false, or neftune_noise_alpha: 0.",
        ),
        (
            ("metric:", "cores_per_trial: 0\nmetric:"),
            "`cores_per_trial` is 0; expected a whole number >= 1",
        ),
        (("metric:", "early_stop: no\nmetric:"), "`no` means different things"),
        (
            ("metric:", "learning_rate: 1.0e-4\nmetric:"),
            "unknown key `learning_rate`; put a parameter under `set`, grid, list or random",
        ),
        (("params/cpu.yaml", "params/cpuu.yaml"), "params file `params/cpuu.yaml` does not exist"),
        (
            ("grid: {learning_rate: [1.0e-3, 1.0e-4], lora_r: [4, 8]}", "random: {lora_r: [4, 8]}"),
            "`max_trials` is 0; a random search needs 1 or more",
        ),
        (
            (
                "grid: {learning_rate: [1.0e-3, 1.0e-4], lora_r: [4, 8]}",
                "max_trials: 2\nrandom: {lora_r: {low: 8, high: 4}}",
            ),
            "{low, high, log: true}",
        ),
        (
            (
                "grid: {learning_rate: [1.0e-3, 1.0e-4], lora_r: [4, 8]}",
                "max_trials: 2\nrandom: {lora_r: {low: 4, hihg: 8}}",
            ),
            "{low, high, log: true}",
        ),
    ],
)
def test_each_mistake_in_a_sweep_file_is_named_before_anything_starts(made, change, expected):
    assert change[0] in GOOD
    with pytest.raises(UserError) as error:
        made(GOOD.replace(*change))
    assert expected in str(error.value)
    assert len(str(error.value).splitlines()) < 8


def test_a_grid_is_every_combination_and_the_commands_make_the_jobs_that_were_checked(made):
    found = made(GOOD)
    assert [t.values for t in found] == [
        {"learning_rate": a, "lora_r": r} for a in (1e-3, 1e-4) for r in (4, 8)
    ]
    for trial in found:
        given = dict(zip(trial.words[1::2], trial.words[2::2], strict=True))
        assert params.load_job(given["--params"], given["--set"]) == trial.job
        assert trial.job.max_steps == 20
        assert trial.folder.name == given["--run"] == f"try-{params.fingerprint(trial.job)}"


def test_overrides_and_texts_with_blanks_reach_every_trial(made):
    found = made(
        GOOD.replace(
            "max_steps: 20", "max_steps: 20, columns: {question: 'what is asked', answer: it's}"
        ),
        "weight_decay=0.5",
    )
    for trial in found:
        assert params.load_job("params/cpu.yaml", trial.words[-1]) == trial.job
        assert trial.job.columns == {"question": "what is asked", "answer": "it's"}
        assert trial.job.weight_decay == 0.5


def test_a_list_is_its_entries_and_max_trials_takes_the_first(made):
    text = GOOD.replace(
        "grid: {learning_rate: [1.0e-3, 1.0e-4], lora_r: [4, 8]}",
        "list: [{lora_r: 2}, {lora_r: 4, lora_alpha: 16}, {lora_alpha: 32}]",
    )
    assert [t.values for t in made(text)] == [
        {"lora_r": 2},
        {"lora_r": 4, "lora_alpha": 16},
        {"lora_alpha": 32},
    ]
    assert [t.values for t in made(text + "max_trials: 2\n")] == [
        {"lora_r": 2},
        {"lora_r": 4, "lora_alpha": 16},
    ]


def test_a_random_search_draws_the_same_trials_again_inside_its_bounds_and_more_of_them_on(made):
    text = GOOD.replace(
        "grid: {learning_rate: [1.0e-3, 1.0e-4], lora_r: [4, 8]}",
        "random: {learning_rate: {low: 1.0e-5, high: 1.0e-2, log: true}, lora_r: {low: 2, high: 64}, lora_alpha: [8, 16]}\nmax_trials: 20",
    )
    found = [t.values for t in made(text)]
    assert found == [t.values for t in made(text)]
    assert found[:5] == [t.values for t in made(text.replace("max_trials: 20", "max_trials: 5"))]
    assert found != [t.values for t in made(text + "seed: 1\n")]
    assert all(
        1e-5 <= v["learning_rate"] <= 1e-2
        and isinstance(v["lora_r"], int)
        and 2 <= v["lora_r"] <= 64
        and v["lora_alpha"] in (8, 16)
        for v in found
    )
    below = sum(
        v["learning_rate"] < 10**-3.5 for v in found
    )  # half of a range in logarithms; a sixtieth of it in plain numbers
    assert 4 < below < 16
    few = text.replace(
        "random: {", "random: {learning_rate: [1.0e-3], lora_r: [4], lora_alpha: [8, 16]}\n#"
    )
    assert sorted(t.values["lora_alpha"] for t in made(few)) == [8, 16], "two alike are one trial"


def test_a_sweep_file_is_no_params_file_and_says_so():
    with pytest.raises(UserError, match="make sweep PARAMS=params/sweep.yaml"):
        params.load_job("params/sweep.yaml")


def test_the_example_is_valid_and_short():
    path = errors.ROOT / "params/sweep.yaml"
    assert len(path.read_text().splitlines()) <= 25
    assert (
        len(sweep_file.make_trials(sweep_file.read_sweep("params/sweep.yaml"), "params/sweep.yaml"))
        > 1
    )


def test_without_ray_one_screen_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path))
    monkeypatch.delitem(sys.modules, "lib.runs.sweep.sweep_ray", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert command.main(["--params", "params/sweep.yaml"]) == 2
    printed = capsys.readouterr().err
    assert "pip install -r requirements-sweep.txt" in printed
    assert len(printed.splitlines()) < 6
    assert not any(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# what the folders say


def _folder(path, status, evals, exit="ok"):
    """A run folder as far as a sweep reads it."""
    path.mkdir()
    stages = {
        s: {"status": "pending", "attempts": [], "artifacts": [], "inputs": {}}
        for s in run_record.STAGES
    }
    stages["prepare"].update(status="finished", attempts=[{"exit": "ok"}])
    stages["train"].update(status=status, attempts=[{"exit": exit}])
    lines = [{"event": "session", "session": 1, "start_step": 0}]
    lines += [
        {"event": "eval", "session": 1, "when": "during", "step": n + 1, "eval_loss": loss}
        for n, loss in enumerate(evals)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status == "finished":
        files.write_json(
            path / "results.json",
            {"train": {"eval_loss_after": evals[-1], "samples_per_second": 10 - evals[-1]}},
        )
    files.write_json(path / "run.json", {"run": path.name, "fingerprints": {}, "stages": stages})
    return path


def test_states_and_the_table_come_from_the_run_folders(tmp_path, made, capsys, monkeypatch):
    compared = []
    monkeypatch.setattr(
        command,
        "compare_runs",
        lambda *given: (compared.append(given), ("", tmp_path / "compare.html"))[1],
    )
    of = sweep_file.Sweep(
        base="params/cpu.yaml", grid={"lora_r": [4]}, metric="eval_loss_after", direction="min"
    )
    folders = [
        _folder(tmp_path / "a", "finished", [3.0, 2.0]),
        _folder(tmp_path / "b", "finished", [3.0, 1.5]),
        _folder(tmp_path / "c", "interrupted", [4.0]),
        _folder(tmp_path / "d", "interrupted", [4.5]),
        _folder(tmp_path / "e", "failed", [], "Diverged: inf"),
        tmp_path / "f",
    ]
    (folders[2] / sweep.RECORD).write_text("{}")
    states = [sweep.read_state(f, of) for f in folders]
    assert [s.word for s in states] == [
        "finished",
        "finished",
        "stopped early",
        "interrupted",
        "failed",
        "pending",
    ]
    assert states[1][1:4] == (2, 1.5, 1.5)
    assert states[2][1:4] == (1, 4.0, None), "a trial stopped early has no final number"
    assert sweep.find_best(states, of) == 1
    fast = sweep_file.Sweep(
        base="params/cpu.yaml", grid={"lora_r": [4]}, metric="samples_per_second", direction="min"
    )
    assert sweep.find_best([sweep.read_state(f, fast) for f in folders], fast) == 0
    assert (
        sweep.read_state(folders[2], of.model_copy(update={"early_stop": False})).word
        == "interrupted"
    ), "without early_stop it is continued"
    found = [
        sweep_file.Trial(f, {"lora_r": n}, made(GOOD)[0].job, []) for n, f in enumerate(folders)
    ]
    assert command.tell_end(found[:4], of, "make sweep") is True
    assert "1 of 4 trials are not done" in capsys.readouterr().out
    assert command.tell_end(found, of, "make sweep") is False, "a failed trial is a failure"
    printed = capsys.readouterr().out
    assert "e failed: Diverged: inf" in printed
    assert "best: b." in printed
    assert compared[-1] == (folders[:4], "eval_loss_after"), (
        "those of which there is something to compare"
    )
    assert printed.splitlines()[-1] == str(tmp_path / "compare.html")
    assert [line[0] for line in printed.splitlines()[2:8]] == [" ", "*", " ", " ", " ", " "]
    (folders[1] / "model").write_text("x")
    broken = json.loads((folders[1] / "run.json").read_text())
    broken["stages"]["train"]["artifacts"] = [{"path": "model", "bytes": 2, "sha256": ""}]
    files.write_json(folders[1] / "run.json", broken)
    assert (
        sweep.read_state(folders[1], of).word != "finished"
        or sweep.read_state(folders[1], of).value is None
    ), "what is damaged is not done"


# ---------------------------------------------------------------------------------------------------------------------
# a trial, and sweeps with Ray, on stand-in notebooks whose train stage takes a step in a moment

TRAIN = """
from lib.record import ledger, run_record
from lib.training import stops
book = ledger.Ledger(run.folder / 'metrics.jsonl')
first = len(ledger.valid_steps(ledger.read_ledger(book.path)))
book.write('session', start_step=first)
(run.folder / f'session-{book.session}').write_text(str(os.getpid()))
for step in range(first + 1, job.max_steps + 1):
    time.sleep(0.3)
    book.write('step', step=step, epoch=1.0, loss=1.0, steps=1, seconds=0.3, rows=1, tokens=1, padded=1, trained=1, memory_gib=0.0)
    if step % job.eval_steps == 0:
        book.write('eval', when='during', step=step, eval_loss=job.learning_rate + 1 / step)
    if (run.folder / stops.STOP_FILE).exists():
        (run.folder / stops.STOP_FILE).unlink()
        raise stops.SessionOver(f'a stop file was found after step {step}')
book.write('eval', when='after', step=job.max_steps, eval_loss=job.learning_rate + 1 / job.max_steps)
"""


@pytest.fixture
def tree(tmp_path):
    made = standin.Tree.make(tmp_path / "tree")
    # a sweep ends with the page that compares its runs, another module's concern
    (made.root / "lib/runs/compare.py").write_text(
        "def compare_runs(folders, metric):\n    return '', folders[0].parent / 'compare.html'\n"
    )
    work = standin.cells("train")
    work[3:] = [
        TRAIN,
        "(run.folder / 'adapter').mkdir(exist_ok=True)\n(run.folder / 'adapter/result.txt').write_text('done')\n"
        "record.finish_stage(run, 'train', ledger.summarise(ledger.read_ledger(book.path)), ['adapter'], 'done')",
    ]
    (made.root / "notebooks/train.ipynb").write_text(standin.notebook(work))
    (made.root / "params/few.yaml").write_text(
        "base: params/job.yaml\nset: {max_steps: 9, eval_steps: 3}\nlist: [{learning_rate: 0.1}, {learning_rate: 0.2}, {learning_rate: 0.3}, {learning_rate: 0.4}]\n"
        "metric: eval_loss_after\ndirection: min\nreduction_factor: 2\n"
    )
    yield made
    made.stop()


def _start(tree, *words, **env):
    tree.started.append(
        subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=tree.root,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": f"{tree.root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
                "MEDRESCUE_RUNS": "",
                **env,
            },
        )
    )
    return tree.started[-1]


def _train(tree, name):
    path = tree.root / "runs" / name / "run.json"
    return (
        json.loads(path.read_text())["stages"]["train"]
        if path.exists()
        else {"status": "pending", "attempts": []}
    )


@pytest.mark.slow
def test_a_trial_whose_parent_is_gone_stops_with_a_true_record_and_is_waited_for(tree):
    words = [
        "lib.runs.sweep.trial",
        "train",
        "--params",
        "params/job.yaml",
        "--run",
        "t",
        "--set",
        "max_steps=40 eval_steps=3",
    ]
    first = _start(tree, *words)
    standin.wait_for(lambda: (tree.root / "runs/t/session-1").exists(), "the first session", 300)
    first.stdin.close()  # what the kernel does when the parent is killed
    second = _start(
        tree, *words[:-1], "max_steps=40 eval_steps=3"
    )  # at once, while the first still saves
    assert first.wait(200) == 128 + signal.SIGTERM
    standin.wait_for(lambda: (tree.root / "runs/t/session-2").exists(), "the second session", 300)
    assert _train(tree, "t")["attempts"][0]["exit"].startswith("stopped by SIGTERM")
    (tree.root / "runs/t/stop").touch()
    assert second.wait(200) == 1
    assert "SessionOver" in _train(tree, "t")["attempts"][1]["exit"]


@pytest.fixture
def short():
    """A temporary folder whose path leaves room for Ray's sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield pathlib.Path(folder)


needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed (requirements-sweep.txt)"
)


@needs_ray
def test_a_sweep_stops_the_worse_ones_early_survives_a_killed_trial_and_driver_and_is_not_run_twice(
    tree, short
):
    names = [
        t.removesuffix("\n")
        for t in subprocess.run(
            [
                sys.executable,
                "-c",
                "from lib.runs.sweep import sweep_file; [print(t.folder.name) for t in sweep_file.make_trials(sweep_file.read_sweep('params/few.yaml'), 'params/few.yaml')]",
            ],
            cwd=tree.root,
            text=True,
            capture_output=True,
            check=True,
        ).stdout.splitlines()
    ]
    secret = {"HF_TOKEN": "hf_" + "planted" * 5, "TMPDIR": str(short)}
    driver = _start(tree, "lib.runs.sweep", "--params", "params/few.yaml", **secret)
    kernel = standin.wait_for(
        lambda: next(tree.root.glob("runs/*/session-1"), None), "a trial that trains", 400
    )
    standin.wait_for(lambda: kernel.read_text(), "its kernel")
    os.kill(int(kernel.read_text()), signal.SIGKILL)
    standin.wait_for(
        lambda: (kernel.parent / "session-2").exists(), "the killed trial, continued", 400
    )
    driver.kill()
    driver.communicate()
    driver = _start(tree, "lib.runs.sweep", "--params", "params/few.yaml", **secret)
    out, err = driver.communicate(timeout=500)
    assert driver.returncode == 0, out + err
    assert "Traceback" not in out + err
    words = [
        next(
            line
            for line in out.splitlines()
            if line[2:].strip().startswith(name) and "learning_rate" not in line
        )
        for name in names
    ]
    assert "finished" in words[0]
    assert words[0].startswith("*"), "the lowest held-out loss is the best"
    assert "stopped early" in words[3], "the worst one does not see its end"
    assert len(list((tree.root / "runs" / names[0]).glob("session-*"))) <= 3
    for name, line in zip(names, words, strict=True):
        entry = _train(tree, name)
        assert entry["status"] == ("finished" if "finished" in line else "interrupted")
        if "stopped early" in line:
            why = json.loads((tree.root / "runs" / name / sweep.RECORD).read_text())[
                "stopped_early"
            ]
            assert why["evals"] * 3 == why["at_step"] < 9
    before = {p: p.stat().st_mtime_ns for p in (tree.root / "runs").rglob("*")}
    again = _start(tree, "lib.runs.sweep", "--params", "params/few.yaml", **secret)
    out, err = again.communicate(timeout=400)
    assert again.returncode == 0, out + err
    assert "4 of them already done" in out
    assert before == {
        p: p.stat().st_mtime_ns
        for p in (tree.root / "runs").rglob("*")
        if p in before or p.name != "report.html"
    }
    found = subprocess.run(
        ["grep", "-rlaF", secret["HF_TOKEN"], str(tree.root), str(short)],
        capture_output=True,
        text=True,
    ).stdout
    assert found == "", "the token is in no file"


@needs_ray
def test_sigterm_lets_the_trials_save_and_more_cores_than_there_are_is_an_error(tree):
    driver = _start(
        tree, "lib.runs.sweep", "--params", "params/few.yaml", "--set", "weight_decay=0.1"
    )
    standin.wait_for(
        lambda: next(tree.root.glob("runs/*/session-1"), None), "a trial that trains", 400
    )
    driver.terminate()
    out, err = driver.communicate(timeout=400)
    assert driver.returncode == 128 + signal.SIGTERM, out + err
    assert "the same command continues" in out
    began = [p.parent.name for p in tree.root.glob("runs/*/session-1")]
    assert began
    for name in began:
        assert _train(tree, name)["status"] in ("interrupted", "finished"), (
            "nothing is left as running"
        )
    path = tree.root / "params/few.yaml"
    path.write_text(path.read_text() + "cores_per_trial: 1000\n")
    greedy = _start(tree, "lib.runs.sweep", "--params", "params/few.yaml")
    out, err = greedy.communicate(timeout=400)
    assert greedy.returncode == 2
    assert "cores_per_trial is 1000, but no machine of the sweep has more" in err


# ---------------------------------------------------------------------------------------------------------------------
# launch files


LAUNCH = errors.ROOT / "params/launch"
RUNNER = """#!/usr/bin/env bash
echo "$*" >> calls
trap 'echo saved >> calls; exit 143' TERM
for _ in $(seq "$STEPS"); do sleep 0.1; done
"""


def _slurm(folder, *words, **env):
    """The Slurm script in a folder of stand-ins: the runner notes its words, scontrol and srun theirs."""
    for name, text in (
        (".venv/bin/python", RUNNER),
        (".venv/bin/ray", RUNNER),
        ("bin/scontrol", '#!/bin/sh\necho "scontrol $*" >> calls\necho first\n'),
        ("bin/srun", '#!/bin/sh\necho "srun $*" >> calls\n'),
        ("bin/sleep", "#!/bin/sh\nexec /bin/sleep 0.1\n"),
    ):
        (path := folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return subprocess.Popen(
        ["bash", str(LAUNCH / "slurm.sh"), *words],
        cwd=folder,
        start_new_session=True,
        env={
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "STEPS": "1",
            **env,
        },
    )


def test_the_slurm_script_runs_the_runner_saves_before_its_time_is_up_and_queues_again(tmp_path):
    assert _slurm(tmp_path, "run", "--params", "params/h100.yaml").wait(60) == 0
    assert (tmp_path / "calls").read_text() == "-m lib.runs run --params params/h100.yaml\n"
    (tmp_path / "calls").unlink()
    job = _slurm(tmp_path, "sweep", "--params", "params/sweep.yaml", STEPS="600")
    standin.wait_for((tmp_path / "calls").exists, "the sweep")
    job.terminate()
    assert job.wait(60) == 143
    assert (tmp_path / "calls").read_text().splitlines() == [
        "-m lib.runs.sweep --params params/sweep.yaml",
        "saved",
        "scontrol requeue 7",
    ]
    assert _slurm(tmp_path).wait(60) == 1, "no words: the usage"


def test_the_slurm_script_starts_ray_over_the_nodes_and_passes_shellcheck(tmp_path):
    assert (
        _slurm(
            tmp_path,
            "sweep",
            "--params",
            "s.yaml",
            SLURM_JOB_NUM_NODES="3",
            SLURM_JOB_NODELIST="n[1-3]",
        ).wait(60)
        == 0
    )
    calls = (tmp_path / "calls").read_text()
    assert (
        "srun --nodes=1 --ntasks=1 --overlap -w first .venv/bin/ray start --head --node-ip-address first --port 20007"
        in calls
    )
    assert (
        "srun --nodes=2 --ntasks-per-node=1 --overlap --exclude first .venv/bin/ray start --address first:20007"
        in calls
    )
    assert "-m lib.runs.sweep --params s.yaml" in calls
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", str(LAUNCH / "slurm.sh")], check=True)


def test_skypilot_reads_the_task(tmp_path):
    if importlib.util.find_spec("sky") is None:
        pytest.skip("skypilot is not installed")
    code = "import sys, sky; task = sky.Task.from_yaml(sys.argv[1]); print(sorted(task.envs), task.num_nodes)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(LAUNCH / "sky.yaml")],
        capture_output=True,
        text=True,
        cwd=errors.ROOT,
        env={**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
    )
    assert done.stdout.splitlines()[-1:] == ["['PARAMS', 'SET', 'TARGET'] 1"], done.stderr


def test_the_parameters_of_one_job_are_no_sweep_file():
    with pytest.raises(UserError, match="not a sweep file.*`make run PARAMS=params/cpu.yaml`") as e:
        sweep_file.read_sweep("params/cpu.yaml")
    assert "unknown key" not in str(e.value)
