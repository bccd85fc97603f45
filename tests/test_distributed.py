"""Several processes: the losses of one, half the memory under FSDP, one kind of checkpoint, restarts by themselves."""

import io
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from test_train import ROOT, SMALL, assert_equal_states, timeless, write_dataset

import configurator
import sample
import train
from checkpoints.build import build_model
from checkpoints.file import write_archive
from checkpoints.folder import find_newest, lock_folder
from checkpoints.load import Damaged, load_checkpoint
from checkpoints.saver import Saver
from checkpoints.sharded import IndexUnpickler, save_sharded
from model import GPT, GPTConfig
from system import distributed
from system.distributed import Ranks
from training import start as starting
from training.batches import Batches
from training.health import Health
from training.metrics import read_metrics
from training.optim import make_optimizer, set_rates
from training.outputs import Outputs
from training.start import continues

pytestmark = pytest.mark.skipif(os.name == "nt", reason="starts processes by fork")
GEOMETRY = ["--gradient_accumulation_steps=4", "--batch_size=2", "--grad_clip=0.5", "--eval_interval=5"]
MODELS = {
    "tied weights, GQA": ["--n_kv_head=1"],
    "everything else": ["--tie_weights=False", "--pos=rope", "--norm=rmsnorm", "--mlp=swiglu", "--qk_norm=True",
                        "--softcap=10", "--mlp_hidden=33", "--weight_decay=0.3", "--checkpoint_activations=True"],
}  # fmt: skip


def become(rank: int, world_size: int, port: int, folder: Path) -> None:
    """Makes this process one of several, which writes to a log in `folder`."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    log = os.open(folder / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)


def work(rank: int, world_size: int, port: int, argv: list[str], folder: Path) -> None:
    """One process of a run; leaves the bytes of its weights and of its optimizer's state in `folder`."""
    become(rank, world_size, port, folder)
    made = []

    def make_optimizer(*args):
        made.append(make(*args))
        return made[0]

    make, starting.make_optimizer = starting.make_optimizer, make_optimizer
    status = train.main(argv)
    parameters = [p for group in made[0].param_groups for p in group["params"]]
    tensors = [*parameters, *(v for slot in made[0].state.values() for v in slot.values() if v.dim())]
    locals_ = [t.to_local() if distributed.is_shard(t) else t for t in tensors]
    size = sum(t.untyped_storage().nbytes() for t in locals_)
    (folder / f"bytes-{rank}").write_text(str(size), encoding="utf-8")
    os._exit(status)  # without the interpreter's teardown


def work_compiled(rank: int, world_size: int, port: int, argv: list[str], folder: Path) -> None:
    """As work; each graph of torch.compile, which is run as it is, leaves the shapes of its inputs in `folder`."""
    plain = torch.compile

    def note(graph, inputs):
        shapes = [[size if type(size) is int else "dynamic" for size in getattr(x, "shape", [x])] for x in inputs]
        with open(folder / f"graphs-{rank}", "a", encoding="utf-8") as file:
            print(json.dumps(shapes), file=file)
        return graph.forward

    torch.compile = lambda function, **options: plain(function, backend=note, **options)
    work(rank, world_size, port, [*argv, "--compile=True"], folder)


def work_told_to_end(rank: int, world_size: int, port: int, argv: list[str], folder: Path) -> None:
    """As work; the last rank alone is told to end, in its fourth step."""
    take = Batches.next

    def take_or_be_told(batches):
        if rank == world_size - 1 and batches.number == 3 * batches.run.micro_steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(batches)

    Batches.next = take_or_be_told
    work(rank, world_size, port, argv, folder)


@pytest.fixture(scope="module")
def processes():
    """A server that has imported all and forks the processes of a run: an import in each would take seconds."""
    context = multiprocessing.get_context("forkserver")
    late = ["torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.checkpoint"]
    context.set_forkserver_preload([*late, "train", "test_distributed"])
    return context


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    words = "the cat sat on a mat. the dog ran to it. " * 100
    return write_dataset(tmp_path_factory.mktemp("dataset"), words)


