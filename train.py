"""Trains a GPT on a dataset folder made by data/<name>/prepare.py.

    python train.py config/train_shakespeare_char.py                      # one GPU, a Mac or a CPU
    python train.py config/train_shakespeare_char.py --max_minutes=5      # override any key
    python train.py config/train_shakespeare_char.py --init_from=resume   # continue where it stopped
    torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py
    torchrun --standalone --nproc_per_node=8 train.py ... --parallel=fsdp --checkpoint_activations   # a large model
    torchrun --nnodes=2 --nproc_per_node=8 --node_rank=0 --master_addr=10.0.0.1 --master_port=1234 train.py ...

Run on every machine with --max_restarts=3 --rdzv_backend=c10d --rdzv_endpoint=10.0.0.1:29500 and a shared out_dir,
torchrun resumes from last.pt after any process crashes (scripts/slurm.sh does this under Slurm). `python train.py
--help` lists every key.
"""

import gc
import math
import os
import signal
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Literal

from configurator import ReportedByRankZero, configure, exit_on_error, is_out_of_memory, read_early
from system.dtypes import DTypeName


@dataclass
class TrainConfig:
    # Output and evaluation
    out_dir: str = "out"  # folder for ckpt.pt, last.pt and metrics.jsonl
    eval_interval: int = 2000  # steps between evaluations, each of which saves a checkpoint
    log_interval: int = 1  # steps between log lines
    eval_iters: int = 200  # batches evaluated per split, of a new model at most 10; the whole split if it is smaller
    eval_only: bool = False  # evaluate once and exit
    print_params: bool = False  # print every parameter's name, shape and size, and exit
    always_save_checkpoint: bool = True  # write ckpt.pt at every evaluation; False = only at the best so far
    checkpoint_format: Literal["full", "sharded"] = "full"  # single files, as nanoGPT's, or folders all processes write
    save_interval: int = 0  # steps between extra saves of last.pt; 0 = only at evaluations and at the end
    keep_checkpoints: int = 2  # last.pt and its predecessors (last-1.pt, …), in case one is damaged; besides ckpt.pt
    async_save: bool = True  # save during training, from a copy in host memory; False = pause training to save
    init_from: str = "scratch"  # 'scratch', 'resume', 'auto' (resume if possible), or weights: a path or 'gpt2*'
    allow_changed: str = ""  # what a resume may change: dataset,batch_size,gradient_accumulation_steps,seed,sampling
    # Logging elsewhere
    wandb_log: bool = False  # log to Weights & Biases (pip install wandb)
    wandb_project: str = "owt"  # W&B project
    wandb_run_name: str = "gpt2"  # W&B name of this run
    swanlab_log: bool = False  # log to SwanLab (pip install swanlab)
    swanlab_project: str | None = None  # its project; None = the name in wandb_project
    swanlab_run_name: str | None = None  # its run name; None = the name in wandb_run_name
    tensorboard_log: bool = False  # log to out_dir/tensorboard (pip install tensorboard)
    # Data
    dataset: str = "openwebtext"  # name of a folder under data/, or a path
    gradient_accumulation_steps: int = 5 * 8  # micro-batches per step, over all processes
    batch_size: int = 12  # sequences per micro-batch
    block_size: int = 1024  # context length in tokens
    sampling: Literal["contiguous", "line"] = "contiguous"  # line = windows start at a line and end with their file
    # Model
    n_layer: int = 12  # transformer blocks
    n_head: int = 12  # attention heads
    n_embd: int = 768  # width of the residual stream
    dropout: float = 0.0  # probability; 0 for pretraining, try 0.1 or more for fine-tuning and small data
    bias: bool = False  # biases in linear layers and LayerNorms
    vocab_size: int | None = None  # None = the dataset's, rounded up to a multiple of 64 if above 10,000
    n_kv_head: int | None = None  # key/value heads; None = n_head, fewer = grouped-query attention
    head_dim: int | None = None  # width of each head; None = n_embd / n_head
    pos: Literal["learned", "rope"] = "learned"  # position encoding
    rope_theta: float = 10000.0  # RoPE's base
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"  # normalisation
    norm_eps: float = 1e-5  # added to the variance in norms
    mlp: Literal["gelu", "gelu_tanh", "swiglu", "relu2"] = "gelu"  # activation of the MLP
    mlp_hidden: int | None = None  # MLP width; None = 4 n_embd, for swiglu 8/3 n_embd rounded up to a multiple of 128
    tie_weights: bool = True  # head and token embedding share one matrix
    qk_norm: bool = False  # RMSNorm on queries and keys
    softcap: float = 0.0  # bound on the logits' magnitude; 0 = off
    smear: bool = False  # add a learned fraction of the previous token's embedding to each
    init: Literal["normal", "kaiming"] = "normal"  # initialisation of new weights
    # Optimizer
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: Muon for the blocks' matrices, AdamW for the rest
    learning_rate: float = 6e-4  # AdamW's peak
    muon_learning_rate: float = 0.02  # Muon's peak; follows the same schedule
    weight_decay: float = 1e-1  # for matrices; biases and gains are not decayed
    beta1: float = 0.9  # decay rate of the gradient's mean
    beta2: float = 0.95  # decay rate of its square
    grad_clip: float = 1.0  # maximum gradient norm; 0 = no clipping
    lora_rank: int = 0  # train only two factors of this rank beside each matrix, without weight decay; 0 = everything
    lora_alpha: float = 16.0  # their product is added times lora_alpha / lora_rank
    # Learning from other models
    distill_from: str = ""  # their checkpoints or folders, separated by commas; they need the same tokenizer
    distill_weight: float = 0.5  # the share of the loss that compares with their probabilities; the text has the rest
    distill_temperature: float = 1.0  # their logits and the model's are divided by it in that comparison
    # Learning rate schedule
    decay_lr: bool = True  # False = constant learning_rate, without warmup
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"  # shape after warmup
    cooldown: float = 0.5  # final fraction of the run in which wsd (warmup, stable, decay) decays
    warmup_iters: int | None = None  # steps of linear warmup; None = a tenth of the run, at most 2000
    lr_decay_iters: int | None = None  # step at which min_lr is reached; None = the end of the run
    min_lr: float = 6e-5  # final learning rate, usually learning_rate / 10; never above learning_rate
    # Limits: the run ends at the first one reached
    max_iters: int = 600000  # steps
    max_tokens: float | None = None  # training tokens
    max_epochs: float | None = None  # passes over the training split
    max_minutes: float | None = None  # wall-clock minutes, counting evaluations and all resumes but not compilation
    compute: float | None = None  # parameters times training tokens, in units of 10^12
    # System
    backend: str = "auto"  # torch.distributed's: 'nccl' or 'gloo'; auto = nccl on CUDA where available
    device: str = "auto"  # 'cuda', 'cuda:1', 'mps', 'cpu'; auto = the best available
    dtype: DTypeName = "auto"  # auto = bfloat16 where the processor supports it natively
    compile: bool | Literal["auto"] = "auto"  # torch.compile; auto = on CUDA
    threads: int | Literal["auto"] = "auto"  # of a CPU; auto = OMP_NUM_THREADS, or the fastest in a trial of a second
    parallel: Literal["ddp", "fsdp"] = "ddp"  # each process holds the whole model, or a shard of it (FSDP2)
    checkpoint_activations: bool = False  # recompute activations in backward: less memory, a third more compute
    seed: int = 1337  # for weights, batches and dropout
    peak_tflops: float | None = None  # the device's dense peak, for MFU; None = look it up, on a CPU measure it


