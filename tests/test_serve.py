"""serve.py: a real server asked by OpenAI's client and over plain sockets, beside the plain generator."""

import asyncio
import contextlib
import copy
import http.client
import json
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openai
import pytest
import torch
from starlette.datastructures import Headers

import bench
import sample
import serve
import serving.engine
import serving.guard
from benchmarks.inference import SHAPES
from checkpoints.build import build_model, model_args_of
from checkpoints.file import save_checkpoint
from checkpoints.load import load_checkpoint
from data.conversations import chat_tokenizer
from data.dataset import DatasetWriter
from data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer
from evaluation.scoring import losses
from inference.chat import answer_all, chat_tokenizer_of, room_for_prompt
from inference.continuation import Beginning
from inference.ensemble import join_models
from inference.generate import stream
from inference.sampling import Sampling
from model import GPT, GPTConfig
from serving import app
from serving.app import policy, wake
from serving.engine import Engine, Full, Row
from serving.guard import check_access
from serving.reply import Served
from serving.request import RequestError

ROOT = Path(__file__).resolve().parents[1]
TEXT = "the cat sat on the mat. 宝玉笑道：“来了。”\ndef f(x):\n    return x + 1\n\n"
TOKENIZER = chat_tokenizer(BPETokenizer.train([TEXT * 9], 300))
BLOCK = 256
RECORDS = [{"kind": "train", "iter": i, "loss": 5 - i / 10} for i in range(9)]
RECORDS += [{"kind": "eval", "iter": 8, "train_loss": 4.0, "val_loss": 4.5}]


def save(folder: Path, tokenizer=TOKENIZER, config: dict | None = None, **shape) -> Path:
    """A model that is sure enough: where ids are almost equally likely, rounding may change their order."""
    shape = GPTConfig(**dict(block_size=BLOCK, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=2, n_embd=32) | shape)
    model, generator = GPT(shape), torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.35
    model.transformer.ln_f.weight.data *= 6
    state = {"model": model.state_dict(), "model_args": model_args_of(shape), "tokenizer": tokenizer.to_json()}
    state |= {"config": config} if config else {}
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / "ckpt.pt", state)
    return folder


@contextlib.contextmanager
def running(out_dir: Path, **options):
    """A server in this process, with a port of its own."""
    config = serve.ServeConfig(out_dir=str(out_dir), device="cpu", dtype="fp32", port=0, **options)
    serve.validate(config)
    served, _ = serve.load(config)
    # float64, so that no draw falls between two ids that rounding exchanges
    model = build_model(load_checkpoint(out_dir / "ckpt.pt")).eval().double()
    listener, started = serve.open_listener("127.0.0.1", 0), queue.Queue()

    async def run():
        loop = asyncio.get_running_loop()
        deliver = lambda replies: loop.call_soon_threadsafe(wake, replies)  # noqa: E731
        engine = Engine(model, served.tokenizer, config.max_batch, config.max_queue, deliver, served.ngram)
        server = serve.make_server(config, served, engine)
        started.put((server, engine))
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=asyncio.run, args=[run()])
    thread.start()
    server, engine = started.get()
    port = listener.getsockname()[1]
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="a-key-of-tests", max_retries=0, timeout=300)
    try:
        yield SimpleNamespace(
            port=port,
            client=client,
            engine=engine,
            served=served,
            model=model,
        )
    finally:
        client.close()
        server.should_exit = True
        thread.join()
        engine.stop()
        listener.close()


@pytest.fixture(scope="module")
def out_dir(tmp_path_factory) -> Path:
    folder = save(tmp_path_factory.mktemp("served") / "wise")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return folder


@pytest.fixture(scope="module")
def server(out_dir):
    with running(out_dir, max_batch=8) as found:
        yield found


