"""Text files as streams of tokens: bytes, characters, or what a tokenizer's file says.

corpus("input.txt", "bytes")                      one file: the first 90 % train, 5 % validate, 5 % test
corpus("wikitext-2", "characters")                a folder with one file a split: train, valid, test
corpus("wiki/*.txt", "bytes")                     all files of a pattern, one behind the other, as one file
corpus("enwik8.zip", "bytes")                     90, 5 and 5 million bytes, as published
corpus("input.txt", "somewhere/tokenizer.json")   a tokenizer of Hugging Face's tokenizers, from its file
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from matmix.arguments import checking_arguments
from matmix.experiments.extras import require
from matmix.ranges import Place
from sequence.data.faults import BadData, apart, bad, open_binary, shown

SPLITS = {"train": ("train", "training"), "val": ("valid", "val", "validation", "dev"), "test": ("test", "testing")}
SHARES = {"train": 0.9, "val": 0.95, "test": 1.0}
"""Where the splits of a single file end."""
TEXTS = ("", ".txt", ".text", ".tokens", ".raw", ".md")
POINTS = 0x110000
"""Code points that there are."""
PIECE = 1 << 20
"""Characters, about, that a tokenizer reads at a time."""


class Stream(NamedTuple):
    """The tokens of a split in a row."""

    tokens: np.ndarray  # (n,)
    sizes: np.ndarray  # (n,) the bytes of text that each stands for; their sum is that of the split


class Corpus(NamedTuple):
    """The splits of a text, and what turns text into its tokens and back."""

    splits: dict[str, Stream]
    coder: Coder
    files: dict[str, str]  # what each was read from, and the beginning of its SHA-256


class Coder(Protocol):
    """Text to tokens and back."""

    vocabulary: int

    def encode(self, text: bytes, name: object = "text") -> Stream:
        """Tokens of UTF-8 text; the name of its file is for the error."""

    def decode(self, tokens: np.ndarray) -> str:
        """Text of tokens."""


class Bytes:
    """A token for each byte."""

    vocabulary = 256

    def encode(self, text: bytes, name: object = "text") -> Stream:
        tokens = np.frombuffer(text, dtype=np.uint8)
        return Stream(tokens, np.broadcast_to(np.uint8(1), len(tokens)))

    def decode(self, tokens: np.ndarray) -> str:
        return tokens.astype(np.uint8).tobytes().decode("utf-8", errors="replace")


class Characters:
    """A token for each of an alphabet's characters, in order of their code points."""

    def __init__(self, alphabet: np.ndarray) -> None:
        self.alphabet = alphabet
        self.vocabulary = len(alphabet)
        self.numbers = np.full(POINTS, -1, dtype=np.int32)
        self.numbers[alphabet] = np.arange(len(alphabet))

    @classmethod
    def of(cls, texts: dict[str, bytes]) -> Characters:
        """The alphabet of all splits: which characters a language has is not what is to be learnt."""
        there = np.zeros(POINTS, dtype=bool)
        for name, text in texts.items():
            there[_points(_text(text, name))] = True
        return cls(np.flatnonzero(there))

    def encode(self, text: bytes, name: object = "text") -> Stream:
        points = _points(_text(text, name))
        tokens = self.numbers[points]
        if len(tokens) and tokens.min() < 0:
            raise ValueError(f"{name}: the character {chr(points[tokens.argmin()])!r} is not in the alphabet")
        return Stream(tokens, _sizes(points))

    def decode(self, tokens: np.ndarray) -> str:
        return "".join(map(chr, self.alphabet[tokens]))


class FileTokenizer:
    """A tokenizer of the library tokenizers, from its `tokenizer.json`: nothing is loaded from the net.

    It reads the text in pieces of about a million characters that end with a line, without special tokens.
    """

    def __init__(self, path: Path) -> None:
        require("tokenizers")
        from tokenizers import Tokenizer

        try:
            self.inner = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no class of its own
            raise bad(path, 0, f"it cannot be read: {error}", "a tokenizer.json of the library tokenizers") from None
        self.inner.no_truncation()
        self.inner.no_padding()
        self.vocabulary = self.inner.get_vocab_size()

    def encode(self, text: bytes, name: object = "text") -> Stream:
        tokens, sizes = [], []
        for piece in _pieces(_text(text, name)):
            found = self.inner.encode(piece, add_special_tokens=False)
            ends = np.array([end for _, end in found.offsets], dtype=np.int64)
            if len(ends) == 0:
                continue
            ends = np.maximum.accumulate(ends)
            ends[-1] = len(piece)  # what it leaves out at the end is the last token's, elsewhere the next one's
            before = np.concatenate(([0], np.cumsum(_sizes(_points(piece)), dtype=np.int64)))
            tokens.append(np.array(found.ids, dtype=np.int32))
            sizes.append(np.diff(before[ends], prepend=0).astype(np.int32))
        nothing = np.zeros(0, dtype=np.int32)
        return Stream(np.concatenate([nothing, *tokens]), np.concatenate([nothing, *sizes]))

    def decode(self, tokens: np.ndarray) -> str:
        return str(self.inner.decode(tokens.tolist(), skip_special_tokens=False))


@checking_arguments()
def corpus(data: Place, tokens: Place) -> Corpus:
    """The streams of a file or folder, kept as long as the files stay as they are.

    Args:
        data: a text file (also packed: gz, bz2, xz, zip), a pattern of some, or a folder with one for each split.
        tokens: "bytes", "characters", or the path of a tokenizer's json file.

    Raises:
        ValueError: says which file is missing or damaged, and where.
    """
    files = [file for given in (data, tokens) for file in sources(Path(given).expanduser())]
    return _corpus(data, tokens, tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files))