@pytest.fixture(scope="module")
def run(processes, dataset, tmp_path_factory):
    """run(world_size, *options, after=folder): trains, in a copy of that folder; returns the folder. A run that was
    there before is not repeated. status: what every process ends with."""
    done = {}

    def run(world_size: int, *options: str, after: Path | None = None, work=work, status: int = 0) -> Path:
        key = (world_size, options, after, work)
        if key in done:
            return done[key]
        folder = tmp_path_factory.mktemp("run")
        if after is not None:
            shutil.copytree(after, folder, dirs_exist_ok=True)
            options = (*options, "--init_from=resume")
        argv = [*SMALL, *GEOMETRY, f"--dataset={dataset}", f"--out_dir={folder}", *options]
        if world_size == 1:
            assert train.main(argv) == 0
        else:
            port = free_port()
            ranks = [processes.Process(target=work, args=(rank, world_size, port, argv, folder))
                     for rank in range(world_size)]  # fmt: skip
            for process in ranks:
                process.start()
            logs = join_all(ranks, folder)
            assert [process.exitcode for process in ranks] == [status] * world_size, "\n".join(logs)
        done[key] = folder
        return folder

    return run


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def join_all(ranks: list, folder: Path) -> list[str]:
    """Waits until the processes have ended, kills those that do not end, and returns their logs."""
    try:
        for process in ranks:
            process.join(600)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [(folder / f"log-{rank}").read_text(encoding="utf-8") for rank in range(len(ranks))]


def state_of(folder: Path, name: str = "last.pt") -> dict:
    return load_checkpoint(folder / name)


def assert_close(a: Path, b: Path, tolerance: float = 1e-5) -> None:
    """Losses and gradient norms of all steps, weights and moments after them."""
    records = timeless(a), timeless(b)
    assert len(records[0]) == len(records[1]) > 0
    for x, y in zip(*records, strict=True):
        x, y = ({k: v for k, v in r.items() if isinstance(v, float | int) and k != "memory_mb"} for r in (x, y))
        assert x == pytest.approx(y, rel=tolerance), (x, y)
    a, b = state_of(a), state_of(b)
    assert a["model"].keys() == b["model"].keys() and a["model_args"] == b["model_args"]
    for name in a["model"]:
        assert (a["model"][name] - b["model"][name]).abs().max() < tolerance, name
    for number, slot in a["optimizer"]["state"].items():
        for key, value in slot.items():
            assert (value - b["optimizer"]["state"][number][key]).abs().max() < tolerance, (number, key)


def test_a_signal_to_one_rank_ends_all_after_the_same_step_and_is_resumed_from(run):
    options = ("--eval_interval=100",)
    stopped = run(2, "--max_iters=100000", *options, work=work_told_to_end, status=128 + signal.SIGTERM)
    assert state_of(stopped)["iter_num"] == 4
    whole = run(2, "--max_iters=8", *options)
    assert_equal_states(state_of(whole), state_of(run(2, "--max_iters=8", *options, after=stopped)))


@pytest.mark.parametrize("model", MODELS)
def test_plain_ddp_and_fsdp_agree_over_20_steps(run, model):
    options = ("--max_iters=20", *MODELS[model])
    plain = run(1, *options)
    assert_close(plain, run(2, *options))
    assert_close(plain, run(2, *options, "--parallel=fsdp"))


