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
import os
import signal
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from configurator import configure, exit_on_error
from system.device import DTypeName, memory_used, peak_flops_of, pick_compile, pick_device, prepare
from system.distributed import Ranks, full, is_loss_of_peer
from training import memory
from training.batches import Batches
from training.evaluate import estimate_loss, to_bits_per_byte
from training.health import Health
from training.optim import learning_rate_share, set_rates
from training.outputs import Outputs
from training.run import Run
from training.signals import StopSignals
from training.start import start


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


def main(argv: list[str]) -> int:
    config, explicit = configure(TrainConfig, argv)
    with ExitStack() as held:  # the process group and the lock on out_dir, given back however the run ends
        ranks = Ranks()
        device = pick_device(config.device, ranks.local_rank if ranks.under_torchrun else None)
        ranks.start(config.backend, device)
        held.callback(ranks.stop)
        run = start(config, explicit, ranks, device, held)
        return train(run) if run else 0


def train(run: Run) -> int:
    """Trains until a limit or a signal, whichever comes first; evaluates and saves on the way -> the exit status."""
    config, ranks, device, dataset = run.config, run.ranks, run.device, run.dataset
    run.begin()
    prepare(device)
    autocast = torch.autocast(device.type, run.dtype) if run.dtype != torch.float32 else nullcontext()
    outputs = Outputs(run)
    optimizer, scaler, parameters = run.optimizer, run.scaler, list(run.model.parameters())
    local_model = compiled(run) if pick_compile(config.compile, device) else run.model
    model = ranks.wrap(local_model, device)  # whose backward averages gradients over ranks; evaluation needs none
    ranks.say(
        f"{run.n_params / 1e6:.2f}M parameters on {device} in {str(run.dtype).removeprefix('torch.')}, "
        f"{ranks.world_size} process{'es' if ranks.world_size > 1 else ''}; {dataset.tokens('train'):,} training "
        f"tokens, {run.tokens_per_iter:,} a step; steps {run.iter_num:,} to {run.limit:,}"
    )
    peak_flops = peak_flops_of(device, config.peak_tflops)
    flops_per_iter = run.model.flops_per_token(config.block_size) * run.tokens_per_iter
    health = Health(device, run.progress["clipped"], run.progress["skipped"])
    stop, batches, has_room = StopSignals(), Batches(config, dataset, ranks, device, run.iter_num, run.shift), True
    model.train()
    gc.collect()
    gc.freeze()  # what is there now stays to the end: Python's collector need not go through it again
    run.start_time = interval_start = time.perf_counter()
    elapsed, stop_signal, interval_iters = run.clock(), 0, 0
    try:
        settle_buckets(run, model, batches, autocast)
        while True:
            # Evaluate and save, as often as asked, and when all is done
            iter_num = run.iter_num
            finished = iter_num >= run.limit or (config.max_minutes is not None and elapsed >= 60 * config.max_minutes)
            not_evaluated = run.progress["last_eval_iter"] != iter_num
            due = iter_num % config.eval_interval == 0 and not_evaluated
            if stop_signal or (finished and not due and run.saved_iter != iter_num and not config.eval_only):
                # the state of an undisturbed run: what is evaluated below only because of the end is not in it
                outputs.save(health, "last.pt")
            if stop_signal:
                outputs.settle()
                name = signal.Signals(stop_signal).name
                ranks.say(f"stopped by {name} after {iter_num} steps; continue with --init_from=resume")
                return 128 + stop_signal
            if due or config.eval_only or (finished and not_evaluated):
                health.check(ranks, run.advice_on_nan())  # waits for the device: the rest is the evaluation's time
                eval_start = time.perf_counter()
                losses = estimate_loss(local_model, config, dataset, ranks, device, autocast)
                evaluated(run, losses, outputs, health, time.perf_counter() - eval_start, due, finished)
                if config.eval_only:
                    return 0
                interval_start += time.perf_counter() - eval_start
            if finished:
                outputs.settle()
                break

            # One step: forward and backward over this process's share of the global batch
            share = learning_rate_share(config, iter_num, run.limit, elapsed)
            set_rates(optimizer, share, iter_num)
            if config.dropout:  # dropout of a step depends on seed, step and rank alone, so a resume repeats it
                torch.manual_seed(((config.seed * 1_000_003 + iter_num) * 65_537 + ranks.rank) % 2**63)
            loss_sum, valid = torch.zeros((), device=device), 0
            for micro_step in range(run.micro_steps):
                x, y, n = batches.next()
                ranks.reduce_gradients(model, wanted=micro_step == run.micro_steps - 1)  # they travel once a step
                with autocast:
                    _, loss = model(x, y, return_logits=False)
                # a sum over tokens, divided by the tokens a full batch has for each process; DDP averages processes
                scaler.scale(loss * (n * ranks.world_size / run.tokens_per_iter)).backward()
                loss_sum += loss.detach() * n
                valid += n
            # one small message a step: everybody's valid targets, signals, failed writes, the main process's clock
            valid, interrupts, terminations, failures, elapsed = ranks.sum([
                valid, stop.signal == signal.SIGINT, stop.signal == signal.SIGTERM,
                outputs.failed, run.clock() if ranks.is_main else 0.0,
            ])  # fmt: skip
            if failures:
                outputs.settle()  # raises, on all ranks
            stop_signal = signal.SIGINT if interrupts else signal.SIGTERM if terminations else 0

            # Update
            scaler.unscale_(optimizer)
            if valid != run.tokens_per_iter:  # some targets are ignored: the mean is over the others
                for parameter in parameters:
                    parameter.grad *= run.tokens_per_iter / max(1, valid)
            grad_norm = full(torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters]))
            health.note(iter_num, loss_sum, grad_norm, config.grad_clip, scaler.is_enabled())
            if config.grad_clip:
                torch.nn.utils.clip_grads_with_norm_(parameters, config.grad_clip, grad_norm)
            outputs.before_update()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            interval_iters += 1

            # Log: only here does the host wait for the device
            if iter_num % config.log_interval == 0:
                health.check(ranks, run.advice_on_nan())
                loss_mean = ranks.sum([loss_sum.item()])[0] / max(1, valid)
                now = time.perf_counter()
                dt, wait = (now - interval_start) / interval_iters, batches.waited / interval_iters
                interval_start, interval_iters, batches.waited = now, 0, 0.0
                mfu = flops_per_iter / dt / (peak_flops * ranks.world_size) if peak_flops else None
                lr, tokens_per_second = share * config.learning_rate, run.tokens_per_iter / dt
                ranks.say(
                    f"iter {iter_num}: loss {loss_mean:.4f}, time {dt * 1000:.2f}ms, "
                    + (f"mfu {mfu * 100:.2f}%, " if mfu else "")
                    + f"tok/s {tokens_per_second:,.0f}, lr {lr:.2e}, grad_norm {grad_norm:.3f}, "
                    f"eta {run.eta(dt, elapsed)}"
                )
                (clipped, skipped), tokens = health.counts.tolist(), run.tokens_after(iter_num + 1)
                outputs.log({
                    "kind": "train", "iter": iter_num, "loss": loss_mean, "lr": lr, "grad_norm": grad_norm.item(),
                    "clipped": clipped, "skipped": skipped,
                    "loss_scale": scaler.get_scale() if scaler.is_enabled() else None,
                    "tokens": tokens, "epochs": tokens / dataset.tokens("train"),
                    "seconds": elapsed, "time_ms": dt * 1000, "data_wait_ms": wait * 1000,
                    "tokens_per_second": tokens_per_second, "mfu": mfu, "memory_mb": memory_used(device),
                })  # fmt: skip
            run.iter_num += 1
            is_due = config.save_interval and run.iter_num % config.save_interval == 0
            if is_due and run.iter_num % config.eval_interval:  # or the evaluation saves
                outputs.save(health, "last.pt")
    except FloatingPointError as error:
        ranks.say(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError:  # while it is handled, its frames hold the memory: more below
        has_room, loss = False, None
    except RuntimeError as error:
        if not is_loss_of_peer(error) or os.environ.get("TRACEBACK") == "1":
            raise
        report_loss_of_peer(ranks, error)
        return 1
    finally:
        gc.unfreeze()
        stop.restore()
        batches.close()
        outputs.close()
    if not has_room:  # perhaps on this rank alone: the others wait for it, and only rank 0 prints ValueErrors
        advice = memory.advise(config, local_model if ranks.world_size == 1 else None, optimizer, device, autocast)
        print(f"error: {advice}", file=sys.stderr, flush=True)
        return 2
    tokens = run.tokens_after(run.iter_num)
    ranks.say(
        f"done: {run.iter_num} steps, {tokens:,} tokens, best val loss {run.best_val_loss:.4f}, "
        f"{run.clock() / 60:.1f} minutes; sample with: python sample.py --out_dir={run.out_dir}"
    )
    return 0


def compiled(run: Run) -> torch.nn.Module:
    run.ranks.say("compiling the model (takes a minute)")
    if not run.fsdp:
        return torch.compile(run.model)
    for block in run.model.transformer.h:  # block by block, between the hooks that gather and free their weights
        block.forward = torch.compile(block.forward)
    return run.model


def settle_buckets(run: Run, model: torch.nn.Module, batches: Batches, autocast) -> None:
    """DDP lays out its buckets anew after the first backward it sees, and float sums of three or more ranks depend on
    the layout. This gets it over with, so that the first step after a resume adds as it would have without one."""
    if run.ranks.world_size > 2 and not run.fsdp and not run.config.eval_only:
        with autocast:
            _, loss = model(*batches.peek()[:2], return_logits=False)
        loss.backward()
        run.optimizer.zero_grad(set_to_none=True)


def evaluated(
    run: Run, losses: dict[str, float], outputs: Outputs, health: Health, seconds: float, due: bool, finished: bool
) -> None:
    """Tells and records the losses of an evaluation, and saves what is due with it."""
    config, val_loss = run.config, losses["val"]
    bits_per_byte = to_bits_per_byte(val_loss, run.dataset)
    run.ranks.say(
        f"step {run.iter_num}: train loss {losses['train']:.4f}, val loss {val_loss:.4f}"
        + (f", {bits_per_byte:.4f} bits per byte" if bits_per_byte else "")
    )
    if config.eval_only:
        return
    run.progress["last_eval_iter"] = run.iter_num
    outputs.log({
        "kind": "eval", "iter": run.iter_num, "train_loss": losses["train"], "val_loss": val_loss,
        "bits_per_byte": bits_per_byte, "tokens": run.tokens_after(run.iter_num), "seconds": run.clock(),
        "eval_seconds": seconds,
    })  # fmt: skip
    is_better = val_loss < run.best_val_loss
    run.best_val_loss = min(run.best_val_loss, val_loss)
    if run.iter_num > 0 or finished:
        wanted = is_better or config.always_save_checkpoint
        if wanted:
            run.ranks.say(f"saving checkpoint to {run.out_dir}")
        if wanted or due:  # in this order: the best is never lost
            outputs.save(health, *["ckpt.pt"] * wanted, *["last.pt"] * due)


def report_loss_of_peer(ranks: Ranks, error: RuntimeError) -> None:
    ranks.say(
        "error: another process of this run has ended, or no longer answers: look for its own message above, or "
        f"torchrun's below; continue with --init_from=resume ({str(error).splitlines()[0][:200]})",
        file=sys.stderr,
    )
    time.sleep(2)  # torchrun calls the first end that it sees the cause: let that be the other process's


if __name__ == "__main__":
    exit_on_error(main)
