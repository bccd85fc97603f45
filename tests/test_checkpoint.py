"""Checkpoints: atomic, safe to load, interchangeable with nanoGPT's."""

import errno
import os
import pickle
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from checkpoints.build import build_model, model_args_of
from checkpoints.file import read_archive, save_checkpoint
from checkpoints.folder import find_checkpoint, find_newest, lock_folder, set_aside, write_run_id
from checkpoints.load import Damaged, load_checkpoint
from checkpoints.saver import Saver
from model import GPT, GPTConfig
from system import files
from training.optim import make_optimizer

ROOT = Path(__file__).resolve().parents[1]
CONFIG = GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8, bias=False)


def state_of(model: GPT, **more) -> dict:
    return {"model": model.state_dict(), "model_args": model_args_of(model.config), "iter_num": 3, **more}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("tie", [True, False])
def test_a_saved_model_is_rebuilt_with_the_same_logits(tmp_path, prefix, tie):
    model = GPT(GPTConfig(**{**vars(CONFIG), "tie_weights": tie, "pos": "rope"})).eval()
    state = state_of(model)
    state["model"] = {
        prefix + name.replace(".h.1.", ".h.1._orig_mod."): tensor
        for name, tensor in state["model"].items()
        if not tie or name != "transformer.wte.weight"
    }
    save_checkpoint(tmp_path / "ckpt.pt", state)
    rebuilt = build_model(load_checkpoint(tmp_path / "ckpt.pt")).eval()
    idx = torch.randint(11, (2, 8))
    assert torch.equal(rebuilt(idx, idx)[0], model(idx, idx)[0])
    assert (rebuilt.lm_head.weight is rebuilt.transformer.wte.weight) == tie


def test_a_checkpoint_as_nanogpt_writes_it_is_read(tmp_path):
    """Its seven model_args, a 0-dim best_val_loss, and on old PyTorch the masks as buffers, all in the old format."""
    model = GPT(CONFIG)
    weights = dict(model.state_dict())
    for layer in range(2):
        weights[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8).tril()
    args = dict(n_layer=2, n_head=2, n_embd=8, block_size=8, bias=False, vocab_size=11, dropout=0.0)
    state = {"model": weights, "model_args": args, "iter_num": 5, "best_val_loss": torch.tensor(1.5), "config": {}}
    for new in (True, False):
        torch.save(state, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=new)
        rebuilt = build_model(load_checkpoint(tmp_path / "ckpt.pt"))
        for name, tensor in model.state_dict().items():
            assert torch.equal(rebuilt.state_dict()[name], tensor)


class Payload:
    """An object whose unpickling calls function(*arguments), where pickle lets it."""

    def __init__(self, function=os.mkdir, *arguments):
        self.call = function, arguments or ("pwned",)

    def __reduce__(self):
        return self.call


