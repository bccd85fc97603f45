"""A prompt, and the text that follows it as tokens arrive: whole characters, up to a stop string or the end of text.

beginning = Beginning(tokenizer, "ROMEO:")             # as text and as ids
text = Continuation(tokenizer, beginning, number=0, stops=["\n\n"])
text.push(id, logprob)                                 # of each new token
text.text, text.finish                                 # the characters that are certain; why it ended, or None
"""

from collections.abc import Container, Sequence
from contextlib import suppress

import numpy as np
import torch

from data.tokenizer import EOT
from inference.healing import prefix_index


class Beginning:
    """A prompt as text and as ids.

    BPE joins white space with what follows it, so the tokens of white space at the end of a prompt are rarely those of
    a longer text. They are removed; `healed` is their text, with which the new tokens must begin ("token healing").
    inside: the prompt continues another text. bos: an id to put first (see inference.load.first_id_of).
    """

    def __init__(self, tokenizer, prompt: str, special="text", inside: bool = False, bos: int | None = None):
        self.prompt, self.healed = prompt, ""
        has_ids = prompt or bos is None
        ids = encode_prompt(tokenizer, prompt, special == "encode", inside) if has_ids else np.array([], np.int64)
        keep = len(ids)
        if prompt[-1:].isspace() and not tokenizer.lossy:  # such as WordPiece's: there are no tokens of white space
            for boundary, typed, _ in prefix_index(tokenizer).boundaries(ids):
                with suppress(UnicodeDecodeError):  # incomplete characters stay
                    if prompt.endswith(text := typed.decode("utf-8")):  # without a space that was put before it
                        self.healed, keep = text, boundary
        self.ids = torch.from_numpy(np.append([] if bos is None else [bos], ids[:keep]).astype(np.int64))

    @classmethod
    def of_ids(cls, ids: Sequence[int]) -> "Beginning":
        """A prompt given as ids, which may end inside a character. Its text stays empty."""
        self = cls.__new__(cls)
        self.prompt, self.healed, self.ids = "", "", torch.tensor(ids, dtype=torch.int64)
        return self

    def decoder(self, tokenizer):
        """What turns the ids that follow into text."""
        ids = self.ids.tolist()
        if self.prompt:
            return tokenizer.decoder(ids)
        decoder = tokenizer.decoder(ids[:-3])
        for id in ids[-3:]:  # a character has at most three bytes before its last
            decoder.push(id)
        return decoder


class Continuation:
    """The text after a prompt as it grows: tokens in, characters out, up to the end of text or a stop string.

    text: the characters that are certain: no incomplete ones, nor any that may begin a stop string. finish: the reason
    it ended, or None, set last. ends: ids that end it, by default the tokenizer's."""

    def __init__(self, tokenizer, beginning: Beginning, number: int, stops: list[str], ends: Container[int] = ()):
        self.beginning, self.number, self.stops = beginning, number, stops
        self.decoder, self.ends = beginning.decoder(tokenizer), ends or tokenizer.ends
        self.text, self.held, self.finish = "", "", None
        self.unseen = len(beginning.healed)  # characters of the prompt yet to be redrawn
        self.tokens: list[dict] = []

    def push(self, id: int, logprob: float | None, **more) -> None:
        """more: what else its record in `tokens` says."""
        if self.finish:
            return
        piece = self.decoder.push(id)
        piece, self.unseen = piece[self.unseen :], max(0, self.unseen - len(piece))
        self.tokens.append({"id": id, "text": piece, "logprob": logprob, **more})
        self.held += piece
        if self.stop():
            self.end("stop")
        elif id in self.ends:
            self.complete("end")
        else:
            sure = len(self.held) - max((overlap(self.held, stop) for stop in self.stops), default=0)
            self.text, self.held = self.text + self.held[:sure], self.held[sure:]

    def cut(self, length: int) -> None:
        """Ends the text after `length` characters, as a stop string would."""
        self.text, self.held = self.text[:length], ""
        self.end("stop")

    def stop(self) -> bool:
        """Cuts what is held before the first stop string, if it has one."""
        found = [at for at in map(self.held.find, self.stops) if at >= 0]
        self.held = self.held[: min(found, default=None)]
        return bool(found)

    def complete(self, finish: str) -> None:
        """Ends the text with all that the decoder has."""
        if not self.finish:
            self.held += self.decoder.finish()[self.unseen :]
            self.end("stop" if self.stop() else finish)

    def end(self, finish: str) -> None:
        if not self.finish:
            self.text, self.held = self.text + self.held, ""
            self.finish = finish

    @property
    def logprob(self) -> float:
        """The mean over its tokens, so that long texts are not penalised."""
        return sum(token["logprob"] for token in self.tokens) / max(1, len(self.tokens))


def encode_prompt(tokenizer, prompt: str, special: bool, inside: bool = False) -> np.ndarray:
    """Ids (n,), beginning with those that the tokenizer puts before every text. Without any, with the end-of-text id,
    which starts a new document, if the prompt is empty or, as in nanoGPT, starts with <|endoftext|>. special: typed
    special tokens become their ids. inside: only the prompt's own ids."""
    if inside:
        return tokenizer.encode(prompt, special=special, inside=True)
    if prompt.startswith(EOT) and tokenizer.eot is not None:
        return np.append(tokenizer.eot, tokenizer.encode_document(prompt.removeprefix(EOT), special=special))
    ids = tokenizer.encode_document(prompt, special=special)
    if len(ids):
        return ids
    if tokenizer.eot is None:
        raise ValueError("the prompt is empty, and the tokenizer has no end-of-text id to start from: give some text")
    return np.array([tokenizer.eot])


def overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a prefix of `stop`."""
    return next(n for n in range(min(len(text), len(stop)), -1, -1) if text.endswith(stop[:n]))
