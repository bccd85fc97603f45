"""Tokenizers compared at the same cost of training."""

import inspect
import json
import math
import tempfile
from pathlib import Path

import torch

from benchmarks.report import parser, report
from benchmarks.runs import run_script, run_train
from configurator import configure
from data.dataset import open_dataset
from train import TrainConfig, make_model

VOCABULARIES = {  # name: the options of data/hongloumeng/prepare.py
    "byte": ["--tokenizer=byte"],
    "char": ["--tokenizer=char"],
    **{f"bpe-{k}k": ["--tokenizer=bpe", f"--vocab_size={1024 * k}"] for k in (2, 4, 8, 16)},
    "qwen2": ["--tokenizer=qwen2"],
    "qwen2-trimmed": ["--tokenizer=qwen2", "--trim"],
}


def tokenizers(argv: list[str]) -> None:
    """Which tokenizer for a Chinese novel? The same model at the same cost, in bits per byte of the held-out text.

    For each tokenizer: data/hongloumeng/prepare.py; train.py config/quickstart.py with 4 layers, 256 wide, context
    256, for as many steps as --tflop pays for, the head over its vocabulary included; eval.py on the whole validation
    split with the best checkpoint of five; a sample by sample.py. "seconds" are those of the steps alone. Other
    --key=value go to train.py.
    """
    made = parser("tokenizers", inspect.getdoc(tokenizers))
    made.add_argument("--input", type=Path, nargs="+", help="the text (default: 红楼梦, as prepare.py gets it)")
    made.add_argument("--qwen2", type=Path, help="Qwen2's tokenizer.json or its folder (default: as prepare.py)")
    made.add_argument("--only", nargs="+", choices=VOCABULARIES, default=list(VOCABULARIES), help="(default: all)")
    made.add_argument("--tflop", type=float, default=30, help="10^12 operations of training each (default: 30)")
    made.add_argument("--seed", type=int, default=1337, help="of training and samples (default: 1337)")
    made.add_argument("--prompt", default="\n", help="where the samples begin (default: a newline)")
    args, options = made.parse_known_args(argv)

    from tqdm import tqdm

    rows, samples = [], {}
    for name in tqdm(args.only, desc="tokenizers", disable=None):
        with tempfile.TemporaryDirectory() as folder:
            data, out = Path(folder, "data"), Path(folder, "out")
            file = [f"--tokenizer_file={args.qwen2}"] if args.qwen2 and "qwen2" in name else []
            run_script(
                "data/hongloumeng/prepare.py",
                *VOCABULARIES[name],
                *file,
                f"--out_dir={data}",
                *(["--input", *map(str, args.input)] if args.input else []),
            )
            dataset = open_dataset(data)
            row = train_for(args.tflop * 1e12, dataset, [*options, f"--seed={args.seed}"], out)
            result = json.loads(run_script("eval.py", f"--out_dir={out}").splitlines()[-1])
            rows.append({"tokenizer": name} | row | {"bits per byte": result["bits_per_byte"]})
            length = math.ceil(80 * 3 / row["bytes/token"])  # tokens of about 80 Chinese characters
            text = run_script(
                "sample.py",
                f"--out_dir={out}",
                f"--start={args.prompt}",
                "--num_samples=1",
                f"--max_new_tokens={length}",
                "--temperature=0.8",
                "--top_k=200",
                f"--seed={args.seed}",
                "--output=-",
            )
            samples[name] = json.loads(text.splitlines()[-1])["text"]
    report(f"tokenizers, {args.tflop:g} TFLOP each,", rows, args.json)
    for name, text in samples.items():
        print(f"\n{name}: {text}")


def train_for(flops: float, dataset, options: list[str], out_dir: Path) -> dict:
    """Trains a model on `dataset` for so many operations; what it cost. The best of five checkpoints is kept."""
    options = [
        str(Path(__file__).parents[1] / "config/quickstart.py"),
        "--n_layer=4",
        "--n_embd=256",
        "--block_size=256",
        "--max_minutes=None",
        "--eval_iters=4",
        "--always_save_checkpoint=False",
        *options,
        f"--dataset={dataset.folder}",
    ]
    config, explicit = configure(TrainConfig, options)
    model = make_model(config, explicit, None, dataset, torch.Generator(), "meta")
    tokens = config.gradient_accumulation_steps * config.batch_size * config.block_size
    steps = max(1, round(flops / (model.flops_per_token() * tokens)))
    records = run_train([*options, f"--max_iters={steps}", f"--eval_interval={math.ceil(steps / 5)}"], out_dir)
    evals = [record for record in records if record["kind"] == "eval"]
    n_tokens, n_bytes = (sum(split[key] for split in dataset.meta["splits"].values()) for key in ("tokens", "bytes"))
    embeddings = model.transformer.wte.weight.numel() * (1 if config.tie_weights else 2)
    return {
        "ids": dataset.vocab_size, "tokens": n_tokens, "bytes/token": n_bytes / n_tokens,
        "parameters in embeddings": embeddings, "% of all": 100 * embeddings / model.get_num_params(False),
        "steps": steps, "epochs": steps * tokens / dataset.tokens("train"),
        "seconds": evals[-1]["seconds"] - sum(record["eval_seconds"] for record in evals),
    }  # fmt: skip