def test_compiled_fsdp_has_one_graph_for_all_blocks_and_one_for_the_loss(run):
    """The second begins at the blocks' output, so that the logits, which are what is largest, are inside it."""
    options = ("--max_iters=4", "--n_layer=12", "--parallel=fsdp", "--eval_iters=200")  # Dynamo stops after 8 versions
    # The two losses differ by 1e-7. AdamW's first steps magnify that in weights whose gradients (some 1e-9) are below
    # its eps; at the usual rate of 1e-2, by up to 2e-5 with AVX512-BF16
    options += ("--learning_rate=1e-3",)
    plain, compiled = run(2, *options), run(2, *options, work=work_compiled)
    for x, y in zip(*([r for r in timeless(f) if r["kind"] == "train"][:2] for f in (plain, compiled)), strict=True):
        assert [x["loss"], x["grad_norm"]] == pytest.approx([y["loss"], y["grad_norm"]], rel=1e-6)
    lines = (compiled / "graphs-0").read_text(encoding="utf-8").splitlines()
    shapes = [json.loads(line) for line in lines]
    hidden, vocab_size = [2, 16, 16], state_of(plain)["model_args"]["vocab_size"]
    assert len(shapes) == 4 and "dynamic" not in str(shapes)  # for evaluation and for training
    for blocks, tail in (shapes[:2], shapes[2:]):
        assert hidden in blocks and hidden in tail and [vocab_size, 16] in tail
    assert not [shape for graph in shapes for shape in graph if len(shape) == 3 and shape[-1] == vocab_size]
    assert_close(plain, compiled)


def test_fsdp_halves_the_memory_of_weights_and_optimizer(run):
    options = ("--max_iters=20", *MODELS["tied weights, GQA"])
    whole, shards = ([int((folder / f"bytes-{rank}").read_text(encoding="utf-8")) for rank in (0, 1)]
                     for folder in (run(2, *options), run(2, *options, "--parallel=fsdp")))  # fmt: skip
    state = state_of(run(1, *options))
    weights = {t.data_ptr(): t for t in state["model"].values()}.values()
    moments = [v for slot in state["optimizer"]["state"].values() for v in slot.values() if v.dim()]
    assert whole == [sum(t.numel() * 4 for t in (*weights, *moments))] * 2
    assert max(shards) <= 0.51 * whole[0]  # rows of a matrix can be odd in number


def test_stopped_on_four_processes_a_run_goes_on_with_one_or_two(run):
    plain = run(1, "--max_iters=12")
    four = run(4, "--max_iters=7")
    assert_close(plain, run(1, "--max_iters=12", after=four))
    assert_close(plain, run(2, "--max_iters=12", after=four))


@pytest.mark.parametrize("world_size, parallel", [(3, "ddp"), (2, "fsdp")])
def test_the_same_number_of_processes_resumes_bitwise(run, world_size, parallel):
    options = (f"--parallel={parallel}", "--dropout=0.1", "--gradient_accumulation_steps=6")
    whole = run(world_size, "--max_iters=8", *options)
    parts = run(world_size, "--max_iters=8", *options, after=run(world_size, "--max_iters=3", *options))
    assert_equal_states(state_of(whole), state_of(parts))
    losses = [[r["loss"] for r in read_metrics(f / "metrics.jsonl") if r["kind"] == "train"] for f in (whole, parts)]
    assert losses[0] == losses[1] and len(losses[0]) == 8


def test_float16_under_fsdp_scales_skips_and_learns_as_in_plain_mode(run):
    plain, fsdp = (run(n, "--max_iters=6", "--dtype=float16", "--parallel=fsdp") for n in (1, 2))
    for a, b in zip(read_metrics(plain / "metrics.jsonl"), read_metrics(fsdp / "metrics.jsonl"), strict=True):
        for key in a.keys() & {"loss", "val_loss", "loss_scale", "skipped"}:
            assert a[key] == pytest.approx(b[key], rel=0.01), (key, a, b)


def test_a_run_moves_through_all_modes_and_both_formats_of_checkpoints(run, capsys):
    """FSDP on 2, sharded; plain; DDP on 2, in files; FSDP on 3 and on 2, sharded again."""
    micro_batches, fsdp = "--gradient_accumulation_steps=6", "--parallel=fsdp"
    to_folders = "--checkpoint_format=sharded"
    one = run(2, "--max_iters=6", micro_batches, to_folders, fsdp)
    assert (one / "last.pt" / "__1_0.distcp").exists() and (one / "ckpt.pt" / ".metadata").exists()
    file = state_of(run(2, "--max_iters=6", micro_batches, fsdp))
    assert_equal_states(file, state_of(one))
    two = run(1, "--max_iters=8", micro_batches, after=one)
    assert (two / "last.pt").is_dir()
    three = run(2, "--max_iters=10", micro_batches, "--checkpoint_format=full", "--parallel=ddp", after=two)
    assert (three / "last.pt").is_file() and (three / "ckpt.pt").is_file()
    four = run(3, "--max_iters=12", micro_batches, to_folders, fsdp, after=three)
    assert_close(run(1, "--max_iters=14", micro_batches), run(2, "--max_iters=14", micro_batches, after=four))
    capsys.readouterr()
    sample.main([f"--out_dir={one}", "--start=the ", "--num_samples=1", "--max_new_tokens=8", "--device=cpu"])
    assert capsys.readouterr().out.startswith("the ")