def alone(server, prompt: str | list[int], seed: int, limit: int, stops=(), **sampling) -> str:
    """The text by inference.generate.stream, without a server, with no other row."""
    sampling = Sampling(**{"temperature": 1.0, **sampling}, vocab_size=TOKENIZER.vocab_size)
    ids = Beginning(TOKENIZER, prompt).ids if isinstance(prompt, str) else torch.tensor(prompt)
    decoder, text = TOKENIZER.decoder(ids.tolist()), ""
    for new, _ in stream(server.model, [ids], min(limit, BLOCK - len(ids)), sampling, [seeded(seed)]):
        text += decoder.push(int(new))
        if int(new) in TOKENIZER.ends:
            break
    text += decoder.finish()
    return text[: min((text.find(stop) for stop in stops if stop in text), default=None)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def post(server, path: str, body, **headers) -> tuple[int, dict | list]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    data = body if isinstance(body, bytes) else json.dumps(body)
    connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


def get(server, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", path)
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


# ---- the engine --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [dict(), dict(pos="rope", n_kv_head=1, smear=True)])
def test_rows_that_come_and_go_are_what_each_is_alone(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(serving.engine, "PROMPT_STEP", 16)  # most prompts take several steps, during which others leave
    model = build_model(load_checkpoint(save(tmp_path, **shape) / "ckpt.pt")).eval().double()
    over, rng, rows = queue.Queue(), random.Random(0), []
    engine = Engine(model, TOKENIZER, 5, 100, lambda jobs: [over.put(job) for job in jobs])
    for seed in range(24):
        prompt = TEXT * 3 if seed % 4 == 0 else "".join(rng.choices("the cat宝玉", k=rng.randint(1, 60)))
        penalty = rng.choice([1.0, 1.3])
        sampling = Sampling(rng.choice([0, 0.8, 1]), rng.choice([None, 5]), rng.choice([None, 0.9]), None, penalty)
        sampling.vocab_size = TOKENIZER.vocab_size
        sampling.dry_multiplier, sampling.no_repeat_ngram = [(0.8, 0), (0.0, 3), (0.0, 0)][seed % 3]
        beginning = Beginning(TOKENIZER, prompt + "x")
        limit = rng.randint(1, 100) if seed % 6 else BLOCK - len(beginning.ids)
        rows.append(Row(beginning, TOKENIZER, sampling, seed, limit, scores=0, scores_prompt=seed % 8 == 1))
        rows[-1].job = seed
        engine.submit(rows[-1:])
    assert sorted(over.get() for _ in rows) == list(range(24))
    engine.stop()
    for row in rows:
        expected = []
        for new, _ in stream(model, [row.text.beginning.ids], row.limit, row.sampling, [seeded(row.seed)]):
            expected.append(int(new))
            if expected[-1] in TOKENIZER.ends:
                break
        assert [token["id"] for token in row.text.tokens] == expected and row.error is None
    assert sum(row.reused for row in rows) > 150  # prompts that were not encoded again


def test_a_text_that_ends_before_others_is_not_encoded_again(tmp_path):
    model = build_model(load_checkpoint(save(tmp_path) / "ckpt.pt")).eval()
    over, rows = queue.Queue(), []
    engine = Engine(model, TOKENIZER, 4, 8, lambda jobs: [over.put(job) for job in jobs])

    def ask(*asked: tuple[str, int]) -> list[Row]:
        made = [Row(Beginning(TOKENIZER, text), TOKENIZER, Sampling(0), 0, limit) for text, limit in asked]
        for row in made:
            row.job = len(rows)
            rows.append(row)
        engine.submit(made)
        assert {over.get() for _ in made} == {row.job for row in made}
        return made

    first, _ = ask(("the cat sat " * 4, 2), ("宝玉" * 4, 40))  # the second takes the place of the first
    (again,) = ask((("the cat sat " * 4) + "on", 2))
    engine.stop()
    assert again.reused >= len(first.prompt) - 2  # but for ids that "on" may change


def test_conversations_that_take_turns_are_each_encoded_once(server):
    chats = [[{"role": "user", "content": word * 9}] for word in ("the ", "cat ", "宝玉")]
    asked = []
    for turn in range(2):
        for i, messages in enumerate(chats):
            found = post(server, "/v1/chat/completions", {"messages": messages, "max_tokens": 12, "seed": 1})[1]
            asked.append(found["usage"]["prompt_tokens"])
            if turn:  # all of the first prompt, at least, less the assistant's marker
                assert found["usage"]["prompt_tokens_details"]["cached_tokens"] >= asked[i] - 1
            answer = found["choices"][0]["message"]["content"].strip() or "a"
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "sat"}]


def test_a_cancelled_row_leaves_and_an_exception_ends_only_its_rows(tmp_path, monkeypatch, capsys):
    model = build_model(load_checkpoint(save(tmp_path, block_size=4096) / "ckpt.pt")).eval()
    news = queue.Queue()
    engine = Engine(model, TOKENIZER, 4, 0, lambda jobs: [news.put(job) for job in jobs])
    plain = serving.engine.sample_next

    def broken(logits, sampling, *more):
        if sampling.temperature == 0.5:
            raise RuntimeError("a defect")
        return plain(logits, sampling, *more)

    monkeypatch.setattr(serving.engine, "sample_next", broken)

    def row(job, limit, streams=False, **sampling):
        made = Row(Beginning(TOKENIZER, "the "), TOKENIZER, Sampling(**sampling), 1, limit, ends={-1}, streams=streams)
        made.job = job
        return made

    long, bad, good = row("long", 4000, True), row("bad", 50, temperature=0.5), row("good", 20)
    with pytest.raises(ValueError, match="5 texts are too many, at most 4 fit"):
        engine.submit([row("more", 1) for _ in range(5)])
    engine.submit([long])
    assert news.get() == "long"
    with pytest.raises(Full):
        engine.submit([row("more", 1) for _ in range(4)])
    engine.submit([bad, good])
    ended = {job for job in iter(news.get, "good")}
    assert good.error is None and len(good.text.tokens) == 20
    assert "bad" in ended and "a defect" in bad.error and "RuntimeError" in capsys.readouterr().err
    engine.cancel([long])
    last = row("last", 5)
    engine.submit([last])
    while news.get() != "last":
        pass
    assert not engine.rows and len(long.text.tokens) < 4000 and not long.done
    engine.stop()


def test_presence_and_frequency_penalties_and_biases_are_openais(server):
    ids, counts, model = Beginning(TOKENIZER, "the cat").ids.tolist(), torch.zeros(TOKENIZER.vocab_size), server.model
    bias = {"260": 3.0, "5": -100}
    expected, bias_of = list(ids), torch.zeros(len(counts))
    bias_of[260], bias_of[5] = 3.0, -100
    for _ in range(30):
        logits = model(torch.tensor([expected]))[0][0, -1, : len(counts)]
        expected.append(int((logits + bias_of - 0.7 * (counts > 0) - 0.9 * counts).argmax()))
        counts[expected[-1]] += 1
    options = {"presence_penalty": 0.7, "frequency_penalty": 0.9, "logit_bias": bias, "temperature": 0}
    status, found = post(server, "/completion", {"prompt": "the cat", "n_predict": 30, "ignore": 1, **options})
    assert status == 200 and found["tokens"] == expected[len(ids) :][: len(found["tokens"])] and found["tokens"]


def test_what_would_repeat_itself_is_penalised_as_the_generator_does(server):
    plain = alone(server, "the cat", 0, 60, temperature=0)
    for options in ({"dry_multiplier": 9.0, "dry_base": 2.0, "dry_allowed_length": 1}, {"no_repeat_ngram": 2}):
        expected = alone(server, "the cat", 0, 60, temperature=0, unpenalized=tuple(TOKENIZER.ends), **options)
        body = {"prompt": "the cat", "max_tokens": 60, "temperature": 0, **options}
        assert post(server, "/v1/completions", body)[1]["choices"][0]["text"] == expected != plain


# ---- OpenAI's client ---------------------------------------------------------------------------------------


def test_texts_of_a_model_of_lines_begin_with_the_id_that_began_its_windows(server, monkeypatch):
    monkeypatch.setattr(server.served, "bos", 7)
    found = server.client.completions.create(model="wise", prompt="the cat", max_tokens=20, temperature=0)
    assert found.choices[0].text == alone(server, [7, *TOKENIZER.encode("the cat").tolist()], 0, 20, temperature=0)


def test_completions_are_the_generators_texts(server):
    prompts, stops = ["the cat", "宝玉", "def f(x):"], ["sat", "玉"]
    found = server.client.completions.create(
        model="wise", prompt=prompts, max_tokens=60, seed=7, n=2, temperature=0.9, top_p=0.95, stop=stops
    )
    texts = [alone(server, p, 7 + i, 60, stops, temperature=0.9, top_p=0.95) for p in prompts for i in range(2)]
    assert [choice.text for choice in found.choices] == texts and len(set(texts)) == 6
    assert [choice.index for choice in found.choices] == list(range(6))
    assert found.usage.prompt_tokens == sum(len(Beginning(TOKENIZER, p).ids) for p in prompts)
    ids = TOKENIZER.encode("the cat sat").tolist()
    options = dict(max_tokens=20, temperature=0, echo=True, suffix="")  # as good as none
    by_ids = server.client.completions.create(model="wise", prompt=ids, **options)
    assert by_ids.choices[0].text == "the cat sat" + alone(server, ids, 0, 20, temperature=0)
    assert by_ids.choices[0].finish_reason in ("length", "stop")


def test_a_stream_is_the_same_text_and_shows_no_beginning_of_a_stop_string(server):
    whole = alone(server, "宝玉", 3, 100)
    stop = whole[40:43]
    options = dict(model="wise", prompt="宝玉", max_tokens=100, seed=3, stop=[stop])
    events = list(server.client.completions.create(stream=True, stream_options={"include_usage": True}, **options))
    text = "".join(event.choices[0].text for event in events[:-1])
    assert text == whole[: whole.index(stop)] == server.client.completions.create(**options).choices[0].text
    assert events[-2].choices[0].finish_reason == "stop" and events[-1].choices == []
    assert events[-1].usage.completion_tokens > 0 and len(events) > 3
    *tokens, last = server.client.completions.create(logprobs=0, **options).choices[0].logprobs.tokens
    before = "".join(
        tokens
    )  # what the stop string cut off is no token, and the last one is in the text at least in part
    assert text.startswith(before) and text != before and (before + last).startswith(text)


def test_choices_of_a_stream_that_end_one_after_another_each_end_once(server):
    options = dict(model="wise", prompt="the", n=8, max_tokens=60, seed=2, stop=["t", "j"])
    texts, ends = [""] * 8, [[] for _ in range(8)]
    for event in server.client.completions.create(stream=True, **options):
        (choice,) = event.choices
        assert not ends[choice.index]
        texts[choice.index] += choice.text
        ends[choice.index] += [choice.finish_reason] * (choice.finish_reason is not None)
    whole = server.client.completions.create(**options).choices
    assert texts == [choice.text for choice in whole] and len(set(map(len, texts))) > 1
    assert ends == [[choice.finish_reason] for choice in whole]


def test_logprobs_are_the_models_and_echo_scores_a_prompt(server):
    text = "the cat sat on 宝玉 the mat"
    ids = torch.tensor([TOKENIZER.encode_document(text).tolist()])
    with torch.no_grad():
        logits = server.model(ids, ids)[0][0, :, : TOKENIZER.vocab_size]
    expected = logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist()
    found = server.client.completions.create(model="wise", prompt=text, max_tokens=0, echo=True, logprobs=3).choices[0]
    assert found.text == text == "".join(found.logprobs.tokens) and found.logprobs.token_logprobs[0] is None
    assert found.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    best = logits[3].log_softmax(-1).topk(3).values.tolist()
    top = found.logprobs.top_logprobs[4].values()  # ids with the same text are one
    assert max(top) == pytest.approx(best[0], abs=1e-4) and min(top) >= best[-1] - 1e-4
    new = server.client.completions.create(model="wise", prompt=text, max_tokens=1, logprobs=0, temperature=0).choices[
        0
    ]
    assert new.logprobs.token_logprobs == pytest.approx([logits[-1].log_softmax(-1).max().item()], abs=1e-4)


def test_counts_of_the_training_text_are_mixed_in(tmp_path):
    """As in stream and in eval.py, in texts of several rows and in the scores of a prompt."""
    with DatasetWriter(tmp_path / "data", TOKENIZER, {"name": "test"}) as writer:
        for split in ("train", "val"):
            writer.write(split, TOKENIZER.encode(TEXT * 2), 2 * len(TEXT.encode()))
    folder = save(tmp_path / "wise", config={"dataset": str(tmp_path / "data")})
    with running(folder, ngram=0.6) as server:
        counts = server.served.ngram
        joined = SimpleNamespace(model=join_models([server.model], counts))
        prompts = [TOKENIZER.encode_document(text).tolist() for text in ("the cat", "宝玉", "def f(x):\n    return")]
        with ThreadPoolExecutor(3) as pool:
            ask = partial(server.client.completions.create, model="wise", max_tokens=30, seed=4)
            found = [reply.choices[0].text for reply in pool.map(lambda ids: ask(prompt=ids), prompts)]
        assert found == [alone(joined, ids, 4, 30) for ids in prompts]
        assert found != [alone(server, ids, 4, 30) for ids in prompts]
        ids = prompts[2]
        x, y = np.array([ids[:-1]]), np.array([ids[1:]])
        with torch.no_grad():
            nats = losses(server.model, torch.from_numpy(x), torch.from_numpy(y))[0]
        scores = ask(prompt=ids, max_tokens=0, echo=True, logprobs=0).choices[0].logprobs.token_logprobs
        assert scores[1:] == pytest.approx(-counts.mix_nats(nats, x, y), abs=1e-4)


def test_best_of_returns_the_likeliest(server):
    options = dict(model="wise", prompt="the", max_tokens=12, seed=5, logprobs=0)
    drawn = server.client.completions.create(n=6, **options).choices
    mean = {choice.text: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs) for choice in drawn}
    best = server.client.completions.create(best_of=6, n=2, **options).choices
    assert [choice.text for choice in best] == sorted(mean, key=mean.get, reverse=True)[:2]


