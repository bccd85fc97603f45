"""bench.py: what the benchmarks say besides times."""

import json

import pytest

import bench


def test_tokenizers_are_compared_at_the_same_cost(tmp_path, capsys):
    text = tmp_path / "novel.txt"
    text.write_text("".join(f"第{i}回 宝玉道：“林妹妹{i * i}。”\n" for i in range(3000)), encoding="utf-8")
    bench.main(["tokenizers", f"--input={text}", "--only", "byte", "char", "--tflop=0.001", "--json", "--device=cpu",
                "--n_layer=1", "--n_head=2", "--n_embd=32", "--block_size=32", "--batch_size=16"])
    out = capsys.readouterr().out
    rows = {row["tokenizer"]: row for row in json.loads(next(x for x in out.splitlines() if x[0:1] == "{"))["rows"]}
    for name, ids in (("byte", 256), ("char", len(set(text.read_text(encoding="utf-8"))))):
        row = rows[name]
        flops = 6 * (12 * 32**2 + 32 * ids) + 12 * 32 * 32  # a token: matrices and head, attention
        assert row["ids"] == ids and row["parameters in embeddings"] == 32 * ids
        assert abs(row["steps"] * 16 * 32 * flops / 1e9 - 1) < 0.5 / (row["steps"] - 1)  # to the nearest step
        assert row["tokens"] * row["bytes/token"] == pytest.approx(text.stat().st_size)
        assert 0 < row["bits per byte"] < 8 and f"\n{name}: " in out