def test_recomputed_activations_change_nothing_but_memory(dataset, run):
    options = ("--max_iters=4", "--dropout=0.2")
    plain, again = run(1, *options), run(1, *options, "--checkpoint_activations=True")
    assert_equal_states(state_of(plain), state_of(again))
    model = build_model(state_of(plain)).train()
    x, kept = torch.zeros(4, 16, dtype=torch.int64), []
    for model.checkpoint_activations in (False, True):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(x, x, return_logits=False)
        kept.append(total)
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize("n_layer", [1, 3])
def test_processes_that_share_muons_work_step_as_one(run, n_layer):
    """3 matrices of a shape for 2 processes: one has a share with padding; of 1, one has nothing."""
    options = ("--max_iters=8", "--optimizer=muon", f"--n_layer={n_layer}")
    alone, half = run(1, *options), run(2, "--max_iters=4", *options[1:])
    assert_close(alone, run(2, *options), 5e-3)  # a mix-up shows as 0.1, a gradient's last bit as 0.002
    assert_close(alone, run(1, *options, after=half), 5e-3)
    assert "FutureWarning" not in (half / "log-0").read_text(encoding="utf-8")  # about what PyTorch will drop


def move(rank: int, world_size: int, port: int, out: Path) -> None:
    """Leaves the weights after four steps of Muon under FSDP with gradients that are the same for any world_size."""
    become(rank, world_size, port, out)
    ranks = Ranks()
    ranks.start("gloo", torch.device("cpu"))
    model = muon_model()
    model = ranks.shard(model, torch.device("cpu"), torch.float32) if world_size > 1 else model
    state = four_muon_steps(model)
    if ranks.is_main:
        torch.save(state, out / "state.pt")
    os._exit(0)


def muon_model() -> GPT:
    """Matrices of 14, 21, 28 and 40 rows, tall ones and wide ones, with scales other than 1."""
    config = GPTConfig(8, 16, n_layer=3, n_head=2, n_embd=14, head_dim=14, n_kv_head=1, mlp="swiglu", mlp_hidden=40)
    return GPT(config, torch.Generator().manual_seed(0))


def four_muon_steps(model: GPT) -> dict:
    optimizer = make_optimizer(model, 1e-2, 0.1, (0.9, 0.95), muon_learning_rate=0.02)
    generator = torch.Generator().manual_seed(1)
    for iter_num in range(4):
        set_rates(optimizer, 0.8, iter_num)
        for p in model.parameters():
            p.grad = distributed.place(torch.randn(p.shape, generator=generator), p)
        optimizer.step()
    return distributed.gather({"model": model.state_dict(keep_vars=True), "optimizer": optimizer.state_dict()}, True)


