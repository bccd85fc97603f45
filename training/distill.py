"""Learning from other models: their probabilities are targets beside the ids of the text.

    python train.py config/x.py --distill_from=out-1,out-2,out-3

The loss becomes (1 - w) CE + w T^2 CE', with w = distill_weight and T = distill_temperature. CE is the usual one, CE'
the cross-entropy with the mean of the models' softmax(logits / T) (Hinton et al. 2015, arXiv:1503.02531). CE' is at
least the entropy of that mean, so the training loss printed does not compare with that of an ordinary run; evaluations
give the usual loss. Their forward passes take a third of a step each, and all logits of a micro-batch are in memory.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from checkpoints.build import build_model
from inference.load import check_same_ids, open_models
from inference.pack import pack
from model import GPT
from training.run import Run

Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # ids (B, T), targets (B, T) -> loss


def make_objective(run: Run, model: torch.nn.Module, teachers: list[GPT]) -> Objective:
    """The loss that training minimizes; without teachers the usual one. model: run.model as wrapped for training."""
    if not teachers:
        return lambda x, y: model(x, y, return_logits=False)[1]
    weight, temperature = run.config.distill_weight, run.config.distill_temperature

    def distill(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits, loss = model(x, y)
        soft = soft_cross_entropy(logits, mean_probabilities(teachers, x, temperature), y != -1, temperature)
        return (1 - weight) * loss + weight * temperature**2 * soft

    return distill


def load_teachers(run: Run) -> list[GPT]:
    """The models of distill_from on this rank's device, in the run's number format. Raises ValueError for one whose ids
    or context do not fit, or that lies in this run's own out_dir."""
    names, student = run.config.distill_from, run.model.config
    if not names or run.config.eval_only:
        return []
    sources, states = run.ranks.on_all(lambda: open_models(names, ""))
    out_dir = run.out_dir.resolve()
    if any(out_dir in (path, path.parent) for path in (Path(source).resolve() for source in sources)):
        raise ValueError(f"distill_from={names} names out_dir={run.out_dir}, where a resume would find the run itself")
    own = {"model_args": {"vocab_size": student.vocab_size}, "tokenizer": run.tokenizer_json}
    own["config"] = {"dataset": run.config.dataset}
    check_same_ids([own, *states], ["the run", *map(str, sources)])
    shortest = min(state["model_args"]["block_size"] for state in states)
    if shortest < run.config.block_size:
        problem = f"block_size={run.config.block_size}, but a model in distill_from={names} reads {shortest} at most"
        raise ValueError(f"{problem}: use --block_size={shortest}")
    teachers = [build_model(state, dropout=0.0).to(run.device, run.dtype).eval() for state in states]
    for teacher in teachers:
        pack(teacher)
    return teachers


@torch.no_grad()
def mean_probabilities(teachers: list[GPT], x: torch.Tensor, temperature: float) -> torch.Tensor:
    """x (B, T) -> the mean of their softmax(logits / temperature), (B, T, V) float32."""
    total = 0.0
    with torch.autocast(x.device.type, enabled=False):  # their weights have the run's format already
        for teacher in teachers:
            logits = teacher.logits(teacher.transformer.ln_f(teacher.hidden(x)))
            total = total + (logits.float() / temperature).softmax(-1)
    return total / len(teachers)


def soft_cross_entropy(
    logits: torch.Tensor, probabilities: torch.Tensor, valid: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean over the valid positions (B, T) of -sum(p log softmax(logits / temperature)), both (B, T, V)."""
    nats = -(probabilities * (logits.float() / temperature).log_softmax(-1)).sum(-1)
    return (nats * valid).sum() / valid.sum().clamp(min=1)
