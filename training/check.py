"""Which settings of train.py are valid, and which a resumed run may change. `config` is train.py's TrainConfig."""

import math
from dataclasses import fields, replace

from data.dataset import Dataset
from data.matching import has_ids_of
from model import GPTConfig
from system.distributed import Ranks
from system.quota import check_threads

MODEL_KEYS = [field.name for field in fields(GPTConfig) if field.name != "rope_scaling"]  # it comes with weights only
# of the machine or the command: a resumed run does not inherit these
MACHINE_KEYS = ["device", "compile", "backend", "threads", "init_from", "allow_changed", "out_dir", "eval_only"]
MACHINE_KEYS += ["print_params", "peak_tflops"]
DATA_KEYS = ("batch_size", "gradient_accumulation_steps", "seed", "sampling")  # with the dataset, what a step sees
FIXED_KEYS = ("optimizer", "lora_rank", "lora_alpha")  # what the optimizer's state belongs to
OTHER_TEXT = "ids stand for other text; use the dataset the model was trained on, or one with the same tokenizer"
LIMITS = (  # rule, test, keys
    ("must be at least 1", lambda value: value >= 1,
     "eval_interval log_interval eval_iters gradient_accumulation_steps batch_size keep_checkpoints"),
    ("must be finite and not negative", lambda value: 0 <= value < math.inf,
     "lora_rank max_iters warmup_iters save_interval weight_decay grad_clip min_lr"),
    ("must be positive and finite", lambda value: 0 < value < math.inf,
     "learning_rate muon_learning_rate max_tokens max_epochs max_minutes compute peak_tflops lr_decay_iters lora_alpha "
     "distill_temperature"),
    ("must be above 0 and at most 1: a fraction of the run", lambda value: 0 < value <= 1, "cooldown"),
    ("must be at least 0 and below 1", lambda value: 0 <= value < 1, "beta1 beta2"),
    ("must be from 0 to 1", lambda value: 0 <= value <= 1, "distill_weight"),
)  # fmt: skip


def validate(config, ranks: Ranks) -> None:
    """Raises ValueError with every setting that cannot work, in one line."""
    problems = [
        f"{key}={getattr(config, key)} {rule}"
        for rule, holds, keys in LIMITS
        for key in keys.split()
        if getattr(config, key) is not None and not holds(getattr(config, key))
    ]
    steps, processes = config.gradient_accumulation_steps, ranks.world_size
    if steps % processes:
        fitting = processes * math.ceil(steps / processes)
        problems.append(
            f"gradient_accumulation_steps={steps} must be a multiple of the {processes} processes: use {fitting}"
        )
    for key in allowed_changes(config) - {"dataset", *DATA_KEYS}:
        problems.append(f"allow_changed={key} is not possible: choose from dataset, {', '.join(DATA_KEYS)}")
    try:
        check_threads(config.threads)
    except ValueError as error:
        problems.append(str(error))
    if not -(2**62) < config.seed < 2**62:
        problems.append(f"seed={config.seed} must be within ±2^62")
    if config.lora_rank:
        needed = {"optimizer": "adamw", "parallel": "ddp", "checkpoint_format": "full"}
        others = [f"{key}={getattr(config, key)}" for key, value in needed.items() if getattr(config, key) != value]
        others += ["init_from=scratch"] * (config.init_from == "scratch")
        if others:
            problems.append(f"lora_rank={config.lora_rank} cannot be combined with {', '.join(others)}: leave one out")
    if problems:
        raise ValueError("; ".join(problems))


def allowed_changes(config) -> set[str]:
    return {key.strip() for key in config.allow_changed.split(",")} - {""}


def take_saved_config(config, explicit: set[str], state: dict) -> None:
    """Gives a resumed run the settings it had, except explicit ones and those of the machine."""
    own_keys = MACHINE_KEYS if "format" in state else (*MACHINE_KEYS, "dtype")  # nanoGPT's dtype is its machine's
    for key, value in state.get("config", {}).items():
        if hasattr(config, key) and key not in explicit and key not in own_keys:
            setattr(config, key, value)


def check_changes(config, explicit: set[str], state: dict, dataset: Dataset) -> list[str]:
    """What the explicit settings change in a resumed run, each as "key old -> new". Raises ValueError listing every
    change that is not allowed: another model or optimizer and, unless allow_changed names it, other data."""
    saved, known = {"lora_rank": 0, **state.get("config", {})}, state["model_args"].keys() & set(MODEL_KEYS)
    shape = GPTConfig(**{key: state["model_args"][key] for key in known})
    changed, fixed = {}, []
    for key in (field.name for field in fields(config) if field.name in explicit.difference(MACHINE_KEYS)):
        new = getattr(config, key)
        old = getattr(shape, key) if key in MODEL_KEYS else saved.get(key, new)
        is_fixed = reshapes(shape, key, new) if key in MODEL_KEYS else key in FIXED_KEYS and old != new
        if is_fixed or (old != new and (key not in MODEL_KEYS or key == "dropout")):
            changed[key] = f"{key} {old} -> {new}"
        if is_fixed:
            fixed.append(key)
    data = [key for key in DATA_KEYS if key in changed]
    if state.get("run", {}).get("fingerprint", dataset.fingerprint()) != dataset.fingerprint():
        again = " (prepared again since?)" if saved.get("dataset") == config.dataset else ""
        changed["dataset"] = f"dataset {saved.get('dataset')} -> {config.dataset}, with other tokens{again}"
        data.insert(0, "dataset")  # if only moved, it is the same data; nanoGPT's have no fingerprint
    other_text = ["dataset"] if "dataset" in data and not has_ids_of(dataset, state, config.vocab_size) else []
    data = [key for key in data if key not in other_text]
    refused = [key for key in data if key not in allowed_changes(config)]
    if fixed or other_text or refused:
        advice = ["leave that out" + (f", or if you mean it: --allow_changed={','.join(data)}" if refused else "")]
        advice += [f"this dataset's {OTHER_TEXT}"] * bool(other_text)
        if fixed:
            instead = "fine-tune (--init_from=PATH) or train from scratch in another out_dir"
            advice.append(f"the model and its optimizer cannot change: {instead}")
        listed = ", ".join(changed[key] for key in (*fixed, *other_text, *refused))
        raise ValueError(f"resuming would change {listed}: {'; '.join(advice)}")
    return list(changed.values())


def reshapes(shape: GPTConfig, key: str, value) -> bool:
    """Whether setting `key` to `value` changes the model `shape`. None and the value it stands for are the same."""
    resolved = {"n_kv_head": "kv_heads", "head_dim": "head_size", "mlp_hidden": "mlp_width"}.get(key, key)
    other = replace(shape, **{key: value})
    return key not in ("dropout", "init") and getattr(other, resolved) != getattr(shape, resolved)
