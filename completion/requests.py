"""Requests for scripts and editors: one JSON object a line."""

import json
import sys
from collections.abc import Iterable

from completion.completer import Completer, complete


def serve(completer: Completer, config, lines: Iterable[bytes]) -> None:
    for line in lines:
        if line.strip():
            sys.stdout.write(json.dumps(answer(completer, config, line), ensure_ascii=False) + "\n")
            sys.stdout.flush()


def answer(completer: Completer, config, line: bytes) -> dict:
    """The answer to one line of --jsonl: completion and confidence, or error, and the request's id if it has one."""
    request = None
    try:
        request = parse(line)
        kinds = {"prompt": str, "suffix": str, "max_bytes": int, "max_tokens": int, "min_confidence": (int, float)}
        names = {str: "text", int: "a whole number", (int, float): "a number"}
        if not isinstance(request, dict) or "prompt" not in request:
            raise ValueError('a request is a JSON object with a "prompt"')
        options = {"max_bytes": config.max_bytes, "min_confidence": config.min_confidence}
        for key, value in request.items():
            if key not in kinds and key != "id":
                raise ValueError(f"unknown key {key!r}, known: {', '.join(kinds)}, id")
            if key in kinds and (not isinstance(value, kinds[key]) or isinstance(value, bool)):
                raise ValueError(f"{key} is {value!r}, expected {names[kinds[key]]}")
            if key.startswith("max_") and value < 1:
                raise ValueError(f"{key} is {value}, expected at least 1")
            if key == "min_confidence" and not 0 <= value <= 1:
                raise ValueError(f"{key} is {value}, expected a probability, from 0 to 1")
            if key not in ("prompt", "id"):
                options[key] = value
        found = complete(completer, request["prompt"], **options)
        reply = {"completion": found.text, "confidence": round(found.confidence, 4)}
    except Exception as error:  # whatever it is, the next request may be better
        reply = {"error": " ".join(str(error).split()) or type(error).__name__}
    return ({"id": request["id"]} if isinstance(request, dict) and "id" in request else {}) | reply


def parse(line: bytes):
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        begin = line.strip()[:40].decode("utf-8", "replace")
        raise ValueError(f'the line is not JSON ({error}), expected {{"prompt": "..."}}, found: {begin}') from error
