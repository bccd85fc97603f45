"""Completion for scripts and editors: one JSON object per line in, one per line out."""

import json

from completion.completer import Completer, whole_suggestion

TYPES = {"prompt": str, "suffix": str, "max_bytes": int, "max_tokens": int, "min_confidence": (int, float)}
TYPE_NAMES = {str: "text", int: "a whole number", (int, float): "a number"}


def answer_request(completer: Completer, line: bytes, **defaults) -> dict:
    """{"completion", "confidence"} or {"error"}, with the request's "id" if it has one. defaults: options of
    Completer.suggest that the request may override."""
    request = None
    try:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            begin = line.strip()[:40].decode("utf-8", "replace")
            raise ValueError(f'the line is not JSON ({error}), expected {{"prompt": "..."}}, found: {begin}') from error
        check_request(request)
        options = defaults | {key: value for key, value in request.items() if key not in ("prompt", "id")}
        found = whole_suggestion(completer, request["prompt"], **options)
        answer = {"completion": found.text, "confidence": round(found.confidence, 4)}
    except Exception as error:  # the next request may still succeed
        answer = {"error": " ".join(str(error).split()) or type(error).__name__}
    return ({"id": request["id"]} if isinstance(request, dict) and "id" in request else {}) | answer


def check_request(request) -> None:
    if not isinstance(request, dict) or "prompt" not in request:
        raise ValueError('expected a JSON object with a "prompt"')
    for key, value in request.items():
        if key not in TYPES and key != "id":
            raise ValueError(f"unknown key {key!r}, known: {', '.join(TYPES)}, id")
        if key in TYPES and (not isinstance(value, TYPES[key]) or isinstance(value, bool)):
            raise ValueError(f"{key} is {value!r}, expected {TYPE_NAMES[TYPES[key]]}")
        if key.startswith("max_") and value < 1:
            raise ValueError(f"{key} is {value}, expected at least 1")
        if key == "min_confidence" and not 0 <= value <= 1:
            raise ValueError(f"{key} is {value}, expected a probability from 0 to 1")