if __name__ == "__main__":
    read_early(TrainConfig, sys.argv[1:])  # --help and mistakes are answered before the slow imports

import torch

from system.device import memory_used, peak_flops_of, pick_device, prepare
from system.distributed import Ranks, full, is_loss_of_peer
from training import memory
from training.batches import Batches
from training.distill import load_teachers, make_objective
from training.evaluate import estimate_loss
from training.health import Health
from training.optim import learning_rate_share, set_rates
from training.outputs import Outputs
from training.run import Run
from training.signals import StopSignals
from training.start import start


def main(argv: list[str]) -> int:
    config, explicit = configure(TrainConfig, argv)
    with ExitStack() as held:  # releases the lock on out_dir however the run ends
        ranks = Ranks()
        device = pick_device(config.device, ranks.local_rank if ranks.under_torchrun else None)
        ranks.start(config.backend, device)
        prepare(device)
        run = start(config, explicit, ranks, device, held)
        status = train(run) if run else 0
        if status == 0:
            ranks.stop()
        return status


def train(run: Run) -> int:
    """Trains, evaluates and saves until a limit or a signal; returns the exit status."""
    config, ranks, device, dataset = run.config, run.ranks, run.device, run.dataset
    run.begin()
    autocast = torch.autocast(device.type, run.dtype) if run.dtype != torch.float32 else nullcontext()
    teachers = load_teachers(run)  # may be refused, so before the files of an earlier run are touched
    health = Health(run)
    outputs = Outputs(run, health)
    optimizer, scaler, parameters = run.optimizer, run.scaler, run.trained
    local_model = compiled(run) if run.compiles else run.model
    model = ranks.wrap(local_model, device)  # whose backward averages gradients over ranks; evaluation needs none
    objective = make_objective(run, model, teachers)  # the cross-entropy, or what distill_from makes of it
    ranks.say(
        f"{run.n_params / 1e6:.2f}M parameters on {device} in {str(run.dtype).removeprefix('torch.')}, "
        f"{ranks.world_size} process{'es' * (ranks.world_size > 1)}; {dataset.tokens('train'):,} training tokens, "
        f"{run.tokens_per_iter:,} a step; steps {run.iter_num:,} to {run.limit:,} ({run.ends_by})"
    )
    # a step of trimmed conversations computes less than flops_per_iter says
    peak_flops = None if run.trims else peak_flops_of(device, run.dtype, config.peak_tflops)
    flops_per_iter = run.model.flops_per_token(config.block_size) * run.tokens_per_iter
    stop, batches, has_room = StopSignals(not config.eval_only), Batches(run), True
    model.train()
    gc.collect()
    gc.freeze()  # what exists now stays to the end, so Python's collector need not scan it
    elapsed, stop_signal, interval_iters = run.time_before, 0, 0  # the same on all ranks
    try:
        warm_up(run, local_model, objective, batches, autocast)
        run.start_time = interval_start = time.perf_counter()
        while True:
            # Evaluate and save when due, and at the end
            iter_num = run.iter_num
            finished = iter_num >= run.limit or (config.max_minutes is not None and elapsed >= 60 * config.max_minutes)
            not_evaluated = run.progress["last_eval_iter"] != iter_num
            due = iter_num % config.eval_interval == 0 and not_evaluated
            if stop_signal or (finished and not due and run.saved_iter != iter_num and not config.eval_only):
                # before the final evaluation, which a longer run would not have made
                outputs.save("last.pt")
            if stop_signal:
                outputs.settle()
                name = signal.Signals(stop_signal).name
                ranks.say(f"stopped by {name} after {iter_num} steps; continue with --init_from=resume")
                return 128 + stop_signal
            if due or config.eval_only or (finished and not_evaluated):
                health.check()  # waits for the device, so that eval_start excludes training
                eval_start = time.perf_counter()
                losses = estimate_loss(local_model, run, autocast)
                record_evaluation(run, losses, outputs, time.perf_counter() - eval_start, due, finished)
                if config.eval_only:
                    return 0
                interval_start += time.perf_counter() - eval_start
            if finished:
                outputs.settle()
                break

            # One step: forward and backward over this process's share of the global batch
            share = learning_rate_share(config, iter_num, run.limit, elapsed)
            set_rates(optimizer, share, iter_num)
            if config.dropout:  # depends on seed, step and rank alone, so a resume repeats it
                torch.manual_seed(((config.seed * 1_000_003 + iter_num) * 65_537 + ranks.rank) % 2**63)
            loss_sum, valid = torch.zeros((), device=device), 0
            for micro_step in range(run.micro_steps):
                x, y, n = batches.next()
                ranks.reduce_gradients(model, wanted=micro_step == run.micro_steps - 1)  # sent once per step
                with autocast:
                    loss = objective(x, y)
                # the loss sum over the tokens each process has in a full batch; DDP averages the processes
                scaler.scale(loss * (n * ranks.world_size / run.tokens_per_iter)).backward()
                loss_sum += loss.detach() * n
                valid += n
            # one small message per step: valid targets, signals and failed writes of all ranks, rank 0's clock
            valid, interrupts, terminations, failures, elapsed = ranks.sum([
                valid, stop.signal == signal.SIGINT, stop.signal == signal.SIGTERM,
                outputs.failed, run.clock() if ranks.is_main else 0.0,
            ])  # fmt: skip
            if failures:
                outputs.settle()  # raises, on all ranks
            stop_signal = signal.SIGINT if interrupts else signal.SIGTERM if terminations else 0

            # Update
            scaler.unscale_(optimizer)
            if valid != run.tokens_per_iter:  # some targets are ignored: average over the rest
                for parameter in parameters:
                    parameter.grad *= run.tokens_per_iter / max(1, valid)
            grad_norm = full(torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters]))
            health.note(loss_sum, grad_norm)
            if config.grad_clip:
                torch.nn.utils.clip_grads_with_norm_(parameters, config.grad_clip, grad_norm)
            outputs.before_update()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            interval_iters += 1

            # Log: the only place where the host waits for the device
            if iter_num % config.log_interval == 0:
                health.check()
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
                    "tokens": tokens, "epochs": tokens / run.epoch_tokens,
                    "seconds": elapsed, "time_ms": dt * 1000, "data_wait_ms": wait * 1000,
                    "tokens_per_second": tokens_per_second, "mfu": mfu, "memory_mb": memory_used(device),
                })  # fmt: skip
            run.iter_num += 1
            is_due = config.save_interval and run.iter_num % config.save_interval == 0
            if is_due and run.iter_num % config.eval_interval:  # else the evaluation saves
                outputs.save("last.pt")
    except FloatingPointError as error:
        ranks.say(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError, MemoryError) as error:
        has_room = not is_out_of_memory(error)
        if has_room:
            status = report_failure(ranks, error)
            if status is None:
                raise
            return status
        # the rest is below: here the error's frames still hold the memory
        loss, is_alone = None, ranks.world_size == 1 and not teachers
        can_try = is_alone and isinstance(error, torch.OutOfMemoryError)
    finally:
        gc.unfreeze()
        stop.restore()
        batches.close()
        outputs.close()
    if not has_room:  # maybe on this rank alone, so no ValueError: only rank 0 prints those
        advice = memory.advise(config, run.model if can_try else None, optimizer, device, autocast)
        print(f"error: {advice}", file=sys.stderr, flush=True)
        return 2
    tokens = run.tokens_after(run.iter_num)
    ranks.say(
        f"done: {run.iter_num} steps, {tokens:,} tokens, best val loss {run.best_val_loss:.4f}, "
        f"{run.progress['seconds'] / 60:.1f} minutes; sample with: python sample.py --out_dir={run.out_dir}"
    )
    return 0


