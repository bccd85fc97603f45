#!/bin/bash
# Everything worth measuring on a GPU, one table after another, each below its commands.
#
#     scripts/gpu.sh                             # all tables: more than an hour
#     scripts/gpu.sh 124M "baby GPT"             # some of them
#     PEER=../nanoGPT scripts/gpu.sh 124M        # beside a checkout of nanoGPT
#
# Needs the datasets shakespeare_char, hongloumeng, cppcode and pycode (see the config files). PYTHON names the
# interpreter (default: python); JSON=1 adds the figures as JSON. A command that fails ends its table, the other tables
# still run, and the exit status is 2.

set -u
trap 'exit 130' INT TERM # the scripts catch Ctrl-C to save: here it ends all tables
[ -n "${PEER:-}" ] && { PEER=$(cd "$PEER" && pwd) || exit 2; }
cd "$(dirname "$0")/.." || exit 2
names=$(sed -n 's/^table "\(.*\)" &&$/\1/p' scripts/gpu.sh)
wanted=("$@")
failed=

for name in "$@"; do
    if ! grep -qxF -e "$name" <<<"$names"; then
        printf "error: no table '%s'; the tables are:\n%s\n" "$name" "$names" >&2
        exit 2
    fi
done

table() { # whether to make this table; prints its heading if so
    local name
    for name in "${wanted[@]:-$1}"; do
        if [ "$name" = "$1" ]; then
            table=$1
            printf '\n## %s\n' "$table"
            return
        fi
    done
    return 1
}

python() { # prints a command, then runs it
    printf '\n$ python%s\n\n' "$(printf ' %q' "$@")"
    if [ "$1" = bench.py ] && [ -n "${JSON:-}" ]; then
        set -- "$@" --json
    fi
    command "${PYTHON:-python}" "$@"
    local status=$?
    case $status in
    0) ;;
    130 | 143) exit $status ;;
    *)
        failed="${failed:+$failed; }$table"
        return 1
        ;;
    esac
}

table "profile of a step" &&
    python bench.py profile config/train_gpt2.py --batch_size=32 --gradient_accumulation_steps=1

table "124M" &&
    python bench.py train config/train_gpt2.py --batch_size=32 --gradient_accumulation_steps=1 --steps=40 \
        ${PEER:+"--peer=$PEER"}

table "124M with Muon" &&
    python bench.py train config/speed_gpt2.py --gradient_accumulation_steps=1 --steps=40

table "350M" &&
    python bench.py train config/train_gpt2.py --n_layer=24 --n_head=16 --n_embd=1024 --batch_size=16 \
        --gradient_accumulation_steps=1 --steps=40

table "baby GPT" &&
    python bench.py time_to_loss config/speed_shakespeare_char.py --target=1.47 --n_layer=6 --n_head=6 --n_embd=384 \
        --block_size=256 --batch_size=64 --dropout=0.2 --max_iters=800 --eval_interval=50 \
        --baseline --plain='--max_iters=5000 --eval_interval=250'

table "Python" &&
    python bench.py time_to_loss config/speed_pycode.py --target=0 --max_minutes=8 --eval_interval=100 \
        --baseline --plain=--max_minutes=8

table "generation" &&
    python bench.py generate --models 12x768 --batch 64 --device=cuda

table "红楼梦, deep" &&
    python train.py config/train_hongloumeng_deep.py --out_dir=out-gpu-hongloumeng &&
    python eval.py --out_dir=out-gpu-hongloumeng --baselines &&
    python sample.py --out_dir=out-gpu-hongloumeng --start=却说宝玉 --num_samples=2 --max_new_tokens=200

table "Python by BPE" &&
    python train.py config/speed_pycode.py --max_minutes=10 --out_dir=out-gpu-pycode &&
    python eval.py --out_dir=out-gpu-pycode --baselines &&
    python bench.py lines --out_dir=out-gpu-pycode &&
    python sample.py --out_dir=out-gpu-pycode '--start=import numpy as' --num_samples=3 --max_new_tokens=120

table "C++ by bytes" &&
    python train.py config/train_cppcode_bytes.py --max_minutes=10 --out_dir=out-gpu-cppcode &&
    python eval.py --out_dir=out-gpu-cppcode --baselines &&
    python bench.py lines --out_dir=out-gpu-cppcode &&
    python sample.py --out_dir=out-gpu-cppcode '--start=for (int i = ' --num_samples=3 --max_new_tokens=300

if [ -n "$failed" ]; then
    printf 'error: failed: %s (see the errors above)\n' "$failed" >&2
    exit 2
fi