def test_chat_answers_as_inference_does_streaming_or_not(server):
    asked = [{"role": "system", "content": "the"}, {"role": "user", "content": "cat 宝玉 <|user|>"}]
    chat = chat_tokenizer_of({"tokenizer": TOKENIZER.to_json(), "model_args": {"vocab_size": TOKENIZER.vocab_size}})
    prompt = serve_prompt(asked, chat)
    sampling = Sampling(0.7, 50, no_repeat_ngram=4, vocab_size=chat.vocab_size)
    expected = [text for text, *_ in answer_all(server.model, chat, [prompt] * 2, sampling, 40, [9, 10])]
    options = dict(model="wise", messages=asked, max_tokens=40, seed=9, n=2, temperature=0.7, extra_body={"top_k": 50})
    found = server.client.chat.completions.create(logprobs=True, top_logprobs=2, **options)
    assert [choice.message.content for choice in found.choices] == expected
    newer = options | {"messages": [asked[0] | {"role": "developer"}, asked[1]]}  # OpenAI's newer name for system
    assert [choice.message.content for choice in server.client.chat.completions.create(**newer).choices] == expected
    scores = found.choices[0].logprobs.content
    assert b"".join(bytes(t.bytes) for t in scores).decode("utf-8", "ignore") == expected[0].replace("\ufffd", "")
    assert all(len(token.top_logprobs) == 2 for token in scores)
    texts = ["", ""]
    for event in server.client.chat.completions.create(stream=True, **options):
        texts[event.choices[0].index] += event.choices[0].delta.content or ""
    assert texts == expected