def compiled(run: Run) -> torch.nn.Module:
    run.ranks.say("compiling the model (takes a minute)")
    if run.config.optimizer == "muon" and run.device.type == "cuda":
        run.optimizer.orthogonalize = torch.compile(run.optimizer.orthogonalize, dynamic=False)
    if not run.fsdp:
        return torch.compile(run.model, dynamic=False)
    for block in run.model.transformer.h:  # block by block, between FSDP's hooks that gather and free weights
        block.forward = torch.compile(block.forward, dynamic=False)
    # and what follows them: uncompiled, the loss would hold all logits in float32
    run.model.hidden = torch.compiler.disable(run.model.hidden)
    run.model.forward = torch.compile(run.model.forward, dynamic=False)
    return run.model


def warm_up(run: Run, local_model: torch.nn.Module, objective, batches: Batches, autocast) -> None:
    """What happens once, before the clock starts: torch.compile makes the graphs of training and evaluation, which may
    take minutes; and DDP lays out its buckets anew after a first backward. Float sums over three or more ranks depend
    on that layout, so else the first step after a resume would differ from an uninterrupted run's."""
    settles = run.ranks.world_size > 2 and not run.fsdp
    if run.config.eval_only or run.iter_num >= run.limit or not (settles or run.compiles):
        return
    x, y, _ = batches.peek()
    with autocast:
        loss = objective(x, y)
    loss.backward()
    run.optimizer.zero_grad(set_to_none=True)
    if run.compiles:
        local_model.eval()
        with torch.no_grad(), autocast:
            local_model(x, y, return_logits=False)
        local_model.train()
        if run.config.optimizer == "muon":
            run.optimizer.try_shapes()


