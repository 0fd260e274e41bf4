"""Tokenizers with the special tokens of masked language models: trained here, from a file or folder, or by name.

tokenizer("wordpiece", texts=..., key=..., vocabulary=4000)   trained on the texts, and kept in the cache
tokenizer("somewhere/tokenizer.json")                         of the library tokenizers
tokenizer("somewhere")                                        a folder that transformers saved
tokenizer("bert-base-uncased")                                by name, from the Hugging Face hub
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from matmix.arguments import checking_arguments
from matmix.ranges import Place
from sequence.data.cache import cached

TRAINED = "wordpiece"
"""Instead of a name: a WordPiece vocabulary made from the training texts."""
SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""Of a trained one, in the order of their ids from 0."""
NEEDED = ("pad", "cls", "sep", "mask")
FILE = "tokenizer.json"


@checking_arguments()
def tokenizer(
    tokens: Place,
    *,
    texts: Callable[[], Iterable[str]] | None = None,
    key: Mapping[str, Any] | None = None,
    vocabulary: int = 4000,
    cache: str = "",
) -> PreTrainedTokenizerFast:
    """The tokenizer that is named.

    Args:
        tokens: "wordpiece", a tokenizer.json, a folder, or a name on the hub.
        texts, key: what "wordpiece" is trained on, and what decides it, as `sequence.data.cache` has it.
        vocabulary: the most words that "wordpiece" has, the five special ones included.
        cache: folder of prepared data.

    Raises:
        ValueError: where there is none of that name, or it lacks a special token.
    """
    path = Path(tokens).expanduser()
    if tokens == TRAINED:
        if texts is None:
            raise ValueError(f"tokens={TRAINED!r} is trained on texts, and here are none: name a file, folder or id")
        found = _trained(texts, dict(key or {}), vocabulary, cache)
    elif path.suffix == ".json" or path.is_dir():
        if not path.exists():
            raise ValueError(f"tokens: there is no file {tokens!r}")
        found = _of_file(path) if path.is_file() else _named(str(path))
    else:
        found = _named(tokens)
    missing = [name for name in NEEDED if getattr(found, f"{name}_token_id") is None]
    if missing:
        raise ValueError(
            f"tokens: {tokens!r} has no token for {', '.join(missing)}; masked language models need "
            f"{', '.join(NEEDED)}, such as {', '.join(SPECIALS[name] for name in missing)}"
        )
    return found


def fingerprint(tokens: PreTrainedTokenizerFast) -> str:
    """The beginning of a SHA-256 over all words and their ids, and over which of them are special."""
    words = [sorted(tokens.get_vocab().items(), key=lambda item: item[1]), special_ids(tokens)]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


def special_ids(tokens: PreTrainedTokenizerFast) -> list[int]:
    """Ids that are never hidden and never put in the place of another: the special tokens, and those that were added.

    The unknown word is one of them: there is nothing to say of it.
    """
    return sorted({*tokens.all_special_ids, *tokens.added_tokens_decoder})


def _trained(
    texts: Callable[[], Iterable[str]], key: dict[str, Any], vocabulary: int, cache: str
) -> PreTrainedTokenizerFast:
    if vocabulary <= len(SPECIALS):
        raise ValueError(
            f"vocabulary must be above {len(SPECIALS)}, the special tokens {', '.join(SPECIALS.values())}, "
            f"got {vocabulary}"
        )

    def make(folder: Path) -> dict[str, Any]:
        made = train_wordpiece(texts(), vocabulary)
        made.save(str(folder / FILE))
        return {"vocabulary": made.get_vocab_size()}

    import tokenizers

    # Another version of the library may draw the line between two equally frequent pairs elsewhere.
    whole = {"version": 1, "library": tokenizers.__version__, "vocabulary": vocabulary, **key}
    return _of_file(cached("wordpiece", whole, make, cache).folder / FILE)


def train_wordpiece(texts: Iterable[str], vocabulary: int) -> Any:
    """BERT's uncased WordPiece of texts, as a `tokenizers.Tokenizer`: [CLS] A [SEP], or [CLS] A [SEP] B [SEP].

    The same texts give the same words: the library numbers characters as a hash table has them, anew in each process,
    and pairs that are equally frequent are merged by these numbers (two of 4,000 words differed between two trainings).
    Here they are numbered in order of their code points before it begins.

    Raises:
        ValueError: where the vocabulary has no room for the characters.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    texts = list(texts)
    normalise = normalizers.BertNormalizer(lowercase=True)
    letters = sorted({letter for text in texts for letter in set(normalise.normalize_str(text))} - set(" \n\t"))
    first = [*SPECIALS.values(), *letters, *(f"##{letter}" for letter in letters)]
    if vocabulary < len(first):
        raise ValueError(
            f"vocabulary must be at least {len(first)}, the special tokens and the {len(letters)} characters of the "
            f"texts at the beginning of words and within, got {vocabulary}"
        )
    made = Tokenizer(models.WordPiece(unk_token=SPECIALS["unk"]))
    made.normalizer, made.pre_tokenizer = normalise, pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=first, show_progress=False)
    )
    words = made.get_vocab()
    made = Tokenizer(models.WordPiece(words, unk_token=SPECIALS["unk"]))  # characters are no special tokens there
    made.normalizer, made.pre_tokenizer = normalise, pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(list(SPECIALS.values()))
    cls, sep = SPECIALS["cls"], SPECIALS["sep"]
    made.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(word, words[word]) for word in (cls, sep)],
    )
    made.decoder = decoders.WordPiece()
    return made


def _of_file(path: Path) -> PreTrainedTokenizerFast:
    """From a tokenizer.json, which does not say what its special tokens are for: BERT's names say it."""
    from tokenizers import Tokenizer

    try:
        inner = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no class of its own
        raise ValueError(
            f"tokens: {path} cannot be read as a tokenizer.json: {error}; allowed: one of the library tokenizers"
        ) from None
    known = {f"{name}_token": word for name, word in SPECIALS.items() if inner.token_to_id(word) is not None}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **known)


def _named(name: str) -> PreTrainedTokenizerFast:
    try:
        found = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # what it raises depends on the client that the hub's library is built on
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"tokens: {name!r} cannot be opened: {reason}; allowed: {TRAINED!r}, a tokenizer.json, a folder that "
            "transformers saved, or a name on the Hugging Face hub"
        ) from None
    if not isinstance(found, PreTrainedTokenizerFast):
        raise ValueError(f"tokens: {name!r} is a {type(found).__name__}; allowed: those of the library tokenizers")
    return found
