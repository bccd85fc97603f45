"""What training recipes and tokenizers are worth: runs of train.py compared on the whole validation split."""

import itertools
import json
import math
import shlex
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.report import BY_TRAIN, note_errors, parser, print_table
from benchmarks.runs import ROOT, as_options, model_of, run_script, run_train, settings_of
from data.dataset import Dataset, open_dataset
from data.windows import eval_windows
from system.device import pick_device

PLAIN = {  # nanoGPT's recipe; shape and batch are the config's
    "optimizer": "adamw", "learning_rate": 1e-3, "min_lr": 1e-4, "warmup_iters": 100, "beta1": 0.9, "beta2": 0.99,
    "weight_decay": 0.1, "grad_clip": 1.0, "schedule": "cosine", "dropout": 0.0, "bias": False, "pos": "learned",
    "norm": "layernorm", "mlp": "gelu", "qk_norm": False, "softcap": 0.0, "smear": False, "tie_weights": True,
    "init": "normal", "max_minutes": None,
}  # fmt: skip
PARTS = "optimizer pos tie_weights init schedule dropout qk_norm norm mlp softcap smear".split()  # of a recipe
NO_LIMIT = 10**9  # steps
VOCABULARIES = {  # name: options of data/hongloumeng/prepare.py
    "byte": ["--tokenizer=byte"],
    "char": ["--tokenizer=char"],
    **{f"bpe-{k}k": ["--tokenizer=bpe", f"--vocab_size={1024 * k}"] for k in (2, 4, 8, 16)},
    "qwen2": ["--tokenizer=qwen2"],
    "qwen2-trimmed": ["--tokenizer=qwen2", "--trim"],
}
QUICKSTART = str(ROOT / "config/quickstart.py")
MODEL = {"n_layer": 4, "n_embd": 256, "block_size": 256}
RUN = {"max_minutes": None, "eval_iters": 4, "always_save_checkpoint": False}
BYTES_PER_SAMPLE = 80 * 3  # about 80 Chinese characters


def time_to_loss(argv: list[str]) -> None:
    """How long train.py takes to reach a loss on the whole validation split: with a config and, with --baseline, also
    with nanoGPT's recipe (AdamW, cosine, LayerNorm, GELU, learned positions, tied head; on a CPU float32).

    Any other --key=value goes to both runs, and the ones in --plain only to the plain recipe. Both evaluate every
    --eval_interval steps; "training s" excludes evaluation. The learning rate decays until --max_iters, so a run with
    fewer steps may reach the loss sooner.
    """
    made = parser("time_to_loss", time_to_loss.__doc__)
    made.add_argument("config", help="a config file")
    made.add_argument("--target", type=float, required=True, help="validation loss to reach, nats per token")
    made.add_argument("--baseline", action="store_true", help="run the plain recipe as well")
    made.add_argument("--plain", default="", help="settings for the plain recipe only: --plain='--key=value ...'")
    made.add_argument("--seeds", type=int, nargs="+", default=[1337], help="one run each (default: 1337)")
    args, options = made.parse_known_args(argv)
    runs = {Path(args.config).stem: [args.config, *options]}
    if args.baseline:
        settings, _ = settings_of([args.config, *options])
        plain = PLAIN | ({"dtype": "float32"} if pick_device(settings.device).type == "cpu" else {})
        runs = {"plain recipe": [args.config, *as_options(plain), *options, *shlex.split(args.plain)], **runs}
    runs = {name: with_whole_split(command) for name, command in runs.items()}
    rows = []
    for seed, (name, command) in itertools.product(args.seeds, runs.items()):
        with note_errors(f"{name} with seed {seed}"):
            evals = run_train([*command, f"--seed={seed}"], "eval")
            rows.append({"run": name, "seed": seed, **costs_of(evals, args.target)})
    print_table(f"time to a validation loss of {args.target:g}", rows, args.json, BY_TRAIN)


