"""llama.cpp's /completion and /infill, as far as editors' plug-ins (llama.vscode, llama.vim) and the page use them.

Field names are those of llama.cpp's tools/server/README.md. As there, t_max_predict_ms ends a text only once it has a
newline, and n_indent before a line that is indented less. What names its hardware or its cache is accepted and has no
effect: id_slot, cache_prompt (always on), t_max_prompt_ms, lora, and samplers, whose order here is fixed. A prompt that
is too long loses its beginning, and `truncated` says so.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from data.tokenizer import EOT
from inference.chat import room_for_prompt
from inference.continuation import Beginning, encode_prompt
from serving.engine import Row
from serving.reply import MAX_ROWS, Reply, Served, seeds
from serving.request import Fields, RequestError

STOP_TYPES = {"end": "eos", "stop": "word", "length": "limit"}


class LlamaCompletion(Reply):
    """/completion. A prompt is a text, or a list that mixes texts and ids."""

    def __init__(self, served: Served, fields: Fields):
        self.n_predict = fields.integer("n_predict", -1, -1, 2**31)
        self.limit = served.block_size if self.n_predict < 0 else self.n_predict
        self.n_probs = fields.integer("n_probs", 0, 0, 100)
        n, indent = fields.integer("n_cmpl", 1, 1, MAX_ROWS), fields.integer("n_indent", 0, 0, 1000)
        patience = fields.number("t_max_predict_ms", 0, -1, 1e9)
        self.options = {
            "stops": fields.stops(16),
            "scores": self.n_probs or None,
            "patience": patience / 1000 if patience > 0 else None,
            "cut": re.compile(rf"\n[ \t]{{0,{indent - 1}}}(?=[^\s])") if indent else None,
            **fields.penalties(served.text_ids),
        }
        self.truncated = False
        room = room_for_prompt(served.block_size, self.limit)
        beginning = self.begin(served, fields, room)
        room = served.room(beginning, self.limit)
        rows = []
        for number, seed in enumerate(seeds(fields, n)):
            sampling = self.sampling(served, fields, number)
            rows.append(Row(beginning, served.tokenizer, sampling, seed, room, **self.options))
        super().__init__(served, fields, rows)

    def sampling(self, served: Served, fields: Fields, number: int):
        defaults = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
        return fields.sampling(served.text_ids, **defaults)

    def begin(self, served: Served, fields: Fields, room: int) -> Beginning:
        prompt = fields.get("prompt", (str, list), "")
        parts = [prompt] if isinstance(prompt, str) else [part for part in prompt if part != ""] or [""]
        ids, last = [], Beginning.of_ids([])
        for number, part in enumerate(parts, 1):
            if not isinstance(part, str):
                ids += served.ids([part])
                continue
            part = self.end_of(part, served)
            if number == len(parts):  # the only one whose end may be inside a token
                last = Beginning(served.tokenizer, part, served.special, inside=bool(ids))
                ids += last.ids.tolist()
            else:
                ids += encode_prompt(served.tokenizer, part, served.special == "encode", inside=bool(ids)).tolist()
        beginning = Beginning.of_ids(ids)
        beginning.prompt, beginning.healed = last.prompt, last.healed
        return self.shortened(beginning, room, served.tokenizer.begin)

    def end_of(self, text: str, served: Served) -> str:
        spelled = served.tokenizer.special_tokens if served.special == "encode" else ()  # each of them is one token
        most = served.block_size * max(served.tokenizer.max_chars_per_token, *map(len, spelled), 0)
        self.truncated |= len(text) > most
        return text[-most:]

    def shortened(self, beginning: Beginning, room: int, first: Sequence[int]) -> Beginning:
        """first: ids that stay if it begins with them."""
        n = len(first) if beginning.ids[: len(first)].tolist() == list(first) else 0
        if len(beginning.ids) > room:
            beginning.ids, self.truncated = torch.cat((beginning.ids[:n], beginning.ids[n - room :])), True
        return beginning

    def record(self, i: int, text: str, tokens: list) -> dict:
        row = self.rows[i]
        record = {"index": i, "content": text, "tokens": [token["id"] for _, token in tokens], "id_slot": 0}
        record |= {"stop": False, "tokens_predicted": len(row.text.tokens), "tokens_evaluated": len(row.prompt)}
        if self.n_probs:
            record["completion_probabilities"] = [
                self.token(token["id"], token["logprob"], token["text"])
                | {"healed": token["healed"], "top_logprobs": [self.token(*pair) for pair in token["top"]]}
                for _, token in tokens
            ]
        return record

    def token(self, id: int, logprob: float, text: str | None = None) -> dict:
        """text: what the token adds to the content, less than its own characters where the prompt was healed."""
        spelled = self.served.piece(id) if text is None else text
        return {"id": id, "token": spelled, "bytes": list(self.served.bytes_of(id)), "logprob": logprob}

    def final(self, i: int, text: str, tokens: list, finish: str) -> dict:
        row = self.rows[i]
        asked, written = max(1e-6, row.first - row.started), max(1e-6, row.ended - row.first)
        n_asked, n_written = len(row.prompt) - row.reused, len(row.text.tokens)
        record = self.record(i, text, tokens) | {
            "stop": True,
            "model": self.served.name,
            "generation_settings": {
                "n_predict": self.n_predict,
                "seed": row.seed,
                "temperature": row.sampling.temperature,
                "top_k": row.sampling.top_k or 0,
                "top_p": 1.0 if row.sampling.top_p is None else row.sampling.top_p,
                "min_p": row.sampling.min_p or 0.0,
                "n_ctx": self.served.block_size,
            },
            "has_new_line": "\n" in row.text.text,
            "truncated": self.truncated,
            "stop_type": STOP_TYPES[finish],
            "stopping_word": "",
            "tokens_cached": row.reused,
            "timings": {
                "cache_n": row.reused,
                "prompt_n": n_asked,
                "prompt_ms": 1000 * asked,
                "prompt_per_token_ms": 1000 * asked / n_asked,
                "prompt_per_second": n_asked / asked,
                "predicted_n": n_written,
                "predicted_ms": 1000 * written,
                "predicted_per_token_ms": 1000 * written / max(1, n_written),
                "predicted_per_second": n_written / written,
            },
        }
        return self.chosen(record)

    def chosen(self, record: dict) -> dict:
        """What response_fields names, if it names any; a/b is field b of a."""
        asked = self.fields.get("response_fields", list, [])
        if not asked:
            return record
        found: dict[str, Any] = {}
        for name in asked:
            value: Any = record
            for key in str(name).split("/"):
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None:
                found[str(name)] = value
        return found

    def whole(self) -> dict | list:
        found = [self.final(i, *self.news(i)) for i in range(len(self.rows))]
        return found[0] if len(found) == 1 else found

    def first(self) -> Iterator[dict]:
        yield from ()

    def grown(self, i: int) -> Iterator[dict]:
        text, tokens, finish = self.news(i)
        if finish:
            yield self.final(i, text, tokens, finish)
        elif text or tokens:
            yield self.record(i, text, tokens)

    last = first


class Infilling(LlamaCompletion):
    """/infill: what belongs between input_prefix + prompt and input_suffix. A model that was not trained to fill in the
    middle continues the text before it, up to an empty line, or to the end of a line that has text behind the cursor.

    Without a temperature, the first of n_cmpl texts is the likeliest, and the others are drawn."""

    def sampling(self, served: Served, fields: Fields, number: int):
        made = super().sampling(served, fields, number)
        if fields.get("temperature", (int, float)) is None:
            made.temperature = 0.0 if number == 0 else 0.8
        if self.options.get("ends"):
            made.vocab_size = served.tokenizer.vocab_size
        return made

    def begin(self, served: Served, fields: Fields, room: int) -> Beginning:
        extra = fields.get("input_extra", list, [])
        if not all(isinstance(item, dict) and isinstance(item.get("text", ""), str) for item in extra):
            raise RequestError("input_extra must be a list of objects with a text", param="input_extra")
        before = [fields.get(name, str, "") for name in ("input_prefix", "prompt")]
        suffix = fields.get("input_suffix", str, "").replace("\r\n", "\n")
        prefix = "".join([*(item.get("text", "") for item in extra), *before]).replace("\r\n", "\n")
        if served.infill and suffix.strip():
            ids = served.infill(served.tokenizer, self.end_of(prefix, served), suffix, room)
            self.options["ends"] = served.ends_of_middle
            return Beginning.of_ids(ids)
        self.options["stops"] += ["\n"] if suffix.partition("\n")[0].strip() else ["\n\n"]
        start = EOT if served.tokenizer.eot is not None and served.bos is None and not served.tokenizer.begin else ""
        beginning = Beginning(served.tokenizer, start + self.end_of(prefix or "\n" * (not start), served))
        beginning = self.shortened(beginning, room - (served.bos is not None), served.tokenizer.begin)
        if served.bos is not None:
            beginning.ids = beginning.ids.new_tensor([served.bos, *beginning.ids.tolist()])
        return beginning


def props(served: Served, slots: int) -> dict:
    """/props."""
    return {
        "default_generation_settings": {"n_ctx": served.block_size},
        "total_slots": slots,
        "model_alias": served.name,
        "chat": served.chat is not None,
    }
