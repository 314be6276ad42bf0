"""Fixtures shared by the tests; their files are kept in .cache/ between runs."""

import gc
import os
import pathlib
import signal
import sys

# a shell's background job ignores the first, nohup the second, and all that a test starts would too
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# under `make test`, a test's own make would call itself a part of that one, and say where it enters
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(name, None)
os.environ["HF_HUB_OFFLINE"] = "1"  # before any import reads it: no test asks the network
# Triton's kernels are interpreted wherever GPUs are hidden, below. It reads this as it is imported,
# which other conftests do before pytest knows its options; xdist's workers inherit it
asked = {argument.removeprefix("-m") for argument in sys.argv}
if "cuda" not in asked and not os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["TRITON_INTERPRET"] = "1"
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # each worker, with all it starts, on a core of its own: threads of torch and llama.cpp wait by
    # spinning, and where two processes share cores most of the time is spent so
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    os.environ["OMP_WAIT_POLICY"] = "passive"  # some tests compute on two threads all the same

import pytest  # noqa: E402

pytest.register_assert_rewrite("helpers")  # so that a failure in a helper shows its values
CACHE = pathlib.Path(__file__).parents[1] / ".cache"


def pytest_configure(config):
    """Hide GPUs from all tests but those of `-m cuda`: what they expect is the processor's."""
    if config.option.markexpr != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def bundled_base():
    """Return the folder of the bundled Gemma 3 270M; its GGUF is next to it as gemma-3-270m.gguf."""
    from lib.model import bundled

    return bundled.materialize(CACHE)


@pytest.fixture(scope="session")
def tiny_gemma3n(tmp_path_factory):
    """Return the folder of a tiny random Gemma 3n with the true architecture, one for the session: copy before changing."""
    from helpers import tiny_gemma3n as maker

    return maker.build(tmp_path_factory.mktemp("tiny_gemma3n"))


@pytest.fixture(scope="session")
def plain_tiny(tiny_gemma3n):
    """Return the tiny Gemma 3n from `load_base`, one for the session: read it, or copy.deepcopy it."""
    from helpers.tiny_models import a_job
    from lib.model import load

    return load.load_base(tiny_gemma3n, a_job())


@pytest.fixture(scope="session")
def adapted_tiny(tiny_gemma3n):
    """Return (the tiny Gemma 3n with a new adapter, its tokenizer), one for the session: read only."""
    from helpers.tiny_models import a_job
    from lib.model import adapter, load

    job = a_job()
    return adapter.add(load.load_base(tiny_gemma3n, job), job), load.load_tokenizer(tiny_gemma3n)


@pytest.fixture(scope="session")
def multimodal_tiny(tiny_gemma3n, tmp_path_factory):
    """Return the folder of the tiny Gemma 3n with towers, in two shards, one for the session: copy before changing."""
    from helpers.tiny_models import make_multimodal

    return make_multimodal(tiny_gemma3n, tmp_path_factory.mktemp("multimodal") / "base", shards=2)


@pytest.fixture(scope="session")
def float32_tiny(tiny_gemma3n):
    """(the tiny Gemma 3n in float32 with a shaken adapter, its loss and gradients on one thread), nothing recomputed."""
    import torch

    from helpers.tiny_models import a_job, loss_and_gradients, shaken
    from lib.model import load

    job = a_job(precision="fp32", gradient_checkpointing=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    net = shaken(load.load_for_training(tiny_gemma3n, job))
    reference = loss_and_gradients(net)
    torch.set_num_threads(before)
    return net, reference


@pytest.fixture(scope="session")
def tiny_run(tiny_gemma3n, tmp_path_factory):
    """Return a run folder with a finished export of the tiny Gemma 3n (a random adapter, not merged), one for the session: copy before changing."""
    import shutil

    from helpers import tiny_gemma3n as maker
    from lib import params
    from lib.common import files
    from lib.export import gguf_export, merge, servers
    from lib.record import run_record

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    shutil.copytree(tiny_gemma3n, folder / "merged")
    merge.add_missing_shared_kv(folder / "merged")
    maker.random_adapter(tiny_gemma3n, folder / "adapter")
    gguf_export.write_gguf(folder / "merged", folder / "gguf" / "tiny-q8_0.gguf")
    job = params.load_job("params/cpu.yaml", "max_seq_length=64")
    servers.write_server_files(folder, folder / "gguf" / "tiny-q8_0.gguf", job.base_model, 64)
    files.atomic_write(folder / "params.yaml", params.to_yaml(job))
    stages = {
        stage: {"status": "finished", "attempts": [{}], "artifacts": [], "inputs": {}}
        for stage in run_record.STAGES
    }
    stages["export"]["artifacts"] = files.describe_files(folder, ["merged", "gguf"])
    files.write_json(folder / "run.json", {"run": "tiny", "fingerprints": {}, "stages": stages})
    return folder


@pytest.fixture
def two_threads():
    """Compute on two threads, whatever the machine has."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def handlers_put_back():
    """Put back what a command that was called in this process does with signals and lost errors."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for number, handler in handlers.items():
        signal.signal(number, handler)


# the longest first, so that two workers end at about the same time
FIRST = ["test_pipeline.py", "test_launch.py", "test_stages.py", "export"]


def pytest_collection_modifyitems(items):
    """Run the longest files first, and what needs a GPU only where it is shown one."""
    items.sort(key=_turn)
    needing = [item for item in items if item.get_closest_marker("cuda")]
    if needing and not _sees_gpu():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and `-m cuda`"))


def _sees_gpu():
    import torch  # only the files of these tests import it anyway

    return torch.cuda.is_available()


def _turn(item):
    places = [FIRST.index(name) for name in item.path.parts if name in FIRST]
    return min(places, default=len(FIRST))


@pytest.fixture(scope="module", autouse=True)
def imports_out_of_the_collectors_sight():
    """Freeze what lives before a file's tests: each gc.collect() of ours would go through all of torch."""
    gc.collect()
    gc.freeze()
