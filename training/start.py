"""What a run starts from: scratch, the checkpoint of a stopped run, or the weights of another model."""

import secrets
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from checkpoints.build import add_rows, build_model, shapes_only
from checkpoints.folder import (
    best_val_loss_of,
    find_checkpoint,
    find_newest,
    has_own_checkpoint,
    lock_folder,
    write_run_id,
)
from checkpoints.load import load_checkpoint
from checkpoints.pretrained import load_pretrained
from checkpoints.publish import saved_checkpoints
from checkpoints.sharded import load_shards
from data.dataset import Dataset, open_dataset
from data.matching import has_ids_of, ids_before_added, model_vocab_size, only_counts_ids
from data.windows import windows_per_epoch
from model import GPT, GPTConfig
from system.device import pick_dtype
from system.distributed import Ranks
from training.check import MODEL_KEYS, OTHER_TEXT, check_changes, reshapes, take_saved_config, validate
from training.lora import add_lora
from training.optim import load_optimizer, make_optimizer
from training.run import Run
from training.threads import choose_threads


def start(config, explicit: set[str], ranks: Ranks, device: torch.device, held: ExitStack) -> Run | None:
    """The run, with model, optimizer and scaler in their initial or resumed state; None after printing the table of
    parameters with print_params. config: train.py's TrainConfig. explicit: the keys that were set, not left at their
    defaults. Locks out_dir until `held` is closed. Raises ValueError for whatever a user can correct, on all ranks, and
    before the checkpoints and metrics of an earlier run are touched."""
    run_id = secrets.token_hex(8)
    state, newest, locked = find_state(config, explicit, ranks, device, run_id, held)
    resumed, dtype = newest is not None, dtype_to_train_in(config.dtype, device)
    needs_no_data = state is None and config.print_params and config.vocab_size is not None
    dataset = None if needs_no_data else ranks.on_all(lambda: open_dataset(config.dataset, config.vocab_size, resumed))
    if state is not None and not resumed:
        state = with_rows_for(dataset, state)
    changes = check_changes(config, explicit, state, dataset) if resumed else []
    if changes:
        ranks.say(f"changed on resume: {', '.join(changes)}")
    fsdp = config.parallel == "fsdp" and ranks.world_size > 1
    from_shards = resumed and newest.is_dir()
    # shards come from files, or from rank 0, the only one whose model then has weights
    home = "meta" if from_shards or (fsdp and not ranks.is_main) else "cpu" if fsdp else device
    model = make_model(config, explicit, state, dataset, home)
    if config.print_params:
        ranks.say(table_of_parameters(model))
        return None
    if state is not None and not resumed and only_counts_ids(dataset, state):
        ranks.say(
            f"note: {config.init_from} has no tokenizer, so only the number of ids was compared with those of dataset "
            f"{dataset.name}: make sure that both use the same tokenizer"
        )
    check_split_lengths(config, dataset)
    if not locked:
        ranks.on_main(partial(lock_out_dir, config, run_id, held))

    if fsdp:
        model = ranks.shard(model, device, dtype)
    else:
        model = model.to_empty(device=device) if from_shards else model.to(device)
    model.checkpoint_activations = config.checkpoint_activations
    muon_lr = config.muon_learning_rate if config.optimizer == "muon" else None
    weight_decay = config.weight_decay * (not config.lora_rank)  # it would change frozen rows of embeddings
    optimizer = make_optimizer(model, config.learning_rate, weight_decay, (config.beta1, config.beta2), muon_lr)
    # float16's small gradients need scaling, on the CPU too
    scaler = torch.amp.GradScaler("cuda" if device.type == "cuda" else "cpu", enabled=dtype == torch.float16)
    progress = {"seconds": 0.0, "last_eval_iter": -1, "clipped": 0, "skipped": 0, "id": run_id}
    kept = {key: state[key] for key in ("tokenizer", "folder") if state and key in state}
    run = Run(config, ranks, device, dtype, dataset, model, optimizer, scaler, resumed, progress, kept)
    if resumed:
        restore(run, state, newest)
    progress["fingerprint"] = dataset.fingerprint()
    choose_threads(run)
    return run


def dtype_to_train_in(name: str, device: torch.device) -> torch.dtype:
    dtype = pick_dtype(name, device)
    if dtype == torch.float16 and device.type == "mps":
        raise ValueError("dtype=float16 needs gradient scaling, which is not supported on mps: use float32 or bfloat16")
    return dtype


def with_rows_for(dataset: Dataset, state: dict) -> dict:
    """The checkpoint, with rows for the special tokens that the dataset's tokenizer has beyond the checkpoint's; the
    first of these is then its "first_new_id"."""
    known = ids_before_added(dataset, state)
    if known is None:
        return state
    state = add_rows(state, known, model_vocab_size(dataset.vocab_size))
    return {**state, "tokenizer": dataset.tokenizer.to_json(), "first_new_id": known}


def check_split_lengths(config, dataset: Dataset) -> None:
    """ValueError if a split has no window of block_size, or they cannot be drawn as `sampling` says."""
    if config.sampling == "line" and dataset.is_masked:
        raise ValueError(f"sampling=line is for text, but dataset {dataset.name} has conversations: leave it out")
    for split in ("train", "val"):
        windows_per_epoch(dataset, split, config.block_size)


