"""Trains a GPT on a dataset folder made by data/<name>/prepare.py.

    python train.py config/train_shakespeare_char.py                      # one GPU, a Mac or a CPU
    python train.py config/train_shakespeare_char.py --max_minutes=5      # any key can be overridden
    python train.py config/train_shakespeare_char.py --init_from=resume   # go on where it stopped
    torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py
    torchrun --standalone --nproc_per_node=8 train.py ... --parallel=fsdp --checkpoint_activations   # a large model
    torchrun --nnodes=2 --nproc_per_node=8 --node_rank=0 --master_addr=10.0.0.1 --master_port=1234 train.py ...

On each of two machines, which share out_dir; after a crash of any process they go on from last.pt by themselves
(scripts/slurm.sh does this under Slurm):

    torchrun --nnodes=2 --nproc_per_node=8 --max_restarts=3 --rdzv_backend=c10d --rdzv_endpoint=10.0.0.1:29500 \
        train.py ...

`python train.py --help` lists every key.
"""

import gc
import math
import os
import secrets
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from checkpoints.build import build_model
from checkpoints.folder import (
    best_val_loss_of,
    find_checkpoint,
    find_newest,
    has_own_checkpoint,
    lock_folder,
    set_aside,
    write_run_id,
)
from checkpoints.load import FORMAT, load_checkpoint
from checkpoints.pretrained import load_pretrained
from checkpoints.publish import saved_checkpoints
from checkpoints.saver import Saver
from checkpoints.sharded import load_shards, save_sharded
from configurator import configure, exit_on_error
from data.dataset import Dataset, batch, eval_batch, eval_windows, open_dataset, windows_per_epoch
from data.tokenizer import token_table, tokenizer_from_json
from model import GPT, GPTConfig
from system.device import DTypeName, keep_memory, memory_used, peak_flops_of, pick_compile, pick_device, pick_dtype
from system.distributed import Ranks, full, gather, is_loss_of_peer
from training.metrics import Metrics
from training.optim import learning_rate_at, load_optimizer, make_optimizer, set_rates


@dataclass
class TrainConfig:
    # Output and evaluation
    out_dir: str = "out"  # folder for ckpt.pt, last.pt and metrics.jsonl
    eval_interval: int = 2000  # steps between evaluations (each saves a checkpoint)
    log_interval: int = 1  # steps between lines of log
    eval_iters: int = 200  # batches of each split an evaluation reads; the whole split where it is smaller
    eval_only: bool = False  # evaluate once and exit
    print_params: bool = False  # print name, shape and size of every parameter, and exit
    always_save_checkpoint: bool = True  # ckpt.pt after every evaluation; False: only after the best so far
    checkpoint_format: Literal["full", "sharded"] = "full"  # files as nanoGPT's, or folders that all processes write
    save_interval: int = 0  # steps between extra saves of last.pt; 0 = only when evaluating and at the end
    keep_checkpoints: int = 2  # last.pt and those before it (last-1.pt, …), for when it gets damaged; ckpt.pt apart
    async_save: bool = True  # save while the training goes on, from a copy in host memory; False = stop to save
    init_from: str = "scratch"  # 'scratch', 'resume', 'auto' (what of the two is possible), or weights: a path, 'gpt2*'
    allow_changed: str = ""  # what a resume may change: dataset,batch_size,gradient_accumulation_steps,seed,sampling
    # Logging elsewhere
    wandb_log: bool = False  # log to Weights & Biases (pip install wandb)
    wandb_project: str = "owt"  # its project
    wandb_run_name: str = "gpt2"  # its name for this run
    tensorboard_log: bool = False  # log to out_dir/tensorboard (pip install tensorboard)
    # Data
    dataset: str = "openwebtext"  # name of a folder under data/, or a path
    gradient_accumulation_steps: int = 5 * 8  # micro-batches a step, over all processes together
    batch_size: int = 12  # sequences a micro-batch
    block_size: int = 1024  # tokens of context
    sampling: Literal["contiguous", "line"] = "contiguous"  # line: windows begin with a line and end with their file
    # Model
    n_layer: int = 12  # transformer blocks
    n_head: int = 12  # attention heads
    n_embd: int = 768  # width of the residual stream
    dropout: float = 0.0  # probability; 0 for pretraining, try 0.1 or more for fine-tuning and small data
    bias: bool = False  # biases in linear layers and LayerNorms
    vocab_size: int | None = None  # ids; None = the dataset's, above 10,000 rounded up to a multiple of 64
    n_kv_head: int | None = None  # key/value heads; None = n_head, fewer = GQA
    head_dim: int | None = None  # width of a head; None = n_embd / n_head
    pos: Literal["learned", "rope"] = "learned"  # positions
    rope_theta: float = 10000.0  # RoPE's base
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"  # normalisation
    norm_eps: float = 1e-5  # added to the variance
    mlp: Literal["gelu", "gelu_tanh", "swiglu", "relu2"] = "gelu"  # activation of the MLP
    mlp_hidden: int | None = None  # its width; None = 4 n_embd, for swiglu 8/3 n_embd rounded up to 128
    tie_weights: bool = True  # head and token embedding share one matrix
    qk_norm: bool = False  # RMSNorm on queries and keys
    softcap: float = 0.0  # bound on the logits; 0 = off
    smear: bool = False  # add a learned share of the previous token's embedding to each
    init: Literal["normal", "kaiming"] = "normal"  # fresh weights
    # Optimizer
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices in the blocks, AdamW for the rest
    learning_rate: float = 6e-4  # the highest of AdamW
    muon_learning_rate: float = 0.02  # the highest of Muon; follows the same schedule
    weight_decay: float = 1e-1  # of matrices; biases and gains are not decayed
    beta1: float = 0.9  # decay of the gradient's mean
    beta2: float = 0.95  # decay of its square
    grad_clip: float = 1.0  # largest norm of the gradient; 0 = no clipping
    # Learning rate schedule
    decay_lr: bool = True  # False = constant at learning_rate, without warmup
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"  # what follows the warmup
    cooldown: float = 0.5  # the last part of the run, in which wsd (warmup, stable, decay) falls
    warmup_iters: int | None = None  # steps of linear warmup; None = 2000, or a tenth of a shorter run
    lr_decay_iters: int | None = None  # step at which min_lr is reached; None = when the run ends
    min_lr: float = 6e-5  # the lowest, about learning_rate / 10
    # Limits: the run ends with whichever comes first
    max_iters: int = 600000  # steps
    max_tokens: float | None = None  # training tokens
    max_epochs: float | None = None  # passes over the training split
    max_minutes: float | None = None  # wall-clock minutes, evaluations included, over all resumes
    compute: float | None = None  # 10^12 parameter-tokens: parameters times training tokens
    # System
    backend: str = "auto"  # of torch.distributed: 'nccl', 'gloo'; auto = nccl on CUDA
    device: str = "auto"  # 'cuda', 'cuda:1', 'mps', 'cpu'; auto = the best there is
    dtype: DTypeName = "auto"  # auto = bfloat16 where the processor multiplies it natively
    compile: bool | Literal["auto"] = "auto"  # torch.compile; auto = on CUDA
    parallel: Literal["ddp", "fsdp"] = "ddp"  # processes hold the whole model each, or a share of it (FSDP2)
    checkpoint_activations: bool = False  # recompute activations in backward: less memory, a third more work
    seed: int = 1337  # of weights, batches and dropout
    peak_tflops: float | None = None  # the device's dense peak, for the MFU; None = look the device up


