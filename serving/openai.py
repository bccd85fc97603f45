"""OpenAI's API as its clients use it: /v1/completions and /v1/chat/completions.

Extensions, named as in vLLM: top_k, min_p, repetition_penalty; as in llama.cpp: dry_multiplier, dry_base,
dry_allowed_length; as in sample.py: no_repeat_ngram. Log-probabilities are the model's own, before temperature and
filters. max_tokens beyond the context's room is cut to it; the text then ends with "length".
"""

from collections.abc import Iterator

from data.conversations import chat_prompt, check_messages, message_of
from inference.chat import NO_REPEAT_NGRAM, room_for_prompt, stops_of
from inference.continuation import Beginning, encode_prompt
from serving.engine import Row
from serving.reply import MAX_ROWS, Reply, Served, seeds
from serving.request import Fields, RequestError

FINISH = {"end": "stop", "stop": "stop", "length": "length"}  # ours -> theirs
NOT_SUPPORTED = "tools tool_choice functions function_call response_format modalities audio".split()


def check_model(served: Served, model: str) -> None:
    if model not in ("", served.name):
        message = f"the model {model[:80]!r} does not exist: this server has {served.name!r}"
        raise RequestError(message, status=404, param="model", code="model_not_found")


class Completion(Reply):
    """/v1/completions. suffix is for models trained to fill in the middle."""

    def __init__(self, served: Served, fields: Fields):
        check_model(served, fields.get("model", str, ""))
        fields.refuse(NOT_SUPPORTED)
        self.n = fields.integer("n", 1, 1, MAX_ROWS)
        self.best_of = max(self.n, fields.integer("best_of", self.n, 1, MAX_ROWS))
        self.logprobs, self.echo = fields.integer("logprobs", None, 0, 20), fields.get("echo", bool, False)
        limit = fields.integer("max_tokens", 16, 0 if self.echo else 1, 2**31)
        scores = 0 if self.best_of > self.n and self.logprobs is None else self.logprobs
        scores_prompt = self.echo and self.logprobs is not None
        self.prompts = prompts_of(fields)
        options = {"stops": fields.stops(4), "scores": scores, "scores_prompt": scores_prompt}
        options |= fields.penalties(served.text_ids)
        sampling, suffix = fields.sampling(served.text_ids), fields.get("suffix", str, "")
        if suffix:
            options["ends"], sampling.vocab_size = served.ends_of_middle, served.tokenizer.vocab_size
        if len(self.prompts) * self.best_of > MAX_ROWS:
            raise RequestError(f"prompts times n or best_of must be at most {MAX_ROWS}", param="n")
        rows = []
        for prompt in self.prompts:
            beginning = self.begin(served, prompt, scores_prompt, limit, suffix)
            room = served.room(beginning, limit)
            for seed in seeds(fields, self.best_of):
                rows.append(Row(beginning, served.tokenizer, sampling, seed, room, **options))
        super().__init__(served, fields, rows)
        if self.streams and (self.best_of > self.n or scores_prompt):
            raise RequestError("stream cannot be combined with best_of, or with both echo and logprobs", param="stream")

    def begin(self, served: Served, prompt, as_is: bool, limit: int, suffix: str) -> Beginning:
        """as_is: without healing the prompt's last token, so that its ids are those of its text."""
        if suffix:
            ids = None
            if served.infill and isinstance(prompt, str):
                ids = served.infill(served.tokenizer, prompt, suffix, room_for_prompt(served.block_size, limit))
            if not ids:
                message = "suffix needs a prompt of text, and a model trained to fill in the middle"
                raise RequestError(message, param="suffix")
            return Beginning.of_ids(ids)
        if isinstance(prompt, list):
            return Beginning.of_ids(served.ids(prompt))
        if as_is:
            return Beginning.of_ids(encode_prompt(served.tokenizer, prompt, served.special == "encode").tolist())
        return Beginning(served.tokenizer, prompt, served.special, bos=served.bos)

    def text_of(self, number: int) -> str:
        prompt = self.prompts[number]
        return prompt if isinstance(prompt, str) else self.served.tokenizer.decode(prompt)

    def body(self, choices: list[dict], **more) -> dict:
        return {
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.served.name,
            "choices": choices, **more,
        }  # fmt: skip

    def whole(self) -> dict:
        choices = []
        for number in range(len(self.prompts)):
            candidates = range(number * self.best_of, (number + 1) * self.best_of)
            if self.best_of > self.n:
                candidates = sorted(candidates, key=lambda i: -self.rows[i].text.logprob)[: self.n]
            for i in candidates:
                text, tokens, finish = self.news(i)
                before = self.text_of(number) if self.echo else ""
                choices.append(self.choice(i, len(choices), text, tokens, finish, before))
        return self.body(choices, usage=self.usage())

    def choice(self, i: int, index: int, text: str, tokens: list, finish: str | None, before: str = "") -> dict:
        logprobs = None
        if self.logprobs is not None:
            rows = self.prompt_tokens(self.rows[i]) if self.echo and not self.streams else []
            rows += [(len(before) + at, t["text"], t["logprob"], t["top"]) for at, t in tokens]
            logprobs = {
                "text_offset": [at for at, *_ in rows],
                "tokens": [text for _, text, *_ in rows],
                "token_logprobs": [logprob for *_, logprob, _ in rows],
                "top_logprobs": [self.spelled(top) for *_, top in rows],
            }
        return {"index": index, "text": before + text, "logprobs": logprobs, "finish_reason": FINISH.get(finish)}

    def spelled(self, top: list | None) -> dict[str, float] | None:
        """{text: log-probability}; of ids with the same text, the likeliest."""
        found = {}
        for id, logprob in top or []:
            found.setdefault(self.served.piece(id), logprob)
        return found if top is not None else None

    def prompt_tokens(self, row: Row) -> list[tuple]:
        decoder, offset, found = self.served.tokenizer.decoder(), 0, []
        for id, (logprob, top) in zip(row.prompt, [(None, None), *row.prompt_scores], strict=True):
            text = decoder.push(id)
            found.append((offset, text, logprob, top))
            offset += len(text)
        return found

    def first(self) -> Iterator[dict]:
        if self.echo:
            for i in range(len(self.rows)):
                yield self.body([self.choice(i, i, self.text_of(i // self.n), [], None)])

    def grown(self, i: int) -> Iterator[dict]:
        text, tokens, finish = self.news(i)
        if text or tokens or finish:
            yield self.body([self.choice(i, i, text, tokens, finish)])


def prompts_of(fields: Fields) -> list:
    """`prompt`: a text, a list of texts, ids, or a list of lists of ids -> a list of texts or lists of ids."""
    prompt = fields.get("prompt", (str, list), "")
    if isinstance(prompt, str) or prompt and all(type(id) is int for id in prompt):
        return [prompt]
    if not prompt or not all(type(item) is type(prompt[0]) and isinstance(item, str | list) for item in prompt):
        raise RequestError("prompt must be a string, a list of strings, ids, or a list of lists of ids", param="prompt")
    if len(prompt) > MAX_ROWS:
        raise RequestError(f"prompt has {len(prompt)} texts, at most {MAX_ROWS} are served together", param="prompt")
    return prompt


class ChatCompletion(Reply):
    """/v1/chat/completions. Turns that the context has no room for are left out, the oldest first."""

    prefix = "chatcmpl"

    def __init__(self, served: Served, fields: Fields):
        check_model(served, fields.get("model", str, ""))
        if served.chat is None:
            message = f"the model {served.name!r} was not trained on conversations: use /v1/completions"
            raise RequestError(message, code="no_chat_template")
        fields.refuse(NOT_SUPPORTED)
        n = fields.integer("n", 1, 1, MAX_ROWS)
        limit = fields.integer("max_completion_tokens", fields.integer("max_tokens", None, -1, 2**31), -1, 2**31)
        limit = served.block_size if limit in (None, -1) else max(1, limit)
        self.scored = fields.get("logprobs", bool, False)
        top = fields.integer("top_logprobs", 0, 0, 20)
        if top and not self.scored:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        messages = messages_of(fields)
        try:
            prompt = chat_prompt(messages, served.chat, room_for_prompt(served.block_size, limit))
        except ValueError as error:
            code = "context_length_exceeded" if "has room for" in str(error) else None
            raise RequestError(str(error), param="messages", code=code) from None
        beginning = Beginning.of_ids(prompt)
        options = {"stops": fields.stops(4), "ends": stops_of(served.chat), "scores": top if self.scored else None}
        options |= fields.penalties(served.chat.vocab_size)
        defaults = {"no_repeat_ngram": NO_REPEAT_NGRAM, "new_only": True}
        sampling, room = fields.sampling(served.chat.vocab_size, **defaults), served.room(beginning, limit)
        rows = [Row(beginning, served.chat, sampling, seed, room, **options) for seed in seeds(fields, n)]
        super().__init__(served, fields, rows)

    def body(self, choices: list[dict], **more) -> dict:
        kind = "chat.completion.chunk" if self.streams else "chat.completion"
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.served.name, "choices": choices,
            **more,
        }  # fmt: skip

    def choice(self, i: int, key: str, message: dict, tokens: list, finish: str | None) -> dict:
        logprobs = {"content": [self.token(t) for _, t in tokens], "refusal": None} if self.scored else None
        return {"index": i, key: message, "logprobs": logprobs, "finish_reason": FINISH.get(finish)}

    def token(self, token: dict) -> dict:
        def spelled(id, logprob, text=None):
            found = list(self.served.bytes_of(id))
            return {"token": self.served.piece(id) if text is None else text, "logprob": logprob, "bytes": found}

        own = spelled(token["id"], token["logprob"], token["text"])
        return own | {"top_logprobs": [spelled(*pair) for pair in token["top"]]}

    def whole(self) -> dict:
        choices = []
        for i in range(len(self.rows)):
            text, tokens, finish = self.news(i)
            message = {"role": "assistant", "content": text, "refusal": None}
            choices.append(self.choice(i, "message", message, tokens, finish))
        return self.body(choices, usage=self.usage())

    def first(self) -> Iterator[dict]:
        for i in range(len(self.rows)):
            yield self.body([self.choice(i, "delta", {"role": "assistant", "content": ""}, [], None)])

    def grown(self, i: int) -> Iterator[dict]:
        text, tokens, finish = self.news(i)
        if text or tokens or finish:
            yield self.body([self.choice(i, "delta", {"content": text} if text else {}, tokens, finish)])


def messages_of(fields: Fields) -> list[dict]:
    """The conversation, whose last turn is the user's."""
    messages = fields.get("messages", list)
    if not messages:
        raise RequestError("messages must be a list of at least one turn", param="messages")
    try:
        developer = {"developer": "system"}
        turns = [turn | {"role": developer.get(turn.get("role"), turn.get("role"))} for turn in messages]
        turns = [message_of(turn) for turn in turns]
        answer = {"role": "assistant", "content": "an answer"}  # in place of the model's too, which may have been empty
        check_messages([*(answer if turn["role"] == "assistant" else turn for turn in turns), answer])
    except (AttributeError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, ValueError) else "a turn is not an object with role and content"
        expected = "expected a system turn or none, then user and assistant in turn, the last one the user's"
        raise RequestError(f"messages: {reason}; {expected}", param="messages") from None
    return turns


def models(served: Served) -> dict:
    """/v1/models."""
    model = {"id": served.name, "object": "model", "created": served.created, "owned_by": "local"}
    return {"object": "list", "data": [model | {"max_model_len": served.block_size}]}