def find_state(
    config, explicit: set[str], ranks: Ranks, device: torch.device, run_id: str, held: ExitStack
) -> tuple[dict | None, Path | None, bool]:
    """Completes config; returns (checkpoint to start from, its path if resuming, whether out_dir is locked)."""
    out_dir = Path(config.out_dir)
    if ranks.share(continues(config, out_dir, restarted=ranks.max(ranks.restarts) > 0)):
        config.init_from = "resume"
    elif config.init_from == "auto":
        config.init_from = "scratch"
    if config.init_from == "resume":
        if find_checkpoint(out_dir) == out_dir:  # raises for a folder without any before a lock is put there
            raise ValueError(f"out_dir={out_dir} is a checkpoint: name the folder it is in, --out_dir={out_dir.parent}")
        ranks.on_main(partial(lock_out_dir, config, None, held))
        newest = ranks.share(ranks.on_main(partial(find_newest, out_dir)))
        # not mapped on the CPU, where the optimizer keeps the tensors; shards are loaded later, by restore()
        state = ranks.on_all(lambda: load_checkpoint(newest, mapped=device.type != "cpu", meta=True))
        if missing := {"iter_num", "best_val_loss", "optimizer"} - state.keys():
            advice = f"it cannot be resumed, only fine-tuned (--init_from={newest} and another --out_dir)"
            raise ValueError(f"{newest} has no {' and no '.join(sorted(missing))}: {advice}")
        take_saved_config(config, explicit, state)
        validate(config, ranks)
        return state, newest, True
    validate(config, ranks)
    state, locked = None, False
    if not config.print_params:  # lock a folder with an earlier run before reading a large file
        has_begun = (out_dir / "run").exists
        locked = ranks.share(ranks.on_main(lambda: has_begun() and lock_out_dir(config, run_id, held)))
    if config.init_from != "scratch":
        state = ranks.on_all(lambda: load_pretrained(config.init_from, verify=True))
    return state, None, locked


def lock_out_dir(config, run_id: str | None, held: ExitStack) -> bool:
    """Locks out_dir until `held` is closed; returns False for eval_only, which needs no lock. run_id: None when
    resuming; a new run's tells its checkpoints from an earlier run's if torchrun restarts it before it has saved."""
    if config.eval_only:
        return False
    held.enter_context(lock_folder(Path(config.out_dir)))
    if run_id is not None:
        write_run_id(Path(config.out_dir), run_id)
    return True


def restore(run: Run, state: dict, path: Path) -> None:
    """Loads the training state of a checkpoint into a run whose model has its weights already; if path is a folder of
    shards, the weights too."""
    run.progress.update(state.get("run", {}))
    run.iter_num = run.saved_iter = int(state["iter_num"])
    text = run.dataset.fingerprint()
    best_on_disk = run.ranks.on_main(partial(best_val_loss_of, run.out_dir, run.progress["id"], text))
    best = float(state["best_val_loss"]) if run.progress.get("fingerprint", text) == text else run.best_val_loss
    run.best_val_loss = min(best, run.ranks.share(best_on_disk))
    if path.is_dir():
        load_shards(path, run.model, run.optimizer, state)
    load_optimizer(run.optimizer, state["optimizer"])
    if state.get("scaler"):
        run.scaler.load_state_dict(state["scaler"])


def continues(config, out_dir: Path, restarted: bool) -> bool:
    """Whether to resume without init_from='resume': with 'auto', if there is a checkpoint; after a restart by torchrun,
    if the run itself had saved one."""
    if config.init_from == "auto":
        return bool(saved_checkpoints(out_dir))
    return restarted and config.init_from != "resume" and has_own_checkpoint(out_dir)


def make_model(config, explicit: set[str], state: dict | None, dataset: Dataset, device: torch.device | str) -> GPT:
    """A new model, or the one in `state`, on "meta" without weights. Raises ValueError if data or settings differ."""
    if state is None:
        vocab_size = config.vocab_size or model_vocab_size(dataset.vocab_size)
        shape = {key: getattr(config, key) for key in MODEL_KEYS}
        shape = GPTConfig(**{**shape, "vocab_size": vocab_size})
        return shapes_only(shape) if device == "meta" else GPT(shape, torch.Generator().manual_seed(config.seed))
    model = build_model(state, device, take=config.init_from == "resume", dropout=config.dropout)
    for key in MODEL_KEYS:
        saved, wanted = getattr(model.config, key), getattr(config, key)
        if key in explicit and reshapes(model.config, key, wanted):
            if key != "block_size" or wanted > saved:
                crop = f"and can only be cropped: use --block_size={saved} or less"
                instead = crop if key == "block_size" else f"already: leave {key} out, or train from scratch"
                raise ValueError(f"{key}={wanted} was requested, but {config.init_from}'s model has {saved} {instead}")
            model.crop_block_size(wanted)
        setattr(config, key, wanted if key == "dropout" else getattr(model.config, key))
    if not has_ids_of(dataset, state, config.vocab_size):
        found = f"dataset {dataset.name} (vocabulary {dataset.vocab_size}) does not match the checkpoint"
        raise ValueError(f"{found} (vocabulary {model.config.vocab_size}): its {OTHER_TEXT}")
    if config.lora_rank:
        saved = state["lora"] if config.init_from == "resume" else None
        add_lora(model, config.lora_rank, config.lora_alpha, config.seed, state.get("first_new_id"), saved)
    return model


def table_of_parameters(model: GPT) -> str:
    """A line per parameter, tied ones once: name, shape, size; then the total."""
    rows = [(name, " x ".join(map(str, p.shape)), p.numel()) for name, p in model.named_parameters()]
    width = max(len(name) for name, *_ in rows)
    lines = [f"{name:{width}}  {shape:>14}  {n:>14,}" for name, shape, n in rows]
    return "\n".join([*lines, f"{'total':{width}}  {'':>14}  {sum(n for *_, n in rows):>14,}"])