NEVER = 2**62  # a step that no run reaches
MODEL_KEYS = [field.name for field in fields(GPTConfig)]
MACHINE_KEYS = (
    "device",
    "compile",
    "backend",
    "init_from",
    "allow_changed",
    "out_dir",
    "eval_only",
    "print_params",
    "peak_tflops",
)
OTHER_TEXT = (
    "ids stand for other text; use the dataset that the model was trained on, or prepare one with the same tokenizer"
)
DATA_KEYS = ("batch_size", "gradient_accumulation_steps", "seed", "sampling")  # what a step sees, with the dataset


def main(argv: list[str]) -> int:
    config, explicit = configure(TrainConfig, argv)
    with ExitStack() as held:  # the process group and the lock on out_dir, given back however the run ends
        return train(config, explicit, held)


def train(config: TrainConfig, explicit: set[str], held: ExitStack) -> int:
    """The run. explicit: the keys that were given, not left at their defaults. Returns the exit status."""
    ranks = Ranks()
    out_dir = Path(config.out_dir)
    device = pick_device(config.device, ranks.local_rank if ranks.under_torchrun else None)
    ranks.start(config.backend, device)
    held.callback(ranks.stop)
    if ranks.share(goes_on(config, out_dir, restarted=ranks.max(ranks.restarts) > 0)):
        config.init_from = "resume"
    elif config.init_from == "auto":
        config.init_from = "scratch"
    resumed = config.init_from == "resume"
    if not resumed:
        validate(config, ranks)
    say = partial(print, flush=True) if ranks.is_main else lambda *_, **__: None

    run_id, locked = secrets.token_hex(8), False

    def lock_out_dir() -> bool:
        if config.eval_only:
            return False
        held.enter_context(lock_folder(out_dir))
        if not resumed:  # what an earlier run left is not its own: torchrun may start it again before it saves
            write_run_id(out_dir, run_id)
        return True

    # What to start from: nothing, a run of this folder, or the weights of another
    state = None
    if resumed:
        find_checkpoint(out_dir)  # refuses a folder without any before a lock is put there
        ranks.on_main(lock_out_dir)
        newest = ranks.share(ranks.on_main(partial(find_newest, out_dir)))
        # the CPU takes the tensors as they are; those of a sharded checkpoint come last of all
        state = ranks.on_all(lambda: load_checkpoint(newest, mapped=device.type != "cpu", meta=True))
        take_saved_config(config, explicit, state)
        validate(config, ranks)
    else:
        if not config.print_params:
            locked = ranks.share(ranks.on_main(lambda: (out_dir / "run").exists() and lock_out_dir()))
        if config.init_from != "scratch":
            state = ranks.on_all(lambda: load_pretrained(config.init_from, verify=True))

    # The machine, the data, the model
    dtype = pick_dtype(config.dtype, device)
    compiled = pick_compile(config.compile, device)
    fresh = state is None and config.print_params and config.vocab_size is not None  # needs no dataset
    dataset = None if fresh else ranks.on_all(lambda: open_dataset(config.dataset, config.vocab_size, resumed))
    if resumed:
        changes = check_changes(config, explicit, state, dataset)
        if changes:
            say(f"changed on resume: {', '.join(changes)}")
    generator = torch.Generator().manual_seed(config.seed)
    fsdp = config.parallel == "fsdp" and ranks.world_size > 1
    from_shards = resumed and newest.is_dir()
    # shards come from files, or from rank 0, which alone has a model with weights then
    home = "meta" if from_shards or (fsdp and not ranks.is_main) else "cpu" if fsdp else device
    model = make_model(config, explicit, state, dataset, generator, home)
    if config.print_params:
        say(table_of_parameters(model))
        return 0
    for split in ("train", "val"):
        windows_per_epoch(dataset, split, config.block_size)  # refuses a split that is too short, before work
    if not resumed and not locked:
        ranks.on_main(lock_out_dir)

    if fsdp:
        model = ranks.shard(model, device, dtype)
    else:
        model = model.allocate(device) if from_shards else model.to(device)
    model.checkpoint_activations = config.checkpoint_activations
    muon_lr = config.muon_learning_rate if config.optimizer == "muon" else None
    betas = (config.beta1, config.beta2)
    optimizer = make_optimizer(model, config.learning_rate, config.weight_decay, betas, muon_lr)
    # float16's small gradients need scaling; on CUDA and the CPU alike
    scaler = torch.amp.GradScaler("cuda" if device.type == "cuda" else "cpu", enabled=dtype == torch.float16)
    iter_num, best_val_loss = 0, 1e9
    run = {"seconds": 0.0, "last_eval_iter": -1, "clipped": 0, "skipped": 0, "id": run_id}
    if resumed:
        iter_num, best_val_loss = int(state["iter_num"]), float(state["best_val_loss"])
        run = {**run, **state.get("run", {})}
        if from_shards:
            load_shards(newest, model, optimizer, state)
        if "optimizer" in state:
            load_optimizer(optimizer, state["optimizer"])
        if state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
        best_val_loss = min(best_val_loss, ranks.share(ranks.on_main(partial(best_val_loss_of, out_dir, run["id"]))))
    state = None  # frees the loaded file
    run["fingerprint"] = dataset.fingerprint()
    autocast = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in float32, as nanoGPT
    elif device.type == "cpu":
        keep_memory()

    # Geometry of a step, and when the run ends
    micro_steps = config.gradient_accumulation_steps // ranks.world_size  # of this process
    samples = config.gradient_accumulation_steps * config.batch_size  # sequences a step, all processes
    tokens_per_iter = samples * config.block_size
    shift = run.get("samples", iter_num * samples) - iter_num * samples  # not 0 if earlier steps had another size
    n_params = model.get_num_params(non_embedding=False)
    limit = limit_iters(config, tokens_per_iter, dataset.tokens("train"), n_params, shift * config.block_size)
    horizon = limit if config.lr_decay_iters is None else config.lr_decay_iters
    warmup_iters = min(2000, horizon // 10) if config.warmup_iters is None else config.warmup_iters
    peak_flops = peak_flops_of(device, config.peak_tflops)
    flops_per_iter = model.flops_per_token(config.block_size) * tokens_per_iter

    metrics = saver = None  # rank 0 alone has them
    if not config.eval_only:
        ranks.sum([0.0])  # all have read what they start from, which may be in out_dir
        previous = None if resumed else ranks.on_main(partial(set_aside, out_dir))
        if previous:
            say(
                f"note: the run that was in {out_dir} is now in {previous}: delete it if it is of no use, or go on "
                f"with it (--out_dir={previous} --init_from=resume)"
            )
        metrics = ranks.on_main(partial(Metrics, out_dir, asdict(config), iter_num, run["last_eval_iter"]))
    if metrics:
        saver = Saver(device, config.keep_checkpoints, config.async_save, metrics.sync)
    raw_model, parameters = model, list(model.parameters())
    if compiled:
        say("compiling the model (takes a minute)")
        if fsdp:  # block by block, between the hooks that gather and free their weights
            for block in model.transformer.h:
                block.forward = torch.compile(block.forward)
        else:
            model = torch.compile(model)
    local_model = model  # evaluation needs no wrapper: it has no gradients to average
    model = ranks.wrap(model, device)
    say(
        f"{n_params / 1e6:.2f}M parameters on {device} in {str(dtype).removeprefix('torch.')}, "
        f"{ranks.world_size} process{'es' if ranks.world_size > 1 else ''}; "
        f"{dataset.tokens('train'):,} training tokens, {tokens_per_iter:,} a step; steps {iter_num:,} to {limit:,}"
    )

    tokenizer_json = dataset.tokenizer.to_json() if dataset.tokenizer else None  # once: it can be large

    def save(*names: str) -> None:
        """Starts to save everything that the run needs to go on, in out_dir by these names."""
        check_finite()
        run["seconds"], run["samples"] = clock(), shift + iter_num * samples
        run["clipped"], run["skipped"] = health.tolist()
        state = {
            "model": raw_model.state_dict(keep_vars=fsdp or config.checkpoint_format == "sharded"),
            "optimizer": optimizer.state_dict(),
            "model_args": raw_model.config.to_args(),
            "iter_num": iter_num,
            "best_val_loss": best_val_loss,
            "config": asdict(config),
            "scaler": scaler.state_dict(),
            "rng": {"seed": config.seed, "iter_num": iter_num},  # all that randomness depends on
            "tokenizer": tokenizer_json,
            "meta": {k: v for k, v in (dataset.meta or {}).items() if k != "tokenizer"},
            "run": {**run, "torch": str(torch.__version__), "world_size": ranks.world_size},
            "format": FORMAT,
        }
        paths = [out_dir / name for name in names]
        if config.checkpoint_format == "sharded":
            save_sharded(state, paths, saver, ranks)
            return
        if fsdp:
            state = gather(state, keep=ranks.is_main)
        if saver:
            saver.save(state, *paths, is_copy=fsdp)

    def settle() -> None:
        """Waits until all is on the disk; raises ValueError on all ranks if something could not be written."""
        ranks.on_main(lambda: saver.wait())

    def log(record: dict) -> None:
        if metrics:
            try:
                metrics.write(record)
            except ValueError as error:  # other ranks must learn of it before this one stops
                saver.error = error

    @torch.no_grad()
    def estimate_loss() -> dict[str, float]:
        """Mean loss over fixed windows of each split, the same for every call and any number of processes."""
        model.eval()
        losses = {}
        for split in ("train", "val"):
            windows = eval_windows(dataset, split, config.block_size, config.eval_iters * config.batch_size)
            total, count = torch.zeros((), device=device), 0
            for first in range(0, len(windows), ranks.world_size * config.batch_size):
                mine = windows[first + ranks.rank * config.batch_size :][: config.batch_size]
                # a process without windows left runs along, since gathering the weights takes all of them
                chosen = mine if len(mine) else windows[:1]
                x, y = eval_batch(dataset, split, chosen, config.block_size, config.sampling)
                valid = int((y >= 0).sum()) if len(mine) else 0
                with autocast:
                    _, loss = local_model(to_device(x), to_device(y), return_logits=False)
                total += loss * valid
                count += valid
            total, count = ranks.sum([total.item(), count])
            losses[split] = total / count
        model.train()
        return losses

    def to_device(array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    def load_micro_batch(iter_num: int, micro_step: int):
        """x, y (batch_size, block_size) of this process: its slice of the step's global batch."""
        first = shift + iter_num * samples + (micro_step * ranks.world_size + ranks.rank) * config.batch_size
        index = np.arange(first, first + config.batch_size)
        x, y = batch(dataset, "train", config.seed, index, config.block_size, config.sampling)
        return to_device(x), to_device(y), int((y >= 0).sum())

    def tokens_after(steps: int) -> int:
        return tokens_per_iter * steps + shift * config.block_size

    def clock() -> float:
        """Seconds of training so far, over all resumes."""
        return time_before + time.perf_counter() - start_time

    def check_finite() -> None:
        """Stops all processes, before anything is saved, if a loss or a gradient was not a finite number."""
        first_bad = -int(ranks.max(-bad_iter.item()))
        if first_bad != NEVER:
            advice = (
                f"the last good checkpoint in {out_dir} is kept: go on from it (--init_from=resume) with a lower "
                "learning_rate"
                if resumed or saved_iter >= 0
                else "nothing has been saved so far: start again with a lower learning_rate"
            )
            raise FloatingPointError(f"the loss or gradient of iter {first_bad} is not a finite number; {advice}")

    # The loop
    stop = StopSignals()
    prefetch = ThreadPoolExecutor(1)
    next_batch = prefetch.submit(load_micro_batch, iter_num, 0)
    bad_iter = torch.tensor(NEVER, device=device)  # the first step whose loss or gradient was not finite
    health = torch.tensor([run["clipped"], run["skipped"]], device=device)  # steps so far
    time_before, start_time = run["seconds"], time.perf_counter()
    elapsed, stop_signal = time_before, 0
    interval_start, interval_iters, data_wait = start_time, 0, 0.0
    saved_iter = iter_num if resumed else -1
    model.train()
    gc.collect()
    gc.freeze()  # what is there now stays to the end: Python's collector need not go through it again
    has_room = True
    try:
        if ranks.world_size > 2 and not fsdp and not config.eval_only:
            # DDP lays out its buckets anew after the first backward that it sees, and float sums of three or more
            # depend on the layout: let that be over, so that the first step after a resume adds as without one
            with autocast:
                _, loss = model(*next_batch.result()[:2], return_logits=False)
            loss.backward()
            optimizer.zero_grad(set_to_none=True)
        while True:
            # Evaluate and save, as often as asked, and when all is done
            finished = iter_num >= limit or (config.max_minutes is not None and elapsed >= 60 * config.max_minutes)
            due = iter_num % config.eval_interval == 0 and run["last_eval_iter"] != iter_num
            if stop_signal or (finished and not due and saved_iter != iter_num and not config.eval_only):
                # the state of an undisturbed run: what is evaluated below only because of the end is not in it
                save("last.pt")
                saved_iter = iter_num
            if stop_signal:
                settle()
                say(
                    f"stopped by {signal.Signals(stop_signal).name} after {iter_num} steps; "
                    f"go on with --init_from=resume"
                )
                return 128 + stop_signal
            if due or config.eval_only or (finished and run["last_eval_iter"] != iter_num):
                check_finite()  # waits for the device: what comes after is the evaluation's time
                eval_start = time.perf_counter()
                losses = estimate_loss()
                bits_per_byte = to_bits_per_byte(losses["val"], dataset)
                say(
                    f"step {iter_num}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}"
                    + (f", {bits_per_byte:.4f} bits per byte" if bits_per_byte else "")
                )
                if config.eval_only:
                    return 0
                run["last_eval_iter"] = iter_num
                log({
                    "kind": "eval", "iter": iter_num, "train_loss": losses["train"], "val_loss": losses["val"],
                    "bits_per_byte": bits_per_byte, "tokens": tokens_after(iter_num), "seconds": clock(),
                    "eval_seconds": time.perf_counter() - eval_start,
                })  # fmt: skip
                better = losses["val"] < best_val_loss
                best_val_loss = min(best_val_loss, losses["val"])
                if iter_num > 0 or finished:
                    wanted = better or config.always_save_checkpoint
                    if wanted:
                        say(f"saving checkpoint to {out_dir}")
                    if wanted or due:
                        save(*["ckpt.pt"] * wanted, *["last.pt"] * due)  # in this order: the best is never lost
                    if due:
                        saved_iter = iter_num
                interval_start += time.perf_counter() - eval_start
            if finished:
                settle()
                break

            # One step: forward and backward over this process's share of the global batch
            share = learning_rate_at(
                iter_num, horizon, 1.0, config.min_lr / config.learning_rate, warmup_iters, config.schedule,
                elapsed / (60 * config.max_minutes) if config.max_minutes else 0.0, config.cooldown,
            ) if config.decay_lr else 1.0  # fmt: skip
            set_rates(optimizer, share, iter_num)
            lr = share * config.learning_rate
            if config.dropout:  # dropout of a step depends on seed, step and rank alone, so a resume repeats it
                torch.manual_seed(((config.seed * 1_000_003 + iter_num) * 65_537 + ranks.rank) % 2**63)
            loss_sum, valid = torch.zeros((), device=device), 0
            for micro_step in range(micro_steps):
                last = micro_step == micro_steps - 1
                waiting = time.perf_counter()
                x, y, n = next_batch.result()
                data_wait += time.perf_counter() - waiting
                following = (iter_num + 1, 0) if last else (iter_num, micro_step + 1)
                next_batch = prefetch.submit(load_micro_batch, *following)
                ranks.reduce_gradients(model, wanted=last)  # they travel once a step
                with autocast:
                    _, loss = model(x, y, return_logits=False)
                # a sum over tokens, divided by the tokens a full batch has for each process; DDP averages processes
                scaler.scale(loss * (n / (micro_steps * config.batch_size * config.block_size))).backward()
                loss_sum += loss.detach() * n
                valid += n
            # one small message a step: everybody's valid targets, signals, failed writes, the main process's clock
            valid, interrupts, terminations, failures, elapsed = ranks.sum([
                valid, stop.signal == signal.SIGINT, stop.signal == signal.SIGTERM,
                bool(saver and saver.error), clock() if ranks.is_main else 0.0,
            ])  # fmt: skip
            if failures:
                settle()
            stop_signal = signal.SIGINT if interrupts else signal.SIGTERM if terminations else 0

            # Update
            scaler.unscale_(optimizer)
            if valid != tokens_per_iter:  # some targets are ignored: the mean is over the others
                for parameter in parameters:
                    parameter.grad *= tokens_per_iter / max(1, valid)
            grad_norm = full(torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters]))
            # float16 may overflow its gradients: then the scaler skips the step and lowers the scale
            bad = ~torch.isfinite(loss_sum if scaler.is_enabled() else loss_sum + grad_norm)
            bad_iter = torch.where(bad, bad_iter.clamp(max=iter_num), bad_iter)
            skipped = ~torch.isfinite(grad_norm)
            health += torch.stack([(grad_norm > (config.grad_clip or math.inf)) & ~skipped, skipped])
            if config.grad_clip:
                torch.nn.utils.clip_grads_with_norm_(parameters, config.grad_clip, grad_norm)
            if saver:
                saver.before_update()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            interval_iters += 1

            # Log: only here does the host wait for the device
            if iter_num % config.log_interval == 0:
                check_finite()
                loss_mean = ranks.sum([loss_sum.item()])[0] / max(1, valid)
                now = time.perf_counter()
                dt, wait = (now - interval_start) / interval_iters, data_wait / interval_iters
                interval_start, interval_iters, data_wait = now, 0, 0.0
                mfu = flops_per_iter / dt / (peak_flops * ranks.world_size) if peak_flops else None
                say(
                    f"iter {iter_num}: loss {loss_mean:.4f}, time {dt * 1000:.2f}ms, "
                    + (f"mfu {mfu * 100:.2f}%, " if mfu else "")
                    + f"tok/s {tokens_per_iter / dt:,.0f}, lr {lr:.2e}, grad_norm {grad_norm:.3f}, "
                    f"eta {eta(config, limit - iter_num - 1, dt, elapsed)}"
                )
                (clipped, n_skipped), tokens = health.tolist(), tokens_after(iter_num + 1)
                log({
                    "kind": "train", "iter": iter_num, "loss": loss_mean, "lr": lr, "grad_norm": grad_norm.item(),
                    "clipped": clipped, "skipped": n_skipped,
                    "loss_scale": scaler.get_scale() if scaler.is_enabled() else None,
                    "tokens": tokens, "epochs": tokens / dataset.tokens("train"),
                    "seconds": elapsed, "time_ms": dt * 1000, "data_wait_ms": wait * 1000,
                    "tokens_per_second": tokens_per_iter / dt, "mfu": mfu, "memory_mb": memory_used(device),
                })  # fmt: skip
            iter_num += 1
            if config.save_interval and iter_num % config.save_interval == 0 and iter_num % config.eval_interval:
                save("last.pt")
                saved_iter = iter_num
    except FloatingPointError as error:
        say(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError:  # while it is handled, its frames hold the memory: more below
        has_room, loss = False, None
    except RuntimeError as error:
        if not is_loss_of_peer(error) or os.environ.get("TRACEBACK") == "1":
            raise
        say(
            "error: another process of this run has ended, or no longer answers: look for its own message above, or "
            f"torchrun's below; go on with --init_from=resume ({str(error).splitlines()[0][:200]})",
            file=sys.stderr,
        )
        time.sleep(2)  # torchrun calls the first end that it sees the cause: let that be the other process's
        return 1
    finally:
        gc.unfreeze()
        stop.restore()
        prefetch.shutdown(cancel_futures=True)
        if saver:
            saver.join()
            metrics.close()
    if not has_room:  # perhaps on this rank alone: the others wait for it, and only rank 0 prints ValueErrors
        advice = out_of_memory(config, local_model if ranks.world_size == 1 else None, optimizer, device, autocast)
        print(f"error: {advice}", file=sys.stderr, flush=True)
        return 2
    say(
        f"done: {iter_num} steps, {tokens_after(iter_num):,} tokens, best val loss {best_val_loss:.4f}, "
        f"{run['seconds'] / 60:.1f} minutes; sample with: python sample.py --out_dir={out_dir}"
    )
    return 0


def validate(config: TrainConfig, ranks: Ranks) -> None:
    """Raises ValueError with every setting that cannot work, in one line."""
    problems = []
    at_least_1 = "eval_interval log_interval eval_iters gradient_accumulation_steps batch_size keep_checkpoints"
    for key in at_least_1.split():
        if getattr(config, key) < 1:
            problems.append(f"{key}={getattr(config, key)} must be at least 1")
    for key in ("max_iters", "warmup_iters", "save_interval", "weight_decay", "grad_clip", "min_lr"):
        if not 0 <= (getattr(config, key) or 0) < math.inf:
            problems.append(f"{key}={getattr(config, key)} must be finite and not negative")
    for key in ("learning_rate", "muon_learning_rate"):
        if not 0 < getattr(config, key) < math.inf:
            problems.append(f"{key}={getattr(config, key)} must be positive and finite")
    for key in ("max_tokens", "max_epochs", "max_minutes", "compute", "peak_tflops", "lr_decay_iters"):
        if getattr(config, key) is not None and not 0 < getattr(config, key) < math.inf:
            problems.append(f"{key}={getattr(config, key)} must be positive and finite, or None")
    if not 0 < config.cooldown <= 1:
        problems.append(f"cooldown={config.cooldown} must be above 0 and at most 1: a part of the run")
    for key in ("beta1", "beta2"):
        if not 0 <= getattr(config, key) < 1:
            problems.append(f"{key}={getattr(config, key)} must be at least 0 and below 1")
    steps, processes = config.gradient_accumulation_steps, ranks.world_size
    if steps % processes:
        problems.append(
            f"gradient_accumulation_steps={steps} counts the micro-batches of all processes and cannot be "
            f"divided by {processes} of them: use {processes * math.ceil(steps / processes)}"
        )
    for key in allowed_changes(config) - {"dataset", *DATA_KEYS}:
        problems.append(f"allow_changed={key} is not possible: choose from dataset, {', '.join(DATA_KEYS)}")
    if config.parallel == "fsdp" and config.optimizer == "muon" and processes > 1:
        problems.append(
            "optimizer=muon orthogonalises whole matrices, of which parallel=fsdp leaves a process only "
            "rows: use --parallel=ddp or --optimizer=adamw"
        )
    if problems:
        raise ValueError("; ".join(problems))


def goes_on(config: TrainConfig, out_dir: Path, restarted: bool) -> bool:
    """Whether to resume although init_from does not say so: 'auto', where there is something to resume; and a run
    that torchrun started again after a failure, where it had saved anything itself."""
    if config.init_from == "auto":
        return bool(saved_checkpoints(out_dir))
    return restarted and config.init_from != "resume" and has_own_checkpoint(out_dir)


def allowed_changes(config: TrainConfig) -> set[str]:
    return {key.strip() for key in config.allow_changed.split(",")} - {""}


def take_saved_config(config: TrainConfig, explicit: set[str], state: dict) -> None:
    """A resumed run keeps the settings it had, except those given anew and those that belong to the machine."""
    own_keys = MACHINE_KEYS if "format" in state else (*MACHINE_KEYS, "dtype")  # nanoGPT's dtype is its machine's
    for key, value in state.get("config", {}).items():
        if hasattr(config, key) and key not in explicit and key not in own_keys:
            setattr(config, key, value)


def check_changes(config: TrainConfig, explicit: set[str], state: dict, dataset: Dataset) -> list[str]:
    """What the settings given anew change in a resumed run, as "key old -> new". Raises ValueError with all of it
    that a run cannot go on with: another model or optimizer and, unless allow_changed has it, other data."""
    saved, known = state.get("config", {}), state["model_args"].keys() & set(MODEL_KEYS)
    shape = GPTConfig(**{key: state["model_args"][key] for key in known})
    changed, fixed = {}, []
    for key in (field.name for field in fields(config) if field.name in explicit.difference(MACHINE_KEYS)):
        new = getattr(config, key)
        old = getattr(shape, key) if key in MODEL_KEYS else saved.get(key, new)
        is_fixed = reshapes(shape, key, new) if key in MODEL_KEYS else key == "optimizer" and old != new
        if is_fixed or (old != new and (key not in MODEL_KEYS or key == "dropout")):
            changed[key] = f"{key} {old} -> {new}"
        if is_fixed:
            fixed.append(key)
    data = [key for key in DATA_KEYS if key in changed]
    if state.get("run", {}).get("fingerprint", dataset.fingerprint()) != dataset.fingerprint():
        again = " (prepared again since?)" if saved.get("dataset") == config.dataset else ""
        changed["dataset"] = f"dataset {saved.get('dataset')} -> {config.dataset}, with other tokens{again}"
        data.insert(0, "dataset")  # the same tokens may have moved; of nanoGPT's nothing is known
    other_text = ["dataset"] if "dataset" in data and not has_ids_of(dataset, state, config.vocab_size) else []
    data = [key for key in data if key not in other_text]
    refused = [key for key in data if key not in allowed_changes(config)]
    if fixed or other_text or refused:
        listed = ", ".join(changed[key] for key in (*fixed, *other_text, *refused))
        raise ValueError(
            f"resuming would change {listed}: leave that out"
            + (f", or if it is meant: --allow_changed={','.join(data)}" if refused else "")
            + (f"; this dataset's {OTHER_TEXT}" if other_text else "")
            + ("; the model and its optimizer cannot change: fine-tune (--init_from=PATH) or train from scratch in "
               "another out_dir" if fixed else "")
        )  # fmt: skip
    return list(changed.values())


def reshapes(shape: GPTConfig, key: str, value) -> bool:
    """Whether `value` for a setting makes another model than `shape`; None and what it stands for do not."""
    resolved = {"n_kv_head": "kv_heads", "head_dim": "head_size", "mlp_hidden": "mlp_width"}.get(key, key)
    other = replace(shape, **{key: value})
    return key not in ("dropout", "init") and getattr(other, resolved) != getattr(shape, resolved)


def make_model(
    config: TrainConfig,
    explicit: set[str],
    state: dict | None,
    dataset: Dataset,
    generator: torch.Generator,
    device: torch.device | str,
) -> GPT:
    """A fresh model (of config.vocab_size, or the dataset's), or the one in `state`; on "meta" without weights.
    Raises ValueError if dataset or settings do not fit that one."""
    vocab_size = config.vocab_size or dataset.vocab_size
    if state is None:
        if config.vocab_size is None and vocab_size > 10_000:  # a multiple of 64 multiplies faster
            vocab_size = 64 * math.ceil(vocab_size / 64)
        shape = {key: getattr(config, key) for key in MODEL_KEYS}
        with torch.device("meta" if device == "meta" else "cpu"):
            return GPT(GPTConfig(**{**shape, "vocab_size": vocab_size}), generator)
    model = build_model(state, device, take=config.init_from == "resume", dropout=config.dropout)
    for key in MODEL_KEYS:
        saved, wanted = getattr(model.config, key), getattr(config, key)
        if key in explicit and reshapes(model.config, key, wanted):
            if key == "block_size" and wanted < saved:
                model.crop_block_size(wanted)
            elif key == "block_size":
                raise ValueError(
                    f"block_size={wanted} was asked for, but the model in {config.init_from} has {saved} "
                    f"and can only be cropped: use --block_size={saved} or less"
                )
            else:
                raise ValueError(
                    f"{key}={wanted} was asked for, but the model in the checkpoint has {saved}: "
                    f"leave {key} out, or train from scratch in another out_dir"
                )
        setattr(config, key, wanted if key == "dropout" else getattr(model.config, key))
    if not has_ids_of(dataset, state, config.vocab_size):
        raise ValueError(
            f"dataset {dataset.name} (vocabulary {dataset.vocab_size}) does not match the checkpoint "
            f"(vocabulary {model.config.vocab_size}): its {OTHER_TEXT}"
        )
    return model


def has_ids_of(dataset: Dataset, state: dict, vocab_size: int | None = None) -> bool:
    """Whether the dataset's ids stand for the same bytes as the checkpoint's, whatever the kind of their tokenizers;
    where one has none, their number has to do (or the `vocab_size` that was asked for)."""
    size = state["model_args"]["vocab_size"]
    if size < dataset.vocab_size:
        return False
    if dataset.tokenizer and state.get("tokenizer"):
        return token_table(dataset.tokenizer) == token_table(tokenizer_from_json(state["tokenizer"]))
    return size in (vocab_size, dataset.vocab_size, 64 * math.ceil(dataset.vocab_size / 64))


def table_of_parameters(model: GPT) -> str:
    """A line for each parameter, tied ones once: name, shape, count; then the sum."""
    rows = [(name, " x ".join(map(str, p.shape)), p.numel()) for name, p in model.named_parameters()]
    width = max(len(name) for name, *_ in rows)
    lines = [f"{name:{width}}  {shape:>14}  {n:>14,}" for name, shape, n in rows]
    return "\n".join([*lines, f"{'total':{width}}  {'':>14}  {sum(n for *_, n in rows):>14,}"])


def limit_iters(config: TrainConfig, tokens_per_iter: int, train_tokens: int, n_params: int, shift: int = 0) -> int:
    """Steps until the first limit other than time is reached; `shift` tokens come on top of tokens_per_iter each."""
    tokens = [
        config.max_tokens,
        config.max_epochs and config.max_epochs * train_tokens,
        config.compute and config.compute * 1e12 / n_params,
    ]
    return min([config.max_iters, *(math.ceil((t - shift) / tokens_per_iter) for t in tokens if t is not None)])


def out_of_memory(
    config: TrainConfig, model: torch.nn.Module | None, optimizer: torch.optim.Optimizer, device: torch.device, autocast
) -> str:
    """What to do about it: the largest half, quarter, ... of batch_size with which two micro-batches fit beside the
    optimizer's state, tried with `model` (None: not tried), and what else can be lowered."""
    fits = config.batch_size if model else 0
    while fits > 1:
        fits //= 2
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        model.train()
        with suppress(torch.OutOfMemoryError):
            reserve = [] if optimizer.state else [torch.empty_like(p) for p in model.parameters() for _ in range(2)]
            for _ in range(2):
                idx = torch.zeros(fits, config.block_size, dtype=torch.int64, device=device)
                with autocast:
                    loss = model(idx, idx, return_logits=False)[1]
                loss.backward()
            del reserve
            break
        reserve = loss = None
    else:
        fits = 0
    steps = config.gradient_accumulation_steps * math.ceil(config.batch_size / max(1, fits))
    advice = f"batch_size={fits} fits: --batch_size={fits} --gradient_accumulation_steps={steps}; or " if fits else ""
    return (
        f"{device}: too little memory for {config.batch_size} sequences of {config.block_size} tokens: {advice}"
        "lower batch_size or block_size, or use --checkpoint_activations"
    )


def to_bits_per_byte(loss: float, dataset: Dataset) -> float | None:
    """Nats a token of the validation split -> bits a byte of its text; None if the dataset does not say."""
    n_bytes = dataset.bytes("val")
    return loss * dataset.tokens("val") / (math.log(2) * n_bytes) if n_bytes else None


def eta(config: TrainConfig, steps: int, seconds_per_step: float, elapsed: float) -> str:
    """Time until the run ends, as h:mm:ss."""
    seconds = steps * seconds_per_step
    if config.max_minutes is not None:
        seconds = min(seconds, 60 * config.max_minutes - elapsed)
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


class StopSignals:
    """Remembers a SIGINT or SIGTERM, so that the loop can finish its step and save. A second Ctrl-C, at least a
    second later (torchrun passes one on twice), stops at once."""

    def __init__(self) -> None:
        self.signal, self.time = 0, 0.0
        self.before = {n: signal.signal(n, self.catch) for n in (signal.SIGINT, signal.SIGTERM)}

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def catch(self, number: int, _frame) -> None:
        if self.signal and number == signal.SIGINT and time.monotonic() - self.time > 1:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self.time = number, time.monotonic()


if __name__ == "__main__":
    exit_on_error(main)
