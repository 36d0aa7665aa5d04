"""Stop strings, matched against text though tokens are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what part of a character decodes to


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    text = tokenizer.decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)  # a list of ids is one text
    return text


class Stops:
    """Stop strings, for the tokens of one tokenizer."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], vocab_size: int
    ) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        # (V,) bool: the ids that can be the last of a stop string. Only after these need a row be
        # decoded. A token counts if its text holds a stop string or begins with the end of one.
        self.may_end = np.zeros(vocab_size, dtype=bool)
        if stop:
            self.may_end[:] = [self._ends_one(text) for text in self._token_texts(vocab_size)]

    def cut(self, token_ids: Sequence[int]) -> int | None:
        """How many of the tokens lie wholly before the first stop string; None without one."""
        if not self._stop:
            return None
        text = decode(self._tokenizer, token_ids)
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if not found:
            return None
        count = len(token_ids)
        while count and len(decode(self._tokenizer, token_ids[:count])) > min(found):
            count -= 1
        return count

    def _ends_one(self, text: str) -> bool:
        return UNFINISHED in text or any(
            stop in text or any(stop.endswith(text[:n]) for n in range(1, len(text) + 1))
            for stop in self._stop
        )

    def _token_texts(self, vocab_size: int) -> list[str]:
        """The text that each token adds after another; some tokenizers strip a lone one's space."""
        first = next(
            token for token in range(vocab_size) if decode(self._tokenizer, [token]).isalnum()
        )
        start = len(decode(self._tokenizer, [first]))
        pairs = [[first, token] for token in range(vocab_size)]
        texts = self._tokenizer.batch_decode(
            pairs, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [text[start:] for text in texts]