def costs_of(evals: list[dict], target: float) -> dict:
    """What a run with these evaluations cost to the first loss of at most `target`, and in all."""
    pairs = zip(evals, training_seconds(evals), strict=True)
    costs = [{"tokens": r["tokens"], "training s": s, "with evaluation s": r["seconds"]} for r, s in pairs]
    losses = [record["val_loss"] for record in evals]
    reached = [cost for cost, loss in zip(costs, losses, strict=True) if loss <= target]
    first = reached[0] if reached else dict.fromkeys(costs[0], "not reached")
    row = {f"to {target:g}: {key}": value for key, value in first.items()}
    row |= {f"in all: {key}": value for key, value in costs[-1].items()}
    return row | {"last val loss": losses[-1], "best": min(losses)}


def training_seconds(evals: list[dict]) -> list[float]:
    """Seconds of a run up to each evaluation, excluding evaluations."""
    evaluating = itertools.accumulate(record["eval_seconds"] for record in evals)
    return [record["seconds"] - seconds for record, seconds in zip(evals, evaluating, strict=True)]


def with_whole_split(command: list[str]) -> list[str]:
    """The options of train.py, with the eval_iters that read the whole validation split."""
    settings, _ = settings_of(command)
    windows = eval_windows(open_dataset(settings.dataset, settings.vocab_size), "val", settings.block_size)
    return [*command, f"--eval_iters={math.ceil(len(windows) / settings.batch_size)}"]


def ablation(argv: list[str]) -> None:
    """What each part of a recipe is worth: train.py with a config, then with one setting at a time changed back to
    nanoGPT's recipe. A run takes --minutes, including its first evaluation. Any other --key=value goes to all runs.
    AdamW in place of Muon also gets nanoGPT's learning rate, because the one used with Muon is too high for it."""
    made = parser("ablation", ablation.__doc__)
    made.add_argument("config", help="a config file")
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run each (default: 1 2 3)")
    made.add_argument("--minutes", type=float, default=0.25, help="length of a run (default: 0.25)")
    made.add_argument("--also", action="append", default=[], help="an extra row: --also='--key=value ...'")
    args, options = made.parse_known_args(argv)
    settings, explicit = settings_of([args.config])
    changes = {"as it is": []}
    for key in PARTS:
        if key in explicit and getattr(settings, key) != PLAIN[key]:
            keys = [key, "learning_rate", "min_lr", "warmup_iters"] if key == "optimizer" else [key]
            changes[f"{key}: {PLAIN[key]}"] = as_options({k: PLAIN[k] for k in keys})
    changes |= {text: shlex.split(text) for text in args.also}
    options += as_options({"max_minutes": args.minutes, "max_iters": NO_LIMIT, "eval_interval": NO_LIMIT})
    runs = {name: with_whole_split([args.config, *options, *change]) for name, change in changes.items()}
    ends = {name: [] for name in runs}
    # seed by seed, so that a slow period of the machine affects all rows alike
    for seed, (name, command) in itertools.product(args.seeds, runs.items()):
        with note_errors(f"{name} with seed {seed}"):
            ends[name].append(run_train([*command, f"--seed={seed}"], "eval")[-1])
    losses_of = {name: [record["val_loss"] for record in records] for name, records in ends.items() if records}
    base, rows = losses_of.get("as it is"), []
    for name, losses in losses_of.items():
        mean, steps = statistics.mean(losses), statistics.mean(record["iter"] for record in ends[name])
        row = {"with": name, "steps": steps, "validation loss": mean, "lowest": min(losses), "highest": max(losses)}
        rows.append(row | {"worse by": mean - statistics.mean(base) if base else None})
    print_table(f"ablation of {Path(args.config).stem}, {args.minutes:g} minutes a run", rows, args.json, BY_TRAIN)


