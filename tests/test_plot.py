"""plot.py: the losses of a run are drawn where they belong."""

import json

import pytest

import plot


def record(kind, iter_num, **losses):
    return {"kind": kind, "iter": iter_num, "tokens": iter_num * 100, "seconds": iter_num * 0.5, **losses}


def train(iter_num, loss):
    return record("train", iter_num, loss=loss)


def evaluation(iter_num, loss):
    return record("eval", iter_num, train_loss=loss - 0.1, val_loss=loss)


@pytest.fixture
def write(tmp_path):
    def write(name, records, tail=""):
        (tmp_path / name).mkdir(exist_ok=True)
        text = "".join(json.dumps(record) + "\n" for record in records) + tail
        (tmp_path / name / "metrics.jsonl").write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


RUN = [evaluation(0, 4.0), *(train(n, 4 - n / 10) for n in range(0, 20, 2)), evaluation(20, 2.5)]


@pytest.mark.parametrize("x, scale", [("iter", 1), ("tokens", 100), ("seconds", 0.5)])
def test_lines_hold_the_recorded_losses_and_runs_differ_in_colour(x, scale):
    axes = plot.draw({"a": RUN, "b": RUN[:-1]}, x).axes[0]
    drawn = [line.get_xydata().tolist() for line in axes.lines]
    losses = [[r["iter"] * scale, r["loss"]] for r in RUN if r["kind"] == "train"]
    assert drawn == [losses, [[0, 4.0], [20 * scale, 2.5]], losses, [[0, 4.0]]]
    colours = [line.get_color() for line in axes.lines]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["a train", "a val", "b train", "b val"]


def test_record_without_the_wanted_number_is_passed_over():
    without_tokens, without_loss = {"kind": "train", "iter": 0, "loss": 3.0}, record("eval", 1)
    records = [without_tokens, train(1, 2.5), without_loss]
    axes = plot.draw({"a": records}, "tokens").axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[100, 2.5]]]


def test_picture_is_written_where_the_printed_path_says(write, capsys, tmp_path):
    folder = write("a", RUN, tail='{"kind": "train", "it')  # the last line was cut short by a kill
    plot.main([folder])
    plot.main([f"--output={tmp_path / 'p.svg'}", folder, "--x=tokens"])
    png, svg = capsys.readouterr().out.splitlines()
    with open(png, "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    with open(svg, encoding="utf-8") as file:
        assert "<svg" in file.read()
    assert (tmp_path / "a" / "loss.png").samefile(png) and (tmp_path / "p.svg").samefile(svg)


def test_wrong_input_is_one_message_and_writes_no_picture(write, tmp_path):
    good, empty, bare = write("good", RUN), write("empty", []), write("bare", [{"kind": "train", "iter": 0}])
    short = write("short", [{"kind": "train", "iter": 0, "loss": 3.0}])
    for argv, message in [
        ([], "OUT_DIR"),
        ([str(tmp_path / "none")], "none: no metrics.jsonl"),
        ([empty], "empty: no metrics.jsonl, or no loss"),
        ([good, bare], "bare: no metrics.jsonl, or no loss"),
        ([good, short, "--x=tokens"], "short: .*'tokens'"),
        ([good, "--x=lr"], "iter, tokens, seconds"),
        ([good, f"--output={tmp_path / 'no' / 'p.png'}"], "no folder"),
        ([good, f"--output={tmp_path / 'p.xyz'}"], "xyz"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            plot.main(argv)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.png"))


def test_characters_that_a_font_lacks_come_from_the_next_that_is_installed(monkeypatch):
    from matplotlib import font_manager

    monkeypatch.setattr(font_manager, "get_font_names", lambda: ["SimHei", "Arial", "DejaVu Sans"])
    (axes,) = plot.draw({"out-红楼梦": RUN}, "iter").axes
    for text in axes.get_legend().get_texts():
        assert text.get_fontfamily() == ["DejaVu Sans", "SimHei"]