def sources(path: Path) -> list[Path]:
    """All files that may stand behind a file, a folder or a pattern, and the path itself; not all need exist."""
    if _is_pattern(path):
        return sorted(file for file in path.parent.glob(path.name) if file.is_file())
    return [path, *(sorted(path.iterdir()) if path.is_dir() else ())]


def _is_pattern(path: Path) -> bool:
    return any(letter in path.name for letter in "*?[") and not path.exists()


@cache
def _corpus(data: str, tokens: str, times: tuple[int, ...]) -> Corpus:
    texts = read(Path(data).expanduser(), whole_characters=tokens != "bytes")
    by_name = dict(texts.values())
    coder: Coder
    if tokens == "bytes":
        coder = Bytes()
    elif tokens == "characters":
        coder = Characters.of(by_name)
    elif Path(tokens).suffix == ".json":
        if not Path(tokens).expanduser().is_file():
            raise ValueError(f"tokens: there is no file {tokens!r}")
        coder = FileTokenizer(Path(tokens).expanduser())
    else:
        raise ValueError(f"tokens must be 'bytes', 'characters' or a tokenizer's json file, got {tokens!r}")
    splits = {split: coder.encode(text, name) for split, (name, text) in texts.items()}
    digests = {name: hashlib.sha256(text).hexdigest()[:16] for name, text in by_name.items()}
    return Corpus(splits, coder, digests)


def read(path: Path, *, whole_characters: bool, whole_lines: bool = False) -> dict[str, tuple[str, bytes]]:
    """The text of "train", "val" and "test", each with a name for errors and tables.

    Args:
        path: a file, a pattern of some (`*`, `?`, `[...]` in its last part), or a folder.
        whole_characters: where a single file is cut, the cut moves on to the next character of UTF-8.
        whole_lines: it moves on to the next line.
    """
    if path.is_dir():
        return {split: (file.name, _bytes(file)) for split, file in _files(path).items()}
    files = sources(path) if _is_pattern(path) else [path]
    if not all(file.is_file() for file in files) or not files:
        raise ValueError(f"data: there is no file or folder {str(path)!r}")
    text, cuts = b"".join(map(_bytes, files)), [0]
    for share in SHARES.values():
        cut = round(share * len(text))
        if whole_lines and 0 < cut < len(text):
            cut = text.find(b"\n", cut - 1) + 1 or len(text)
        while whole_characters and cut < len(text) and text[cut] & 0xC0 == 0x80:
            cut += 1
        cuts.append(cut)
    return {
        split: (f"{path.name}, bytes {a} to {b}", text[a:b])
        for split, a, b in zip(SHARES, cuts[:-1], cuts[1:], strict=True)
    }


def _files(folder: Path) -> dict[str, Path]:
    """The file of each split: a word of its name says which, as in valid.txt and wiki.valid.tokens."""
    found: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for file in sorted(folder.iterdir()):
        packed = file.suffix in (".gz", ".bz2", ".xz", ".zip")
        if not file.is_file() or Path(file.stem).suffix * packed + file.suffix * (not packed) not in TEXTS:
            continue
        words = re.split(r"[^a-z]+", file.name.lower())
        for split, names in SPLITS.items():
            if set(names) & set(words):
                found[split].append(file)
    for split, files in found.items():
        if len(files) != 1:
            there = ", ".join(file.name for file in files) or "none"
            raise BadData(
                f"data: {folder} needs one text file for {split} ({' or '.join(SPLITS[split])} in its name, such as "
                f"{SPLITS[split][0]}.txt or wiki.{SPLITS[split][0]}.tokens), and has {there}; a single file is cut "
                "into the three"
            )
    apart(found)
    return {split: files[0] for split, files in found.items()}


def _bytes(path: Path) -> bytes:
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
                if len(names) != 1:
                    raise bad(path, 0, f"it holds {len(names)} files", "an archive of one text file")
                text = archive.read(names[0])
        else:
            with open_binary(path) as file:
                text = file.read()
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise bad(path, 0, f"it cannot be read: {error}", "a whole text file; get it again") from None
    if not text:
        raise bad(path, 0, "it is empty", "a text file")
    return text


def _text(text: bytes, name: object) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = 1 + text.count(b"\n", 0, error.start)
        what = f"the byte {shown(hex(text[error.start]))} at {error.start} is no text"
        raise bad(name, line, what, "UTF-8, or tokens='bytes'") from None


def _points(text: str) -> np.ndarray:
    """Code points."""
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def _sizes(points: np.ndarray) -> np.ndarray:
    """The bytes of each in UTF-8."""
    return sum(((points > most).view(np.uint8) for most in (0x7F, 0x7FF, 0xFFFF)), np.ones(len(points), dtype=np.uint8))


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        stop = text.find("\n", start + PIECE) + 1 or len(text)
        yield text[start:stop]
        start = stop


def facts_of(found: Corpus) -> dict[str, Any]:
    """What a reader must know of the text."""
    return {
        "files (sha256)": found.files,
        "vocabulary": found.coder.vocabulary,
        "tokens": {split: len(stream.tokens) for split, stream in found.splits.items()},
        "bytes a token (test)": float(found.splits["test"].sizes.mean(dtype=np.float64)),
    }