def record_evaluation(
    run: Run, losses: dict[str, float], outputs: Outputs, seconds: float, due: bool, finished: bool
) -> None:
    """Reports and records the losses of an evaluation, and saves the checkpoints due with it."""
    config, val_loss = run.config, losses["val"]
    n_bytes = run.dataset.bytes("val")  # None if the dataset does not say
    bits_per_byte = val_loss * run.dataset.tokens("val") / (math.log(2) * n_bytes) if n_bytes else None
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
        if wanted or due:  # in this order, so that the best is never lost
            outputs.save(*["ckpt.pt"] * wanted, *["last.pt"] * due)


def report_failure(ranks: Ranks, error: ValueError | RuntimeError) -> int | None:
    """Reports what ended this rank's loop alone, or the loss of another rank, and returns the exit status; None for an
    error to be raised: rank 0's own, one that rank 0 reports, or one that is no user's."""
    if os.environ.get("TRACEBACK") == "1":
        return None
    if isinstance(error, RuntimeError) and is_loss_of_peer(error):
        ranks.say(
            "error: another process of this run has ended or no longer responds: see its own message above or "
            f"torchrun's below; continue with --init_from=resume ({str(error).splitlines()[0][:200]})",
            file=sys.stderr,
        )
        time.sleep(2)  # torchrun reports the first process to exit as the cause: let the other one be first
        return 1
    if ranks.is_main or isinstance(error, RuntimeError | ReportedByRankZero):
        return None
    print(f"error (rank {ranks.rank}): {error}", file=sys.stderr, flush=True)  # at once: rank 0 does not know it
    return 2


if __name__ == "__main__":
    exit_on_error(main)