@pytest.mark.parametrize("world_size", [2, 3])
def test_muon_of_shards_moves_as_muon_of_whole_matrices(processes, tmp_path, world_size):
    port = free_port()
    ranks = [processes.Process(target=move, args=(r, world_size, port, tmp_path)) for r in range(world_size)]
    for process in ranks:
        process.start()
    logs = join_all(ranks, tmp_path)
    assert [process.exitcode for process in ranks] == [0] * world_size, "\n".join(logs)
    found, expected = torch.load(tmp_path / "state.pt"), four_muon_steps(muon_model())
    start = muon_model().state_dict()
    assert all((expected["model"][name] - start[name]).abs().max() > 1e-3 for name in start)
    for name, value in expected["model"].items():
        torch.testing.assert_close(found["model"][name], value, atol=1e-5, rtol=0, msg=name)
    for number, slot in expected["optimizer"]["state"].items():
        for key, value in slot.items():
            torch.testing.assert_close(found["optimizer"]["state"][number][key], value, atol=1e-5, rtol=0, msg=key)


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_run_with_muon_goes_on_in_any_mode(run, world_size):
    """FSDP stops, one process goes on, then DDP, then FSDP in shards: as FSDP, and as one process, without a stop."""
    options = ("--optimizer=muon", "--gradient_accumulation_steps=6", "--muon_learning_rate=0.01")
    fsdp, whole = "--parallel=fsdp", run(1, "--max_iters=8", *options)
    undisturbed = run(world_size, "--max_iters=8", *options, fsdp)
    assert_close(whole, undisturbed, 5e-3)  # a gradient's last bit is 0.002 after Muon
    first = run(world_size, "--max_iters=2", *options, fsdp)
    again = run(world_size, "--max_iters=8", *options, fsdp, after=first)
    assert_equal_states(state_of(undisturbed), state_of(again))
    second = run(1, "--max_iters=4", *options, after=first)
    third = run(world_size, "--max_iters=6", *options, "--parallel=ddp", after=second)
    last = run(world_size, "--max_iters=8", *options, fsdp, "--checkpoint_format=sharded", after=third)
    assert_close(whole, last, 5e-3)


# ---- the sharded format ----------------------------------------------------------------------------------


@pytest.fixture
def folder(run, tmp_path) -> Path:
    """out_dir with last.pt and last-1.pt in the sharded format."""
    shutil.copytree(run(1, "--max_iters=4", "--eval_interval=2", "--checkpoint_format=sharded"), tmp_path / "out")
    assert (tmp_path / "out" / "last-1.pt").is_dir()
    return tmp_path / "out"


def test_a_corrupted_byte_in_a_shard_is_found_and_the_older_checkpoint_taken(folder, capsys):
    part = folder / "last.pt" / "__0_0.distcp"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    shutil.rmtree(folder / "ckpt.pt")
    assert find_newest(folder) == folder / "last-1.pt"
    assert "damaged" in capsys.readouterr().err
    assert (folder / "last.pt.damaged").is_dir()