def compare_tokenizers(argv: list[str]) -> None:
    """Which tokenizer for a Chinese novel? The same model at the same training cost, in bits per byte of held-out text.

    For each tokenizer: data/hongloumeng/prepare.py; train.py config/quickstart.py with 4 layers of width 256, context
    256, for as many steps as --tflop allows, output head included; eval.py on the whole validation split with the best
    of five checkpoints; a sample. "seconds" excludes evaluation. Any other --key=value goes to train.py.
    """
    made = parser("tokenizers", compare_tokenizers.__doc__)
    made.add_argument("--input", type=Path, nargs="+", help="the text (default: 红楼梦, as downloaded by prepare.py)")
    made.add_argument("--qwen2", type=Path, help="Qwen2's tokenizer.json or its folder (default: as prepare.py)")
    made.add_argument("--only", nargs="+", choices=VOCABULARIES, default=list(VOCABULARIES), help="(default: all)")
    made.add_argument("--tflop", type=float, default=30, help="10^12 operations of training per run (default: 30)")
    made.add_argument("--seed", type=int, default=1337, help="of training and sampling (default: 1337)")
    made.add_argument("--prompt", default="\n", help="start of the samples (default: a newline)")
    args, options = made.parse_known_args(argv)

    from tqdm import tqdm

    settings_of([QUICKSTART, *options])  # mistakes are refused before any work
    rows, samples = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name in tqdm(args.only, desc="datasets", disable=None):  # all before the training: one may need a download
            words = [*VOCABULARIES[name], *(["--input", *map(str, args.input)] if args.input else [])]
            if args.qwen2 and "qwen2" in name:
                words.append(f"--tokenizer_file={args.qwen2}")
            run_script("data/hongloumeng/prepare.py", f"--out_dir={Path(folder, name)}", *words)
        for name in tqdm(args.only, desc="tokenizers", disable=None):
            with note_errors(name), tempfile.TemporaryDirectory() as out:
                dataset = open_dataset(Path(folder, name))
                row = train_at_cost(args.tflop * 1e12, dataset, [*options, f"--seed={args.seed}"], Path(out))
                result = json.loads(run_script("eval.py", out_dir=out).splitlines()[-1])
                sampling = {"num_samples": 1, "temperature": 0.8, "top_k": 200, "seed": args.seed, "output": "-"}
                length = math.ceil(BYTES_PER_SAMPLE / row["bytes/token"])
                text = run_script("sample.py", out_dir=out, start=args.prompt, max_new_tokens=length, **sampling)
                samples[name] = json.loads(text.splitlines()[-1])["text"]
                rows.append({"tokenizer": name, **row, "bits per byte": result["bits_per_byte"]})
    print_table(f"tokenizers, {args.tflop:g} TFLOP each,", rows, args.json, BY_TRAIN)
    for name, text in samples.items():
        print(f"\n{name}: {text}")


def train_at_cost(flops: float, dataset: Dataset, options: list[str], out_dir: Path) -> dict:
    """Trains a model with this many operations, keeping the best of five checkpoints in out_dir; returns a row."""
    fixed = as_options(MODEL | RUN)
    options = [QUICKSTART, *fixed, *options, f"--dataset={dataset.folder}"]
    settings, _ = settings_of(options)
    with torch.device("meta"):
        model = model_of(settings)
    tokens = settings.gradient_accumulation_steps * settings.batch_size * settings.block_size
    steps = max(1, round(flops / (model.flops_per_token() * tokens)))
    evals = run_train([*options, f"--max_iters={steps}", f"--eval_interval={math.ceil(steps / 5)}"], "eval", out_dir)
    n_tokens, n_bytes = (sum(split[key] for split in dataset.meta["splits"].values()) for key in ("tokens", "bytes"))
    embeddings = model.transformer.wte.weight.numel() * (1 if settings.tie_weights else 2)
    row = {"ids": dataset.vocab_size, "tokens": n_tokens, "bytes/token": n_bytes / n_tokens}
    row |= {"parameters in embeddings": embeddings, "% of all": 100 * embeddings / model.get_num_params(False)}
    row |= {"steps": steps, "epochs": steps * tokens / dataset.tokens("train")}
    return row | {"seconds": training_seconds(evals)[-1]}
