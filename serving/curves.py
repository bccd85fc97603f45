"""The numbers of a run's metrics.jsonl for a page that asks every few seconds, while the run may still go on."""

from pathlib import Path

from training.metrics import read_metrics

MOST_POINTS = 400  # of the training loss: means over as many spans of steps


class Curves:
    """of(): {"train": [[step, loss], ...], "eval": [[step, train loss, validation loss], ...], "last": the newest
    record of a step}. The file is read again when it has changed."""

    def __init__(self, out_dir: Path | None):
        self.path = None if out_dir is None else out_dir / "metrics.jsonl"
        self.stamp, self.found = None, {"train": [], "eval": [], "last": None}

    def of(self) -> dict:
        try:
            stat = self.path.stat() if self.path else None
            if stat and (stamp := (stat.st_mtime_ns, stat.st_size)) != self.stamp:
                self.found, self.stamp = summary(read_metrics(self.path)), stamp
        except (OSError, ValueError):  # moved away, or damaged: what was read before stays
            pass
        return self.found


def summary(records: list[dict]) -> dict:
    steps = [r for r in records if r.get("kind") == "train" and "loss" in r]
    span = max(1, -(-len(steps) // MOST_POINTS))
    train = []
    for first in range(0, len(steps), span):
        part = steps[first : first + span]
        train.append([part[-1]["iter"], sum(r["loss"] for r in part) / len(part)])
    evaluated = [[r["iter"], r.get("train_loss"), r.get("val_loss")] for r in records if r.get("kind") == "eval"]
    return {"train": train, "eval": evaluated, "last": steps[-1] if steps else None}
