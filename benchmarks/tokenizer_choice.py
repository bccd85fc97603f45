"""Which tokenizer for a Chinese novel? The same model at the same training cost, in bits per byte of held-out text.

For each tokenizer: data/hongloumeng/prepare.py; train.py config/quickstart.py with 4 layers of width 256, context 256,
for as many steps as --tflop pays for, the output head included; eval.py on the whole validation split with the best of
five checkpoints; a sample by sample.py. "seconds" are those of the steps alone. Any other --key=value goes to train.py.
"""

import json
import math
import tempfile
from pathlib import Path

import torch

from benchmarks.recipes import training_seconds
from benchmarks.report import parser, print_table
from benchmarks.runs import ROOT, as_options, model_of, run_script, run_train, settings_of
from data.dataset import Dataset, open_dataset

VOCABULARIES = {  # name: options of data/hongloumeng/prepare.py
    "byte": ["--tokenizer=byte"],
    "char": ["--tokenizer=char"],
    **{f"bpe-{k}k": ["--tokenizer=bpe", f"--vocab_size={1024 * k}"] for k in (2, 4, 8, 16)},
    "qwen2": ["--tokenizer=qwen2"],
    "qwen2-trimmed": ["--tokenizer=qwen2", "--trim"],
}
MODEL = {"n_layer": 4, "n_embd": 256, "block_size": 256}
RUN = {"max_minutes": None, "eval_iters": 4, "always_save_checkpoint": False}
BYTES_PER_SAMPLE = 80 * 3  # about 80 Chinese characters


def compare_tokenizers(argv: list[str]) -> None:
    made = parser("tokenizers", __doc__)
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
        words = [*VOCABULARIES[name], *(["--input", *map(str, args.input)] if args.input else [])]
        if args.qwen2 and "qwen2" in name:
            words.append(f"--tokenizer_file={args.qwen2}")
        with tempfile.TemporaryDirectory() as folder:
            data, out = Path(folder, "data"), Path(folder, "out")
            run_script("data/hongloumeng/prepare.py", f"--out_dir={data}", *words)
            row = train_at_cost(args.tflop * 1e12, open_dataset(data), [*options, f"--seed={args.seed}"], out)
            result = json.loads(run_script("eval.py", out_dir=out).splitlines()[-1])
            rows.append({"tokenizer": name, **row, "bits per byte": result["bits_per_byte"]})
            sampling = {"num_samples": 1, "temperature": 0.8, "top_k": 200, "seed": args.seed, "output": "-"}
            length = math.ceil(BYTES_PER_SAMPLE / row["bytes/token"])
            text = run_script("sample.py", out_dir=out, start=args.prompt, max_new_tokens=length, **sampling)
            samples[name] = json.loads(text.splitlines()[-1])["text"]
    print_table(f"tokenizers, {args.tflop:g} TFLOP each,", rows, args.json)
    for name, text in samples.items():
        print(f"\n{name}: {text}")


def train_at_cost(flops: float, dataset: Dataset, options: list[str], out_dir: Path) -> dict:
    """Trains a model on the dataset with this many operations. Keeps the best of five checkpoints in out_dir, and
    returns columns of the table."""
    fixed = as_options(MODEL | RUN)
    options = [str(ROOT / "config/quickstart.py"), *fixed, *options, f"--dataset={dataset.folder}"]
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
