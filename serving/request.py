"""The fields of a request, read from JSON and checked one by one; what is wrong with one, in one line."""

import json
from collections.abc import Sequence
from typing import Any

from inference.sampling import Sampling

MAX_STOP_CHARS = 256
MAX_SEED = 2**62  # choice i uses seed + i, which must fit a generator's 64 bits


class RequestError(ValueError):
    """A request that is not served: the HTTP status, and what OpenAI's error object holds."""

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def to_json(self) -> dict:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Fields:
    """A JSON object. null counts as absent. RequestError: a value of the wrong type or out of range."""

    def __init__(self, body: bytes):
        try:
            self.values = json.loads(body, parse_constant=self.refuse_constant)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the body is not JSON in UTF-8: {error}".partition("\n")[0]) from None
        if not isinstance(self.values, dict):
            raise RequestError("the body must be a JSON object")

    @staticmethod
    def refuse_constant(name: str) -> None:
        raise ValueError(f"{name} is not a number of JSON")

    def get(self, name: str, kinds: type | tuple[type, ...], default: Any = None) -> Any:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, kinds) or isinstance(value, bool) and kinds is not bool:
            kinds = kinds if isinstance(kinds, tuple) else (kinds,)
            names = {str: "a string", bool: "true or false", list: "a list", dict: "an object", int: "an integer"}
            expected = " or ".join(names.get(kind, "a number") for kind in kinds)
            raise RequestError(f"{name} must be {expected}, not {shortened(value)}", param=name)
        return value

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        return self.ranged(name, self.get(name, int, default), low, high)

    def number(self, name: str, default: float | None, low: float, high: float) -> float | None:
        return self.ranged(name, self.get(name, (int, float), default), low, high)

    def ranged(self, name: str, value, low, high):
        if value is not None and not low <= value <= high:
            raise RequestError(f"{name} must be from {low} to {high}, not {shortened(value)}", param=name)
        return value

    def stops(self, most: int) -> list[str]:
        """`stop`: a string, or a list of up to `most`."""
        stops = self.get("stop", (str, list), [])
        stops = [stops] if isinstance(stops, str) else stops
        if not all(isinstance(stop, str) and len(stop) <= MAX_STOP_CHARS for stop in stops) or len(stops) > most:
            message = f"stop must be a string, or a list of up to {most}, of up to {MAX_STOP_CHARS} characters each"
            raise RequestError(message, param="stop")
        return [stop for stop in stops if stop]

    def sampling(self, vocab_size: int, **defaults) -> Sampling:
        """temperature, top_k, top_p, min_p, no_repeat_ngram, DRY's (llama.cpp's names), and repetition_penalty, which
        is llama.cpp's repeat_penalty. defaults: as Sampling's own."""
        made = Sampling(
            temperature=self.number("temperature", defaults.get("temperature", 1.0), 0, 100),
            top_k=max(0, self.integer("top_k", defaults.get("top_k", 0), -1, 2**31)) or None,
            top_p=self.number("top_p", defaults.get("top_p", 1.0), 0, 1),
            min_p=self.number("min_p", defaults.get("min_p", 0.0), 0, 1) or None,
            no_repeat_ngram=self.integer("no_repeat_ngram", defaults.get("no_repeat_ngram", 0), 0, 2**31),
            dry_multiplier=self.number("dry_multiplier", 0.0, 0, 100),
            dry_base=self.number("dry_base", 1.75, 1, 100),
            dry_allowed_length=self.integer("dry_allowed_length", 2, 1, 2**31),
            vocab_size=vocab_size,
            new_only=defaults.get("new_only", False),
        )
        penalty = self.number("repetition_penalty", 1.0, 0.01, 100)
        made.repetition_penalty = self.number("repeat_penalty", penalty, 0.01, 100)
        made.top_p = None if made.top_p == 1 else made.top_p  # a sort of all ids less
        try:
            made.validate()
        except ValueError as error:
            raise RequestError(str(error), param=str(error).partition("=")[0]) from None
        return made

    def penalties(self, vocab_size: int) -> dict:
        """presence_penalty, frequency_penalty and logit_bias, as a Row takes them."""
        bias = self.get("logit_bias", (dict, list), {})
        try:
            pairs = bias.items() if isinstance(bias, dict) else bias
            bias = {int(id): -1000.0 if value is False else float(value) for id, value in pairs}  # false: llama.cpp's
            if not all(0 <= id < vocab_size and -1000 <= value <= 1000 for id, value in bias.items()):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            message = f"logit_bias must map ids from 0 to {vocab_size - 1} to numbers"
            raise RequestError(message, param="logit_bias") from None
        return {
            "presence": self.number("presence_penalty", 0.0, -2, 2),
            "frequency": self.number("frequency_penalty", 0.0, -2, 2),
            "bias": bias,
        }

    def refuse(self, names: Sequence[str]) -> None:
        """RequestError for a field that would change the answer, but is not supported here."""
        for name in names:
            if self.values.get(name) not in (None, False, [], {}, "none", "auto", {"type": "text"}, ["text"]):
                raise RequestError(f"{name} is not supported by this server: leave it out", param=name)


def shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