@pytest.mark.parametrize("name", [".metadata", "state.pt"])
def test_code_hidden_in_a_sharded_checkpoint_is_refused_and_not_run(folder, tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    target = folder / "last.pt" / name
    target.write_bytes(pickle.dumps(Bomb()))
    if name == ".metadata":  # with a checksum that is right
        rest = torch.load(folder / "last.pt" / "state.pt", weights_only=True)
        write_archive(folder / "last.pt" / "state.pt", {**rest, "index_crc32": zlib.crc32(target.read_bytes())})
    with pytest.raises(Damaged):
        load_checkpoint(folder / "last.pt")
    assert not (tmp_path / "ran").exists()


def test_a_member_of_an_enum_may_be_asked_for_by_name_as_python_3_11_2_does_and_nothing_else():
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING as FORMATS

    class Asks:
        def __init__(self, *of_and_name):
            self.of_and_name = of_and_name

        def __reduce__(self):
            return getattr, self.of_and_name

    def read(*of_and_name):
        return IndexUnpickler(io.BytesIO(pickle.dumps(Asks(*of_and_name)))).load()

    assert read(FORMATS, "TORCH_PRESERVE_FORMAT") is FORMATS.TORCH_PRESERVE_FORMAT
    for of, name in ((FORMATS, "__class__"), (FORMATS, "mro"), (torch.Size, "__reduce__"), ("text", "format")):
        with pytest.raises(pickle.UnpicklingError, match="asks for"):
            read(of, name)


def test_a_kill_between_the_renames_of_two_folders_loses_neither(folder):
    before = load_checkpoint(folder / "ckpt.pt")
    os.replace(folder / "ckpt.pt", folder / "ckpt.pt.old")  # as replace_path does first
    shutil.copytree(folder / "last.pt", folder / "last.pt.tmp")
    lock_folder(folder).close()
    assert_equal_states(before, load_checkpoint(folder / "ckpt.pt"))
    assert not (folder / "ckpt.pt.old").exists() and not (folder / "last.pt.tmp").exists()


def test_a_failed_write_of_shards_is_one_line_and_leaves_the_old_ones(folder, monkeypatch):
    import torch.distributed.checkpoint as dcp

    def write_data(*_):
        raise OSError(28, "No space left on device")

    before = load_checkpoint(folder / "last.pt")
    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", write_data)
    model = build_model(before)
    state = {**before, "model": model.state_dict(keep_vars=True)}
    saver = Saver(torch.device("cpu"), keep=2)
    with pytest.raises(ValueError, match="cannot write checkpoint .*No space left .* is intact: fix this"):
        save_sharded(state, [folder / "last.pt"], saver, distributed.Ranks())
    assert_equal_states(before, load_checkpoint(folder / "last.pt"))


# ---- restarts --------------------------------------------------------------------------------------------


def test_auto_begins_in_an_empty_folder_and_goes_on_in_a_used_one(dataset, tmp_path):
    argv = [*SMALL, *GEOMETRY, f"--dataset={dataset}", f"--out_dir={tmp_path}", "--init_from=auto"]
    assert train.main([*argv, "--max_iters=2"]) == train.main([*argv, "--max_iters=4"]) == 0
    assert [r["iter"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "train"] == [0, 1, 2, 3]


def test_a_restarted_run_takes_its_own_checkpoint_but_not_an_older_runs(dataset, tmp_path, monkeypatch):
    argv = [*SMALL, *GEOMETRY, f"--dataset={dataset}", f"--out_dir={tmp_path}"]
    assert train.main([*argv, "--max_iters=2"]) == 0
    config = train.TrainConfig()
    assert continues(config, tmp_path, restarted=True)
    assert not continues(config, tmp_path, restarted=False)
    with pytest.raises(ValueError, match="no dataset"):  # a new run, which fails before it has saved anything
        train.main([*argv, "--max_iters=4", "--dataset=none"])
    assert not continues(config, tmp_path, restarted=True)
    assert continues(train.TrainConfig(init_from="auto"), tmp_path, restarted=True)
    (tmp_path / "run").unlink()
    state = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    torch.save({key: state[key] for key in ("model", "model_args")}, tmp_path / "ckpt.pt")  # as nanoGPT leaves it
    assert not continues(config, tmp_path, restarted=True)


ONE_RANK_FAILS = """
import os, train
from configurator import exit_on_error
from training import start as starting

plain = starting.open_dataset

def open_dataset(*args):
    if os.environ["RANK"] == "1":
        raise ValueError("not on this machine")
    return plain(*args)

starting.open_dataset = open_dataset
exit_on_error(train.main)
"""


def test_an_error_of_one_rank_is_told_by_rank_0(dataset, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ONE_RANK_FAILS, encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    result = subprocess.run(
        [*launcher, *SMALL, *GEOMETRY, f"--dataset={dataset}", f"--out_dir={tmp_path / 'out'}"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 1 and "[rank" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert errors == ["error: rank 1: not on this machine"]


def fail(rank: int, port: int, argv: list[str], folder: Path, error: Exception, number: int) -> None:
    """One of two processes that run train.py; the second raises `error` at the given one of many places in its loop.
    Leaving the process group takes forever, as with NCCL while a collective waits for a peer."""
    become(rank, 2, port, folder)
    places = None  # counted from when the loop's batches are made: before, what can fail is told to all ranks

    def failing(function):
        def call(*args, **kwargs):
            if rank == 1 and places and next(places) == number:
                raise error
            return function(*args, **kwargs)

        return call

    def begin_loop(*args):
        nonlocal places
        places = itertools.count()
        make_batches(*args)

    make_batches, Batches.__init__ = Batches.__init__, begin_loop

    for owner, name in (
        (Batches, "next"), (Ranks, "sum"), (Ranks, "reduce_gradients"), (torch.nn.utils, "get_total_norm"),
        (Health, "note"), (Outputs, "before_update"), (Outputs, "save"), (torch.optim.AdamW, "step"),
    ):  # fmt: skip
        setattr(owner, name, failing(getattr(owner, name)))
    dist.destroy_process_group = lambda: time.sleep(10**6)
    configurator.WAIT_FOR_RANK_ZERO = 10**6
    sys.argv = ["train.py", *argv]
    configurator.exit_on_error(train.main)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("error", [ValueError("token 7 is bad"), RuntimeError("token 7 is bad")])
def test_when_one_process_fails_anywhere_both_end_and_its_error_shows(
    processes, dataset, tmp_path, request, error, parallel
):
    """At two of the places; SEED=1 in the environment takes two others."""
    argv = [*SMALL, *GEOMETRY, f"--dataset={dataset}", "--max_iters=8", f"--parallel={parallel}"]
    seeds = int(os.environ.get("SEED", "0")), zlib.crc32(request.node.name.encode())
    for number in np.random.default_rng(seeds).integers(0, 60, 2).tolist():
        folder = tmp_path / str(number)
        folder.mkdir(exist_ok=True)
        port = free_port()
        both = [processes.Process(target=fail, args=(rank, port, [*argv, f"--out_dir={folder}"], folder, error, number))
                for rank in (0, 1)]  # fmt: skip
        for process in both:
            process.start()
        logs = join_all(both, folder)
        assert both[1].exitcode == (2 if isinstance(error, ValueError) else 1), (number, *logs)
        assert both[0].exitcode == 1 and "another process of this run has ended" in logs[0], (number, *logs)
        last = logs[1].splitlines()[-1]
        shown = "error (rank 1)" if isinstance(error, ValueError) else "RuntimeError"
        assert last == f"{shown}: token 7 is bad", (number, *logs)


def test_each_attempt_gets_a_store_of_its_own_and_all_its_ranks_the_same(monkeypatch):
    server = dist.TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    seen = []
    for attempt in range(3):
        stores = [None] * 3

        def meet(rank, stores=stores):
            stores[rank] = distributed.fresh_store(rank, 3)

        threads = [threading.Thread(target=meet, args=(rank,)) for rank in ((2, 0, 1), (0, 1, 2), (1, 2, 0))[attempt]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        stores[1].set("key", str(attempt))
        assert [store.get("key") for store in stores] == [str(attempt).encode()] * 3
        assert not any(store.check([f"of {old}"]) for store in stores for old in seen)
        stores[0].set(f"of {attempt}", "")
        seen.append(attempt)


@pytest.fixture
def hosts():
    """For each of two hosts: the command that runs another there, its address, its network. They are namespaces of
    this machine, joined by a cable; or where those cannot be made, both this machine itself."""
    names = [f"host{i}-{os.getpid()}" for i in (1, 2)]
    links = [f"h{i}-{os.getpid()}" for i in (1, 2)]  # at most 15 characters
    commands = [["ip", "netns", "add", name] for name in names]
    commands += [["ip", "link", "add", links[0], "netns", names[0], "type", "veth", "peer", "name", links[1],
                  "netns", names[1]]]  # fmt: skip
    for i, (name, link) in enumerate(zip(names, links, strict=True), 1):
        commands += [
            ["ip", "-n", name, "addr", "add", f"10.77.0.{i}/24", "dev", link],
            ["ip", "-n", name, "link", "set", link, "up"],
            ["ip", "-n", name, "link", "set", "lo", "up"],
        ]
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
        yield [(["ip", "netns", "exec", name], f"10.77.0.{i}", link)
               for i, (name, link) in enumerate(zip(names, links, strict=True), 1)]  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        yield [([], "127.0.0.1", "lo" if sys.platform == "linux" else "lo0")] * 2
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True) if shutil.which("ip") else None


def test_after_a_kill_two_hosts_go_on_by_themselves_to_the_weights_of_an_undisturbed_run(hosts, run, dataset, tmp_path):
    options = ["--max_iters=200", "--save_interval=8", "--eval_interval=100"]  # the kill comes before the last step
    port, agents = free_port(), []
    for number, (enter, address, network) in enumerate(hosts):
        command = [
            *enter, sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1",
            "--max_restarts=1", "--rdzv_backend=c10d", "--rdzv_id=test", f"--rdzv_endpoint={hosts[0][1]}:{port}",
            f"--rdzv_conf=is_host={int(number == 0)}", f"--local_addr={address}", str(ROOT / "train.py"),
            *SMALL, *GEOMETRY, f"--dataset={dataset}", f"--out_dir={tmp_path}", *options,
        ]  # fmt: skip
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": network}
        with open(tmp_path / f"host{number}.log", "w", encoding="utf-8") as log:
            agents.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    try:
        killed = kill_the_first_that_locks(tmp_path, agents)
        assert [agent.wait(600) for agent in agents] == [0, 0], read_logs(tmp_path)
    finally:
        for agent in agents:
            agent.kill()
    log = read_logs(tmp_path)
    assert killed and "steps 0 to 200" in log and log.count(" steps ") >= 2, log
    assert_equal_states(state_of(run(2, *options)), state_of(tmp_path))
    assert timeless(run(2, *options)) == timeless(tmp_path)


def kill_the_first_that_locks(out_dir: Path, agents: list[subprocess.Popen]) -> int:
    """Kills rank 0, which notes its number in `lock`, once it has saved and gone on for some steps."""
    while all(agent.poll() is None for agent in agents):
        records = read_metrics(out_dir / "metrics.jsonl")
        if len(records) > 8 and (out_dir / "last.pt").exists():
            number = int((out_dir / "lock").read_text(encoding="utf-8").split()[1])
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(number, signal.SIGKILL)
                return number
        time.sleep(0.02)
    raise AssertionError(read_logs(out_dir))


def read_logs(folder: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("host*.log")))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_slurm_script_saves_before_the_time_limit_queues_again_and_goes_on(dataset, tmp_path):
    """Under stand-ins for Slurm's commands and torchrun."""
    train_py = f"{sys.executable} {ROOT / 'train.py'}"
    scripts = {
        "scontrol": 'if [ $1 = show ]; then echo localhost; else echo "$@" > requeued; fi',
        "srun": 'echo $$ > pid; exec "$@"',
        "scancel": "kill -TERM $(cat pid)",
        "torchrun": f'for word; do shift; if [ "$word" = train.py ]; then exec {train_py} "$@"; fi; done',
    }
    for name, body in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NNODES": "1",
        "SLURM_JOB_NODELIST": "localhost",
    }  # fmt: skip
    command = ["bash", str(ROOT / "scripts/slurm.sh"), *SMALL, *GEOMETRY, f"--dataset={dataset}", "--out_dir=out"]
    endless = [*command, "--max_iters=100000", "--eval_interval=100000"]
    process = subprocess.Popen(endless, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("iter 3:"):
            process.send_signal(signal.SIGUSR1)
    assert process.wait(600) == 143
    assert (tmp_path / "requeued").read_text(encoding="utf-8") == "requeue 7\n"
    done = state_of(tmp_path / "out")["iter_num"]
    again = subprocess.run([*command, f"--max_iters={done + 2}"], cwd=tmp_path, capture_output=True, text=True,
                           env={**environment, "SLURM_RESTART_COUNT": "1"})  # fmt: skip
    assert again.returncode == 0 and f"steps {done} to {done + 2}" in again.stdout, again.stdout + again.stderr


@pytest.mark.parametrize("has_nccl, backend", [(True, "cpu:gloo,cuda:nccl"), (False, "cpu:gloo,cuda:gloo")])
def test_gpus_talk_by_gloo_where_there_is_no_nccl(monkeypatch, has_nccl, backend):
    """As on Windows."""
    used = []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: has_nccl)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: used.append(backend))
    Ranks().start("auto", torch.device("cuda", 0))
    assert used == [backend]