PAYLOADS = {
    "mkdir": Payload(),
    "system": Payload(os.system, "mkdir pwned"),
    "eval": Payload(eval, "__import__('os').mkdir('pwned')"),
    "exec": Payload(exec, "import os; os.mkdir('pwned')"),
    "getattr": Payload(getattr, Payload(__import__, "os"), "mkdir"),
    "nested pickle": Payload(pickle.loads, pickle.dumps(Payload())),
    "nested torch.load": Payload(partial(torch.load, weights_only=False), "inner.pt"),
    "subprocess": Payload(subprocess.Popen, ["mkdir", "pwned"]),
}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path, monkeypatch, payload):
    """In any place of the file, in both of torch.save's formats and as a plain pickle."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inner.pt").write_bytes(pickle.dumps(Payload()))
    for number, state in enumerate((
        PAYLOADS[payload],
        {"model": PAYLOADS[payload], "model_args": {}},
        {**state_of(GPT(CONFIG)), "config": {"seed": PAYLOADS[payload]}},
        {**state_of(GPT(CONFIG)), PAYLOADS[payload]: 1},
    )):  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        for how in ("zip", "legacy", "pickle"):
            if how == "pickle":
                (folder / "last.pt").write_bytes(pickle.dumps(state, protocol=2))
            else:
                torch.save(state, folder / "last.pt", _use_new_zipfile_serialization=how == "zip")
            for read in (partial(load_checkpoint, folder / "last.pt"), partial(find_newest, folder)):
                with pytest.raises(ValueError, match=r"last.pt .* cannot be read: .*, or holds more than") as caught:
                    read()
                assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path):
    good = tmp_path / "good.pt"
    save_checkpoint(good, state_of(GPT(CONFIG)))
    data = good.read_bytes()
    (tmp_path / "short.pt").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("hello", encoding="utf-8")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    torch.save({**state_of(GPT(CONFIG)), "format": 99}, tmp_path / "newer.pt")
    for name in ("short", "empty", "text", "other", "newer"):
        with pytest.raises(ValueError, match=f"{name}.pt") as caught:
            load_checkpoint(tmp_path / f"{name}.pt")
        assert "\n" not in str(caught.value)


def test_weights_that_contradict_model_args_are_refused_with_both_shapes():
    state = state_of(GPT(CONFIG))
    for change, message in (
        ({"n_embd": 10}, r"\(11, 8\).*\(11, 10\)"),
        ({"n_layer": 3}, "h.2.*nothing"),
        ({"n_layer": 1}, "h.1"),
        ({"depth": 4}, "depth"),
    ):
        with pytest.raises(ValueError, match=message):
            build_model({**state, "model_args": {**state["model_args"], **change}})


KILLED_WHILE_SAVING = """
import os, signal, sys, torch
from checkpoints.file import save_checkpoint
from pathlib import Path
from types import SimpleNamespace
real = os.{call}
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
os.{call} = die
save_checkpoint(Path(sys.argv[1]), {{"model": torch.zeros(1000), "model_args": {{}}}})
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_kill_while_saving_leaves_the_old_checkpoint(tmp_path, call):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": torch.ones(3), "model_args": {}})
    before = path.read_bytes()
    script = KILLED_WHILE_SAVING.format(call=call)
    process = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT)
    assert process.returncode == -9
    assert path.read_bytes() == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_error_and_the_old_checkpoint_stays(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": torch.ones(3), "model_args": {}})
    before = path.read_bytes()
    opened = []
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr("builtins.open", lambda *args: opened.append(args) or os.fdopen(full, "wb"))
    with pytest.raises(ValueError, match="checkpoint .*last.pt: No space left on device .*last.pt is intact"):
        save_checkpoint(path, {"model": torch.zeros(10_000), "model_args": {}})
    monkeypatch.undo()
    assert opened and path.read_bytes() == before and os.listdir(tmp_path) == ["last.pt"]


def test_on_windows_a_file_that_is_open_elsewhere_is_replaced_once_it_is_closed(tmp_path, monkeypatch):
    (tmp_path / "new").write_text("new")
    waits, real = [], os.replace

    def while_open(source, target):
        if len(waits) < 2:
            raise PermissionError(13, "Access is denied")
        real(source, target)

    monkeypatch.setattr("system.files.os", SimpleNamespace(name="nt", replace=while_open))
    monkeypatch.setattr("system.files.time.sleep", waits.append)
    files.replace(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new" and len(waits) == 2
    monkeypatch.setattr("system.files.os.replace", lambda *paths: while_open(waits.clear(), None))
    with pytest.raises(PermissionError):
        files.replace(tmp_path / "new", tmp_path / "old")


def numbered(iter_num: int) -> dict:
    return {"model": {"w": torch.full((1000,), float(iter_num))}, "model_args": {}, "iter_num": iter_num}


def steps(path: Path) -> int:
    return load_checkpoint(path, verify=True)["iter_num"]


def test_resuming_takes_the_file_with_more_steps_and_sampling_the_best(tmp_path):
    for ckpt, last, expected in ((5, 7, "last.pt"), (7, 5, "ckpt.pt"), (6, 6, "last.pt")):
        for name, iter_num in (("ckpt.pt", ckpt), ("last.pt", last)):
            save_checkpoint(tmp_path / name, numbered(iter_num))
        assert find_newest(tmp_path).name == expected
        assert find_checkpoint(tmp_path).name == "ckpt.pt"


def fill(folder: Path, iter_num: int) -> dict[str, bytes]:
    """A run's files, by name."""
    for number in (iter_num, iter_num + 1):
        save_checkpoint(folder / "last.pt", numbered(number), keep=2)
    save_checkpoint(folder / "ckpt.pt", numbered(iter_num))
    (folder / "metrics.jsonl").write_text(f"of {iter_num}", "utf-8")
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_at_the_start_is_one_line_too(tmp_path):
    for name in ("lock", "run"):
        (tmp_path / name).symlink_to("/dev/full")
    lock_folder(tmp_path).close()  # without a note of who has it
    with pytest.raises(ValueError, match="cannot write .*run: No space left"):
        write_run_id(tmp_path, "1")


def test_earlier_runs_are_set_aside_each_in_a_folder_of_its_own(tmp_path):
    assert set_aside(tmp_path) is None and os.listdir(tmp_path) == []
    runs = {}
    for number, iter_num in ((1, 20), (2, 7)):
        previous = tmp_path / f"previous-{number}"
        runs[previous] = fill(tmp_path, iter_num)
        assert len(runs[previous]) == 4
        assert set_aside(tmp_path) == previous
        assert {folder: contents(folder) for folder in tmp_path.iterdir()} == runs
    with pytest.raises(ValueError, match=f"an earlier run is in {previous}"):
        find_checkpoint(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("of a run that has saved nothing", "utf-8")
    assert set_aside(tmp_path) is None
    assert {folder: contents(folder) for folder in runs} == runs


@pytest.mark.parametrize("moves", range(4))
def test_a_kill_while_an_earlier_run_is_set_aside_leaves_one_that_resumes(tmp_path, monkeypatch, moves):
    files, plain, left = fill(tmp_path, 20), os.replace, iter(range(moves))

    def replace(*paths):
        if next(left, None) is None:
            raise KeyboardInterrupt
        plain(*paths)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        set_aside(tmp_path)
    monkeypatch.undo()
    assert contents(tmp_path) | contents(tmp_path / "previous-1") == files
    assert steps(find_newest(tmp_path)) == 21
    assert set_aside(tmp_path) == tmp_path / "previous-2"
    assert contents(tmp_path / "previous-1") | contents(tmp_path / "previous-2") == files


def test_several_paths_are_one_file_and_later_saves_of_one_leave_the_others(tmp_path):
    a, b = tmp_path / "ckpt.pt", tmp_path / "last.pt"
    save_checkpoint([a, b], numbered(1))
    assert a.samefile(b) and sorted(os.listdir(tmp_path)) == ["ckpt.pt", "last.pt"]
    save_checkpoint(a, numbered(2))
    assert (steps(a), steps(b)) == (2, 1)


def no_links(*_):
    raise OSError("no hard links here")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_newest_keep_versions_remain_after_keep_has_changed(tmp_path, monkeypatch, keep, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    last = tmp_path / "last.pt"
    for iter_num, keeping in [*((n, 3) for n in range(1, 6)), *((n, keep) for n in range(6, 12))]:
        save_checkpoint([tmp_path / "ckpt.pt", last], numbered(iter_num), keeping)
    names = ["last.pt", *(f"last-{n}.pt" for n in range(1, keep))]
    assert sorted(os.listdir(tmp_path)) == sorted(["ckpt.pt", *names])
    assert [steps(tmp_path / name) for name in names] == [11 - n for n in range(keep)]


def test_a_huge_keep_keeps_every_version(tmp_path):
    for n in range(4):
        save_checkpoint(tmp_path / "last.pt", {"iter_num": n}, keep=10**15)
    names = ("last.pt", "last-1.pt", "last-2.pt", "last-3.pt")
    assert [torch.load(tmp_path / name)["iter_num"] for name in names] == [3, 2, 1, 0]


def test_a_file_takes_the_place_of_a_folder_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "last-1.pt").mkdir()  # as by --checkpoint_format=sharded before
    for n in range(2):
        save_checkpoint(tmp_path / "last.pt", {"iter_num": n}, keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "last-1.pt"}
    assert torch.load(tmp_path / "last-1.pt")["iter_num"] == 0


def test_a_users_own_copies_are_left_alone(tmp_path):
    for name in ("ckpt-100.pt", "last-5000.pt", "last-good.pt", "ckpt-1.pt"):
        save_checkpoint(tmp_path / name, numbered(1))
    for iter_num in range(4):
        save_checkpoint([tmp_path / "ckpt.pt", tmp_path / "last.pt"], numbered(iter_num), keep=2)
        save_checkpoint(tmp_path / "ckpt.pt", numbered(iter_num))
    assert {"ckpt-100.pt", "last-5000.pt", "last-good.pt", "ckpt-1.pt"} < set(os.listdir(tmp_path))


# ---- damage ------------------------------------------------------------------------------------------------


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


@pytest.mark.parametrize("mapped", [True, False])
def test_no_flipped_bit_changes_what_is_loaded_unnoticed(tmp_path, mapped):
    state = state_of(GPT(CONFIG), best_val_loss=1.5, tokenizer={"kind": "char", "chars": "abc"})
    path = tmp_path / "last.pt"
    save_checkpoint(path, state)
    whole, chance = path.read_bytes(), np.random.default_rng(0)
    start = whole.index(b"PK\x01\x02")  # the archive's directory
    places = {*range(200), *chance.choice(start, 300, replace=False).tolist(), *range(start, len(whole), 7)}
    noticed = 0
    for place in sorted(places):
        altered = bytearray(whole)
        altered[place] ^= 1 << int(chance.integers(8))
        path.write_bytes(altered)
        try:
            found = load_checkpoint(path, verify=True, mapped=mapped)
        except ValueError as error:
            assert "last.pt" in str(error) and "\n" not in str(error)
            noticed += 1
        else:
            assert same(found, state), place  # padding, a date
    assert noticed > len(places) / 3


def test_a_flipped_bit_in_a_weight_is_what_torch_load_does_not_see(tmp_path):
    """Why checksums are compared here at all."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, numbered(7))
    altered = bytearray(path.read_bytes())
    altered[altered.index(torch.tensor(7.0).numpy().tobytes() * 4) + 1] ^= 1
    path.write_bytes(altered)
    assert not same(torch.load(path, weights_only=True), numbered(7))
    with pytest.raises(Damaged, match="CRC"):
        load_checkpoint(path, verify=True)


@pytest.mark.parametrize("how", ["weight", "header", "cut", "empty"])
def test_a_damaged_last_pt_is_put_aside_for_the_one_before_it_and_that_is_said(tmp_path, capsys, how):
    last = tmp_path / "last.pt"
    save_checkpoint(tmp_path / "ckpt.pt", numbered(1))
    for iter_num in (1, 2, 3):
        save_checkpoint(last, numbered(iter_num), keep=2)
    data = bytearray(last.read_bytes())
    if how == "weight":
        data[data.index(torch.tensor(3.0).numpy().tobytes() * 4)] ^= 1
    elif how == "header":
        data[data.index(b"iter_num") + 2] ^= 1
    last.write_bytes(data[: {"cut": len(data) // 2, "empty": 0}.get(how, len(data))])
    chosen = find_newest(tmp_path)
    assert chosen.name == "last-1.pt" and steps(chosen) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "last.pt" in said and "last-1.pt (2 steps)" in said
    assert sorted(os.listdir(tmp_path)) == ["ckpt.pt", "last-1.pt", "last.pt.damaged"]
    save_checkpoint(last, numbered(4), keep=2)  # the good one is not replaced by the bad one
    assert find_newest(tmp_path) == last and steps(tmp_path / "last-1.pt") == 2


@pytest.mark.parametrize("error, kind, said", [
    (OSError(errno.EIO, "Input/output error"), ValueError, "last.pt cannot be read: Input/output error"),
    (RuntimeError("unable to mmap 9 bytes: Cannot allocate memory"), RuntimeError, "Cannot allocate memory"),
])  # fmt: skip
def test_a_drive_that_is_away_and_too_little_memory_are_no_damage(tmp_path, monkeypatch, error, kind, said):
    for iter_num in (1, 2):
        save_checkpoint(tmp_path / "last.pt", numbered(iter_num), keep=2)

    def read(path, verify, mapped, plain=read_archive):
        if verify:
            raise error
        return plain(path, verify, mapped)

    monkeypatch.setattr("checkpoints.load.read_archive", read)
    with pytest.raises(kind, match=said):
        find_newest(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["last-1.pt", "last.pt"]


def test_if_none_is_whole_the_error_names_all_and_all_stay(tmp_path):
    for name in ("ckpt.pt", "last.pt", "last-1.pt"):
        (tmp_path / name).write_bytes(b"PK no checkpoint")
    with pytest.raises(ValueError, match="ckpt.pt.*last.pt.*last-1.pt.*no undamaged checkpoint"):
        find_newest(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["ckpt.pt", "last-1.pt", "last.pt"]


def test_a_file_as_torch_wrote_it_before_1_6_has_no_checksums_and_is_taken_as_it_is(tmp_path):
    torch.save(numbered(5), tmp_path / "ckpt.pt", _use_new_zipfile_serialization=False)
    assert steps(find_newest(tmp_path)) == 5


# ---- saving in the background ---------------------------------------------------------------------------------


def test_the_state_of_the_call_is_saved_though_the_tensors_change_after_before_update(tmp_path):
    model = GPT(CONFIG)
    saver = Saver(torch.device("cpu"), keep=2)
    expected = []
    for iter_num in range(5):
        expected.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        saver.save(state_of(model, iter_num=iter_num), tmp_path / "last.pt")
        saver.before_update()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
    saver.wait()
    for name, iter_num in (("last.pt", 4), ("last-1.pt", 3)):
        found = load_checkpoint(tmp_path / name, verify=True)
        assert found["iter_num"] == iter_num and same(found["model"], expected[iter_num])
        tied = [found["model"][name].data_ptr() for name in ("lm_head.weight", "transformer.wte.weight")]
        assert tied[0] == tied[1]  # written once, as torch.save alone does


def test_the_loop_goes_on_while_a_file_is_written_and_a_second_save_waits_for_it(tmp_path, monkeypatch):
    writing, go_on, real = threading.Event(), threading.Event(), save_checkpoint

    def slow(*args):
        writing.set()
        assert go_on.wait(600)
        real(*args)

    monkeypatch.setattr("checkpoints.saver.save_checkpoint", slow)
    saver = Saver(torch.device("cpu"), keep=2)
    state = numbered(1)
    saver.save(state, tmp_path / "last.pt")
    saver.before_update()
    assert writing.wait(600)
    state["model"]["w"].zero_()  # an update
    assert os.listdir(tmp_path) == []
    first, joined = saver.thread, []

    def join():
        joined.append(first.is_alive())
        go_on.set()
        threading.Thread.join(first)

    monkeypatch.setattr(first, "join", join)
    saver.save(numbered(2), tmp_path / "last.pt")
    go_on.set()
    saver.wait()
    assert joined == [True]
    assert steps(tmp_path / "last.pt") == 2
    assert torch.equal(load_checkpoint(tmp_path / "last-1.pt")["model"]["w"], torch.ones(1000))


def test_an_update_waits_until_the_state_is_copied(tmp_path, monkeypatch):
    saver, go_on = Saver(torch.device("cpu"), keep=2), threading.Event()
    copy, wait, order = saver.copy, saver.copied.wait, []

    def slow(*args):
        assert go_on.wait(600)
        copied = copy(*args)
        order.append("copy")
        return copied

    def wait_for_copy():
        order.append("wait")
        go_on.set()
        wait()

    monkeypatch.setattr(saver, "copy", slow)
    monkeypatch.setattr(saver.copied, "wait", wait_for_copy)
    saver.save(numbered(1), tmp_path / "last.pt")
    saver.before_update()
    order.append("update")
    go_on.set()
    saver.wait()
    assert order == ["wait", "copy", "update"]


@pytest.mark.parametrize("background", [True, False])
def test_a_failed_save_waits_as_an_error_and_no_other_follows(tmp_path, background):
    saver = Saver(torch.device("cpu"), keep=2, background=background)
    saver.save(numbered(1), tmp_path / "nowhere" / "last.pt")
    saver.save(numbered(2), tmp_path / "last.pt")
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="checkpoint .*nowhere.*: No such file.*nothing has been saved"):
        saver.wait()


def test_what_cannot_be_saved_at_all_is_an_error_too(tmp_path):
    saver = Saver(torch.device("cpu"), keep=2)
    saver.save({"model": lambda: None}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="cannot save .*last.pt"):
        saver.wait()


@pytest.mark.gpu
def test_a_model_on_a_gpu_is_saved_as_it_was_while_it_trains_on(tmp_path):
    device = torch.device("cuda")
    weight = torch.zeros(64, 2**20, device=device)
    saver = Saver(device, keep=2)
    for iter_num in range(4):
        weight.add_(1)
        saver.save({**numbered(iter_num), "model": {"w": weight}}, tmp_path / "last.pt")
        saver.before_update()
    saver.wait()
    for name, value in (("last.pt", 4), ("last-1.pt", 3)):
        assert torch.equal(load_checkpoint(tmp_path / name)["model"]["w"], torch.full((64, 2**20), float(value)))


# ---- the lock --------------------------------------------------------------------------------------------------


def test_a_second_lock_is_refused_with_the_holder_until_the_first_is_closed(tmp_path):
    first = lock_folder(tmp_path / "out")
    with pytest.raises(ValueError, match=f"out is in use by process {os.getpid()} on "):
        lock_folder(tmp_path / "out")
    first.close()
    lock_folder(tmp_path / "out").close()


def test_a_killed_holder_leaves_no_lock_and_its_half_written_file_is_removed(tmp_path):
    script = (
        "import sys, time, pathlib; from checkpoints.folder import lock_folder; "
        "held = lock_folder(pathlib.Path(sys.argv[1])); "
        "print(1, flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout.readline()
    with pytest.raises(ValueError, match=f"in use by process {holder.pid} "):
        lock_folder(tmp_path)
    (tmp_path / "last.pt.tmp").write_bytes(b"half")
    holder.kill()
    holder.communicate()
    lock_folder(tmp_path).close()
    assert os.listdir(tmp_path) == ["lock"]


def test_a_file_system_without_locks_is_noted_and_used(tmp_path, monkeypatch, capsys):
    def unsupported(_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("checkpoints.folder.lock_file", unsupported)
    lock_folder(tmp_path).close()
    assert "without locks" in capsys.readouterr().err


# ---- memory ----------------------------------------------------------------------------------------------------

MEMORY = """
import sys
from pathlib import Path
from types import SimpleNamespace
import torch
from checkpoints.build import build_model
from checkpoints.load import load_checkpoint
from training import optim

def status(key):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(key))

with torch.device("meta"):  # what is imported late is not measured
    optim.make_optimizer(torch.nn.Linear(2, 2), 1.0, 0.1, (0.9, 0.99))
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
state = load_checkpoint(sys.argv[1], mapped=False)
model = build_model(state, take=True)
optimizer = optim.make_optimizer(model, 1.0, 0.1, (0.9, 0.99))
optim.load_optimizer(optimizer, state["optimizer"])
del state
print(status("VmHWM") - before, status("VmRSS") - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measures with Linux's /proc")
def test_resuming_holds_one_copy_of_weights_and_moments(tmp_path):
    config = GPTConfig(block_size=8, vocab_size=16, n_layer=4, n_head=4, n_embd=512, bias=False)
    model = GPT(config)
    optimizer = make_optimizer(model, 1.0, 0.1, (0.9, 0.99))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    save_checkpoint(tmp_path / "last.pt", state_of(model, optimizer=optimizer.state_dict()))
    process = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "last.pt")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert process.returncode == 0, process.stderr
    peak, now = map(float, process.stdout.split())
    size = sum(p.nbytes for p in model.parameters()) / 2**20  # 48 MiB; a second copy of anything would be seen
    assert 2.9 * size < now < 3.3 * size and peak < 3.4 * size, (peak, now, size)