def serve_prompt(messages, chat) -> list[int]:
    from data.conversations import chat_prompt

    return chat_prompt(copy.deepcopy(messages), chat, room_for_prompt(BLOCK, 40))


def test_prompts_that_end_with_white_space_are_healed_as_sample_py_does(server, out_dir, capsys):
    for prompt in ("the cat ", "def f(x):\n    "):
        options = [f"--out_dir={out_dir}", "--device=cpu", "--dtype=fp32", "--max_new_tokens=30", f"--start={prompt}"]
        sample.main([*options, "--seed=4", "--num_samples=2", "--top_k=0", "--temperature=1", "--output=-"])
        expected = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
        found = server.client.completions.create(model="wise", prompt=prompt, max_tokens=30, seed=4, n=2)
        assert [choice.text for choice in found.choices] == expected


def test_a_conversation_goes_on_after_an_empty_answer(server):
    """A model may end its turn at once, and a user may stop it before its first word."""
    turns = [("user", "the cat"), ("assistant", ""), ("user", "sat")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert post(server, "/v1/chat/completions", {"messages": messages, "max_tokens": 5})[0] == 200
    messages[0]["content"] = ""
    assert post(server, "/v1/chat/completions", {"messages": messages, "max_tokens": 5})[0] == 400


def test_a_server_has_the_name_it_is_given_and_talks_only_if_its_model_does(tmp_path):
    with running(save(tmp_path, ByteTokenizer(255)), name="sage") as server:
        assert [model.id for model in server.client.models.list()] == ["sage"]
        assert server.client.completions.create(model="sage", prompt="the", max_tokens=2).model == "sage"
        status, found = post(server, "/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})
        assert status == 400 and found["error"]["code"] == "no_chat_template"


def test_models_are_listed_and_others_unknown(server):
    assert [model.id for model in server.client.models.list()] == ["wise"]
    assert server.client.models.retrieve("wise").id == "wise"
    with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
        server.client.completions.create(model="other", prompt="the")


BAD = [
    ({"temperature": "hot"}, "temperature"), ({"temperature": -1}, "temperature"), ({"top_p": 2}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"), ({"n": True}, "n"), ({"n": 1000}, "n"),
    ({"stop": ["a"] * 5}, "stop"), ({"stop": [1]}, "stop"), ({"seed": 2**63}, "seed"), ({"logprobs": 99}, "logprobs"),
    ({"prompt": {"a": 1}}, "prompt"), ({"prompt": [1, "a"]}, "prompt"), ({"prompt": [10**6]}, "prompt"),
    ({"prompt": [-1]}, "prompt"), ({"prompt": "the " * 2000}, "prompt"), ({"stream": 1}, "stream"),
    ({"prompt": ["a"] * 999}, "prompt"), ({"suffix": "x"}, "suffix"), ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"), ({"tools": [{"type": "function"}]}, "tools"),
    ({"prompt": "\ud800"}, None), ({"best_of": 2, "stream": True}, "stream"), ({"repetition_penalty": 0}, None),
    ({"temperature": 1e-9}, "temperature"), ({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt"),
    ({"temperature": 10**400}, "temperature"), ({"seed": 10**400}, "seed"),
]  # fmt: skip


def test_what_is_wrong_with_a_request_is_said_in_openais_shape(server):
    for change, param in BAD:
        status, found = post(server, "/v1/completions", {"prompt": "the", **change})
        assert status == 400 and set(found["error"]) == {"message", "type", "param", "code"}, (change, found)
        assert found["error"]["type"] == "invalid_request_error" and "\n" not in found["error"]["message"]
        assert param is None or found["error"]["param"] == param, (change, found)
    with pytest.raises(openai.BadRequestError, match="context is 256") as refused:
        server.client.completions.create(model="wise", prompt="the cat " * 500)
    assert refused.value.code == "context_length_exceeded"
    for messages in (
        [],
        [{"role": "user"}],
        [{"role": "robot", "content": "a"}],
        ["a"],
        [{"role": "assistant", "content": "a"}],
    ):
        status, found = post(server, "/v1/chat/completions", {"messages": messages})
        assert status == 400 and found["error"]["param"] == "messages", messages
    alone_it_is_nothing = {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}
    status, found = post(server, "/v1/chat/completions", alone_it_is_nothing)
    assert status == 400 and found["error"]["param"] == "top_logprobs"
    for body in (b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"prompt": NaN}', b"1" * 10_000):
        status, found = post(server, "/v1/completions", body)
        assert status == 400 and "JSON" in found["error"]["message"]
    assert post(server, "/nowhere", {})[0] == 404 and get(server, "/v1/completions")[0] == 405


# ---- many at once, and the others --------------------------------------------------------------------------


def test_64_clients_at_once_each_get_the_text_of_their_seed(server):
    rng = random.Random(1)
    cases = []
    for seed in range(64):
        prompt = "".join(rng.choices(["the ", "cat", "宝玉", "\n", "def "], k=rng.randint(1, 20))) + "x"
        options = {"temperature": rng.choice([0.0, 0.7, 1.0]), "top_p": rng.choice([1.0, 0.9])}
        cases.append((prompt, seed, rng.randint(1, 60), options, seed % 2 == 0))
    start = threading.Barrier(64)

    def ask(case) -> str:
        prompt, seed, limit, options, streams = case
        start.wait()
        found = server.client.completions.create(
            model="wise", prompt=prompt, seed=seed, max_tokens=limit, stream=streams, **options
        )
        return "".join(event.choices[0].text for event in found) if streams else found.choices[0].text

    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(ask, cases))
    expected = [
        alone(server, prompt, seed, limit, **(options | {"top_p": None if options["top_p"] == 1 else options["top_p"]}))
        for prompt, seed, limit, options, _ in cases
    ]
    assert found == expected and len(set(found)) > 50


def connect(server, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=600)
    connection.sendall(data)
    return connection


def request(body: bytes, length: int | None = None) -> bytes:
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def test_malformed_huge_slow_and_vanishing_clients_hurt_nobody_else(server):
    expected = alone(server, "the cat", 4, 200)
    streaming = json.dumps({"prompt": "宝", "max_tokens": 250, "stream": True, "seed": 1}).encode()
    with contextlib.ExitStack() as stack:
        attacks = [b"GET / HT", b"\x16\x03\x01\x02\x00\x01", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: "]
        attacks += [request(b'{"prompt"', 5000), request(b"x" * 70_000, 10**9), request(streaming), b"A" * 200_000]
        for attack in attacks * 3:
            with contextlib.suppress(ConnectionError):
                stack.enter_context(connect(server, attack))
        for _ in range(5):  # gone in mid-stream, and before an answer
            one = connect(server, request(streaming))
            assert one.recv(20).startswith(b"HTTP/1.1 200")
            one.close()
            connect(server, request(streaming.replace(b"true", b"false"))).close()
        found = server.client.completions.create(model="wise", prompt="the cat", seed=4, max_tokens=200)
    assert found.choices[0].text == expected
    assert post(server, "/v1/completions", {"prompt": "x" * (2 << 20)})[0] == 413


def test_a_client_that_leaves_ends_its_text(server, monkeypatch):
    cancelled, plain = queue.Queue(), server.engine.cancel
    monkeypatch.setattr(server.engine, "cancel", lambda rows: (cancelled.put(rows), plain(rows)))
    slow = threading.Event()
    step = server.engine.step
    monkeypatch.setattr(server.engine, "step", lambda: (slow.wait(), step()))  # no text ends before the client leaves
    for streams in (True, False):
        body = json.dumps({"prompt": "the", "max_tokens": 200, "stream": streams, "seed": 2}).encode()
        connect(server, request(body)).close()
        (row,) = cancelled.get()
        assert row.cancelled and len(row.text.tokens) <= 1
    slow.set()
    assert server.client.completions.create(model="wise", prompt="the", seed=2, max_tokens=9).choices[0].text == alone(
        server, "the", 2, 9
    )
    assert not row.done and row not in server.engine.rows


def test_a_client_that_takes_nothing_is_dropped_and_its_text_ends(server, monkeypatch):
    monkeypatch.setattr(serving.guard, "SLOWEST_READER", 0.05)
    monkeypatch.setattr(serving.app, "sse", lambda event: bytes(1 << 26))  # more than sockets hold
    over, plain = queue.Queue(), server.engine.cancel
    monkeypatch.setattr(server.engine, "cancel", lambda rows: (plain(rows), over.put(rows)))
    body = json.dumps({"prompt": "the", "max_tokens": 250, "stream": True}).encode()
    with connect(server, request(body)) as connection, contextlib.suppress(ConnectionError):
        over.get(timeout=60)
        received = 0
        while data := connection.recv(1 << 20):
            received += len(data)
        assert received < 1 << 26


def test_null_is_as_good_as_absent(server):
    asked = {"messages": [{"role": "user", "content": "cat"}], "max_completion_tokens": None, "max_tokens": 2}
    assert post(server, "/v1/chat/completions", asked)[1]["usage"]["completion_tokens"] <= 2
    fields = serving.request.Fields(b'{"repeat_penalty": null, "repetition_penalty": 1.5}')
    assert fields.sampling(300).repetition_penalty == 1.5


def test_a_full_queue_is_refused_with_429_and_a_defect_with_500(server, monkeypatch):
    def full(rows):
        raise Full

    with monkeypatch.context() as patch:
        patch.setattr(server.engine, "submit", full)
        with pytest.raises(openai.RateLimitError, match="waiting") as refused:
            server.client.completions.create(model="wise", prompt="the")
        assert refused.value.response.headers["retry-after"] == "1"
    with monkeypatch.context() as patch:
        patch.setattr(server.engine, "sample", lambda *_: 1 / 0)
        with pytest.raises(openai.InternalServerError, match="ZeroDivisionError"):
            server.client.completions.create(model="wise", prompt="the")
        with pytest.raises(openai.APIError, match="ZeroDivisionError"):
            list(server.client.completions.create(model="wise", prompt="the", stream=True))
    with monkeypatch.context() as patch:
        patch.setattr(server.engine, "max_queue", 4)
        with pytest.raises(openai.BadRequestError, match=r"are too many, at most \d+ fit \(--max_queue"):
            server.client.completions.create(model="wise", prompt=["the"] * (5 + server.engine.max_batch))
    with monkeypatch.context() as patch:
        patch.setattr(server.engine, "submit", lambda rows: 1 / 0)
        status, answer = post(server, "/v1/completions", {"prompt": "the"})
        assert status == 500 and answer["error"]["type"] == "server_error"
    assert server.client.completions.create(model="wise", prompt="the", seed=1).choices[0].text == alone(
        server, "the", 1, 16
    )


@pytest.mark.parametrize("constant", ["SLOWEST_HEADERS", "SLOWEST_BODY"])
def test_headers_and_bodies_must_come_in_time(server, monkeypatch, constant):
    """In a connection's first request, and in a later one."""
    sent = b"GET /health HTTP/1.1\r\nX: " if constant == "SLOWEST_HEADERS" else request(b"{", 99)
    with connect(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") as used:
        reply = b""
        while not reply.endswith(b'{"status":"ok"}'):
            data = used.recv(1000)
            assert data, reply
            reply += data
        monkeypatch.setattr(serving.guard, constant, 0.05)
        with connect(server, b"") as new:
            for connection in (used, new):
                answer = b""  # as of a connection that is closed
                with contextlib.suppress(ConnectionError):
                    connection.sendall(sent)
                    answer = connection.recv(1000)
                assert answer == b"" if constant == "SLOWEST_HEADERS" else b" 408 " in answer


def test_a_stream_whose_client_is_gone_before_its_first_event_is_told_so():
    async def never():
        yield b"" if await asyncio.sleep(3600) else b""

    async def gone():
        return {"type": "http.disconnect"}

    ended = []
    for send in (lambda _: asyncio.sleep(0), lambda _: asyncio.sleep(3600)):
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
        asyncio.run(serving.app.Events(never(), lambda: ended.append(1))(scope, gone, send))
    assert len(ended) == 2


def test_a_bias_of_false_bans_an_id_as_llama_cpp_s_does(server):
    first = post(server, "/completion", {"prompt": "the", "n_predict": 1, "temperature": 0})[1]["tokens"]
    body = {"prompt": "the", "n_predict": 1, "temperature": 0, "logit_bias": [[first[0], False]]}
    assert post(server, "/completion", body)[1]["tokens"] not in ([], first)


# ---- who may ask -------------------------------------------------------------------------------------------


def access(headers: dict, key=None, method="POST", path="/v1/completions") -> int:
    given = {"host": "127.0.0.1:8000", "content-type": "application/json"} | headers
    try:
        check_access(method, path, Headers(given), key)
    except RequestError as error:
        return error.status
    return 200


def test_only_this_machines_names_and_pages_are_let_in():
    for host in ("localhost", "localhost:8000", "127.0.0.1", "[::1]:8000", "127.8.9.1:1"):
        assert access({"host": host}) == 200
    for host in (
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "[::1",
        "a@b",
    ):
        assert access({"host": host}) == 403, host
    assert access({"origin": "http://127.0.0.1:8000"}) == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:8001", "http://localhost:8000"):
        assert access({"origin": origin}) == 403
    assert access({"content-type": "text/plain"}) == access({"content-type": ""}) == 415
    assert access({"content-type": "application/json; charset=utf-8"}) == 200


def test_a_key_is_asked_for_everywhere_but_at_the_page_and_for_its_health(out_dir):
    key = "correct horse".replace(" ", "-")
    assert access({"host": "x.example", "authorization": f"Bearer {key}"}, key) == 200
    for given in ("", key, f"Basic {key}", "Bearer", "Bearer wrong", f"Bearer {key}é", f"Bearer {key[:-1]}"):
        assert access({"authorization": given}, key) == 401
    for path in ("/run", "/props", "/v1/models", "/infill"):
        assert access({}, key, method="GET", path=path) == 401
    assert access({}, key, method="GET", path="/") == access({}, key, method="GET", path="/health") == 200
    with running(out_dir, api_key="a-key-of-tests") as server:
        assert server.client.completions.create(model="wise", prompt="the", max_tokens=2).usage.completion_tokens
        with pytest.raises(openai.AuthenticationError):
            server.client.with_options(api_key="another").models.list()


def test_mistakes_are_refused_in_one_line_before_anything_is_read(out_dir, tmp_path, monkeypatch):
    monkeypatch.delenv("SERVE_API_KEY", raising=False)
    for options, message in {
        ("--host=0.0.0.0",): "needs a key", ("--host=192.168.1.5",): "needs a key", ("--port=70000",): "port",
        ("--host=0.0.0.0", "--api_key="): "8 characters", ("--api_key=FILE:nowhere",): "cannot be read",
        ("--max_batch=0",): "max_batch", ("--host=::",): "needs a key",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            serve.main([f"--out_dir={out_dir}", *options])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match="cannot listen"):
            serve.main([f"--out_dir={out_dir}", f"--port={taken.getsockname()[1]}"])
    (tmp_path / "key").write_text("from-a-file\n")
    assert serve.read_key(serve.ServeConfig(api_key=f"FILE:{tmp_path / 'key'}")) == "from-a-file"
    monkeypatch.setenv("SERVE_API_KEY", "from-the-environment")
    assert serve.read_key(serve.ServeConfig()) == "from-the-environment"


def test_replies_carry_no_cors_headers_and_the_page_runs_only_its_own_scripts(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/")
    response = connection.getresponse()
    page, headers = response.read(), response.headers
    connection.close()
    assert "unsafe" not in headers["content-security-policy"] and headers["content-security-policy"] == policy(page)
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert headers["x-content-type-options"] == "nosniff" and b"http://" not in page.replace(
        b"http://www.w3.org/2000/svg", b""
    )
    assert b"https://" not in page


# ---- editors, the run, the process -------------------------------------------------------------------------


def test_llama_vscodes_requests_get_what_it_reads(server):
    """The bodies that version 0.0.37 and later send, by its createRequestPayload."""
    body = {
        "id_slot": 0, "input_prefix": "def f(x):\n", "input_suffix": "\n\nprint(f(1))\n", "prompt": "    ret",
        "input_extra": [{"text": "def g(y):\n", "time": 1, "filename": "g.py"}], "n_predict": 24, "n_cmpl": 3,
        "top_k": 40, "top_p": 0.99, "stream": False, "samplers": ["top_k", "top_p", "infill"], "cache_prompt": True,
        "n_indent": 4, "t_max_prompt_ms": 500, "t_max_predict_ms": 2500,
    }  # fmt: skip
    status, found = post(server, "/infill", body)
    assert status == 200 and len(found) == 3
    assert found[0]["content"] == alone_infilling(server, "def g(y):\ndef f(x):\n    ret", 24)
    for name in ("prompt_n", "prompt_ms", "predicted_n", "predicted_ms", "prompt_per_second", "predicted_per_second"):
        assert found[0]["timings"][name] > 0
    assert {"tokens_cached", "truncated", "generation_settings"} <= found[0].keys()
    prepare = {"input_prefix": "", "input_suffix": "", "input_extra": body["input_extra"], "prompt": "", "n_predict": 0}
    prepare |= {"samplers": [], "cache_prompt": True, "t_max_prompt_ms": 500, "t_max_predict_ms": 1}
    assert post(server, "/infill", prepare)[1]["content"] == ""
    assert post(server, "/infill", body | {"input_prefix": "x = 1\n" * 5000})[1][0]["truncated"]


def alone_infilling(server, before: str, limit: int) -> str:
    ids = [TOKENIZER.eot, *TOKENIZER.encode(before).tolist()]
    return alone(server, ids, 0, limit, ["\n\n"], temperature=0)


def test_llama_vims_requests_get_the_fields_they_name(server):
    names = ["content", "timings/prompt_n", "timings/predicted_ms", "truncated", "tokens_cached", "nothing"]
    body = {"input_prefix": "a\n", "input_suffix": "b\n", "prompt": "", "n_predict": 8, "n_indent": 0, "stop": []}
    status, found = post(server, "/infill", body | {"response_fields": names, "stream": False, "lora": []})
    assert status == 200 and list(found) == names[:-1] and found["timings/predicted_ms"] > 0


def test_a_text_ends_before_a_line_that_is_indented_less(server):
    for seed in range(40):  # until one has such a line
        body = {"prompt": "def", "n_predict": 200, "seed": seed, "top_k": 0, "temperature": 1.2}
        body["logit_bias"] = [[int(TOKENIZER.encode("\n")[0]), 8.0]]  # a new line now and then
        lines = post(server, "/completion", body)[1]["content"].split("\n")
        ends = [i for i, line in enumerate(lines) if i and line.strip() and not line.startswith(" ")]
        if ends and ends[0] < len(lines) - 1:
            break
    shallow, body = ends[0], body | {"n_indent": 1}
    found = post(server, "/completion", body)[1]
    assert found["content"] == "\n".join(lines[:shallow]) and found["stop_type"] == "word"


def test_a_text_whose_time_is_over_ends_at_its_first_new_line(server):
    for seed in range(40):  # until one has text before and behind it
        body = {"prompt": "def", "n_predict": 100, "seed": seed, "top_k": 0, "temperature": 1.2}
        body["logit_bias"] = [[int(TOKENIZER.encode("\n")[0]), 8.0]]
        whole = post(server, "/completion", body)[1]["tokens"]
        first = next((i for i, id in enumerate(whole) if b"\n" in TOKENIZER.token_bytes(id)), 0)
        if 0 < first < len(whole) - 1:
            break
    found = post(server, "/completion", body | {"t_max_predict_ms": 1e-3})[1]  # over before the first token is drawn
    assert found["tokens"] == whole[: first + 1] and found["stop_type"] == "limit"


def test_a_prompt_of_texts_and_ids_continues_inside_a_character(server):
    """As the page sends it after a token was chosen that is a part of a character."""
    text = "宝"
    first, *rest = text.encode()
    table = {TOKENIZER.token_bytes(id): id for id in reversed(range(TOKENIZER.vocab_size))}
    bias = [[table[bytes([byte])], 50.0] for byte in rest[:1]]
    body = {
        "prompt": ["the ", table[bytes([first])]],
        "n_predict": 2,
        "temperature": 0,
        "n_probs": 2,
        "logit_bias": bias,
    }
    found = post(server, "/completion", body)[1]
    ids = [*TOKENIZER.encode("the ").tolist(), table[bytes([first])], *found["tokens"]]
    assert found["tokens"][0] == bias[0][0] and "the " + found["content"] == TOKENIZER.decode(ids).rstrip("\ufffd")
    assert [token["id"] for token in found["completion_probabilities"]] == found["tokens"]


def test_a_model_that_learned_to_fill_in_is_asked_to():
    asked = []

    def infill(tokenizer, prefix, suffix, room):
        asked.append((prefix, suffix, room))
        return [1, 2, 3]

    served = Served("x", ByteTokenizer(255), 64, infill=infill)
    fields = serving.request.Fields(
        json.dumps({"input_prefix": "a\n", "prompt": "b", "input_suffix": "c", "n_predict": 8}).encode()
    )
    reply = serving.app.Infilling(served, fields)
    assert asked == [("a\nb", "c", 56)] and reply.rows[0].prompt == [1, 2, 3]
    fields = serving.request.Fields(json.dumps({"prompt": "a", "suffix": "b", "max_tokens": 8}).encode())
    reply = serving.app.Completion(served, fields)
    assert asked[1:] == [("a", "b", 56)] and reply.rows[0].prompt == [1, 2, 3]


def test_a_shortened_prompt_keeps_what_begins_every_text():
    tokenizer = ByteTokenizer(255)
    tokenizer.begin = (255,)
    served = Served("x", tokenizer, 64)
    for kind, body in (("LlamaCompletion", {"prompt": "a" * 999}), ("Infilling", {"input_prefix": "a" * 999})):
        reply = getattr(serving.app, kind)(served, serving.request.Fields(json.dumps(body | {"n_predict": 8}).encode()))
        assert reply.rows[0].prompt == [255] + [ord("a")] * 55 and reply.truncated


def test_a_character_that_the_tokenizer_lacks_does_no_harm_outside_the_context():
    served = Served("x", CharTokenizer("ab", eot=True), 64, special="encode")
    body = {"prompt": "Q" + "ab" * 999, "input_prefix": "Q" + "ab" * 999, "input_suffix": "", "n_predict": 8}
    for kind in ("LlamaCompletion", "Infilling"):
        reply = getattr(serving.app, kind)(served, serving.request.Fields(json.dumps(body).encode()))
        assert len(reply.rows[0].prompt) == 56 and reply.truncated


def test_a_runs_losses_are_served_as_they_grow(out_dir, tmp_path):
    folder = shutil.copytree(out_dir, tmp_path / "growing")
    with running(folder) as server:
        found = json.loads(get(server, "/run")[1])
        assert found["train"] == [[r["iter"], pytest.approx(r["loss"])] for r in RECORDS[:9]]
        assert found["eval"] == [[8, 4.0, 4.5]] and found["last"]["iter"] == 8
        with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": "train", "iter": 9, "loss": 1.0}) + '\n{"kind": "tra')
        assert json.loads(get(server, "/run")[1])["last"] == {"kind": "train", "iter": 9, "loss": 1.0}


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_sigterm_ends_the_process_and_its_streams(tmp_path):
    out_dir = save(tmp_path / "long", block_size=1 << 14)
    command = [sys.executable, "serve.py", f"--out_dir={out_dir}", "--port=0", "--device=cpu", "--max_batch=2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    try:
        line = process.stdout.readline()
        assert line.startswith("long at http://127.0.0.1:"), process.stderr.read()
        server = SimpleNamespace(port=int(line.split(":")[2].split()[0]))
        body = json.dumps({"prompt": "the", "max_tokens": 16000, "stream": True, "logit_bias": {TOKENIZER.eot: -100}})
        with connect(server, request(body.encode())) as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            process.send_signal(signal.SIGTERM)
            while connection.recv(1 << 16):
                pass
        assert process.wait() == -signal.SIGTERM and "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def test_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else True)
    with pytest.raises(ValueError, match="serve.py needs uvicorn: pip install"):
        serve.validate(serve.ServeConfig())


def test_the_oracle_tells_texts_apart(server):
    assert alone(server, "the", 1, 30) != alone(server, "the", 2, 30)


def test_the_benchmark_gets_the_tokens_that_it_counts(capsys, monkeypatch):
    monkeypatch.setitem(SHAPES, "6x384", {"vocab_size": 256, "n_layer": 1, "n_head": 2, "n_embd": 16})
    bench.main(["serve", "--clients", "2", "--tokens=3", "--prompt=4", "--requests=2", "--device=cpu", "--json"])
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert row["clients"] == 2 and row["times generator"] == row["server tokens/s"] / row["generator tokens/s"]
    assert row["first token ms"] > 0


def test_a_prompt_without_an_answer_may_fill_the_context(server):
    """As llama.vim's requests that only fill the cache; longer ones lose their beginning."""
    ids = TOKENIZER.encode("the cat " * BLOCK)[:BLOCK].tolist()
    for prompt in ("the cat " * BLOCK, ids):
        status, found = post(server, "/completion", {"prompt": prompt, "n_predict": 0})
        assert status == 200 and found["content"] == "" and found["tokens_evaluated"] == BLOCK
    scored = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}
    status, found = post(server, "/v1/completions", scored)
    assert status == 200 and len(found["choices"][0]["logprobs"]["token_logprobs"]) == BLOCK
    assert post(server, "/v1/completions", scored | {"max_tokens": 1})[0] == 400


def test_a_page_with_crlf_has_the_policy_of_one_with_lf(server, tmp_path, monkeypatch):
    """Browsers hash scripts after line ends have become LF; git on Windows may write CRLF."""
    crlf = tmp_path / "page.html"
    crlf.write_bytes(app.PAGE.read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.setattr(app, "PAGE", crlf)
    found = app.Server(server.served, server.engine, None).page
    assert b"\r" in crlf.read_bytes() and b"\r" not in found and found == get(server, "/")[1]


def test_a_shorter_context_is_served_where_it_was_asked_for(out_dir):
    served, model = serve.load(serve.ServeConfig(out_dir=str(out_dir), device="cpu", block_size=16))
    assert served.block_size == model.config.block_size == 16


def test_one_core_is_left_to_what_answers_requests(out_dir, monkeypatch):
    def in_another_thread() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    before = torch.get_num_threads()
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        for threads, there_are, expected in [("auto", 4, 3), ("auto", 1, 1), (2, 4, 2)]:
            torch.set_num_threads(there_are)
            serve.load(serve.ServeConfig(out_dir=str(out_dir), device="cpu", threads=threads))
            assert in_another_thread() == expected
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        torch.set_num_threads(4)
        serve.load(serve.ServeConfig(out_dir=str(out_dir), device="cpu"))
        assert in_another_thread() == 4
    finally:
        torch.set_num_threads(before)
