"""A running SGLang server, as the commands ask it. Whatever it does not answer is one line."""

from typing import Any

import requests

from laprox_sglang.options.values import shown
from laprox_tools import CommandError

DETOKENIZED_AT_ONCE = 4096


class ServerClient:
    """
    Args:
        url: where it listens; ``http://`` may be left out.
        key: its ``--api-key``.
        seconds: how long it may take to answer.
    """

    def __init__(self, url: str, key: str | None = None, seconds: float = 600) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self._seconds = seconds
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def info(self) -> dict[str, Any]:
        """``/server_info``."""
        info = self._ask("GET", "/server_info")
        if not isinstance(info, dict) or "internal_states" not in info:
            raise CommandError(f"{self.url} is no SGLang server: its /server_info is another one")
        return info

    def tokenize(self, text: str, chat: bool) -> list[int]:
        """Token ids of a prompt, or of a chat with it as its one message.

        Raises:
            CommandError: the server says no; for a chat, as one without a template does.
        """
        body = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
        tokens: list[int] = self._ask("POST", "/tokenize", body)["tokens"]
        return tokens

    def detokenize(self, ids: list[list[int]]) -> list[str]:
        texts: list[str] = []
        # Between two of them the server tends to others: all at once would hold up its event loop.
        for start in range(0, len(ids), DETOKENIZED_AT_ONCE):
            body = {"tokens": ids[start : start + DETOKENIZED_AT_ONCE], "skip_special_tokens": False}
            texts += self._ask("POST", "/detokenize", body)["text"]
        return texts

    def generate(self, ids: list[int], tokens: int, laprox: dict[str, Any]) -> dict[str, Any]:
        """The reply of ``/generate``, greedy."""
        sampling = {"max_new_tokens": tokens, "temperature": 0, "custom_params": {"laprox": laprox}}
        body = {"input_ids": ids, "sampling_params": sampling}
        reply: dict[str, Any] = self._ask("POST", "/generate", body)
        return reply

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        try:
            response = requests.request(
                method, self.url + path, json=body, headers=self._headers, timeout=self._seconds
            )
        except requests.Timeout:
            raise CommandError(f"{self.url} does not answer within {self._seconds:g} s") from None
        except requests.ConnectionError:
            raise CommandError(f"{self.url} cannot be reached: is a server there?") from None
        except (requests.RequestException, UnicodeError) as error:
            # A key or a host that no header can hold is the latter.
            raise CommandError(f"{shown(self.url)}: {shown(error)}") from None
        if response.status_code == 401:
            raise CommandError(f"{self.url} wants a key: give --api-key")
        try:
            content = response.json()
        except ValueError:
            content = None
        if not response.ok:
            raise CommandError(f"{self.url}{path}: HTTP {response.status_code}: {complaint(content)}")
        if content is None:
            raise CommandError(f"{self.url}{path} answers no JSON: is it an SGLang server?")
        return content


def complaint(content: Any) -> str:
    """What an error reply of SGLang or of its OpenAI side says."""
    if isinstance(content, dict):
        error = content.get("error", content)
        content = error.get("message", error) if isinstance(error, dict) else error
    return shown(content or "no reason given")
