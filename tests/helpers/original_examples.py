# SPDX-License-Identifier: Apache-2.0
"""What create_pretraining_data.py does to a document, token by token with the standard library.

Slow and literal: lists, one draw at a time, no search and no array. And stores to test with.
"""

import random

import numpy as np

from albert_jax.data.store import Shard
from tests.helpers.paths import DATA

FILES = DATA / "pretraining"
CLS, SEP, MASK = 2, 3, 4

Document = list[list[int]]


class MemoryStore:
    """Documents as a token store in memory, dealt out over some shards in turn."""

    def __init__(self, documents: list[Document], shards: int = 1):
        self.documents = [documents[number::shards] for number in range(shards)]
        self.shards = [as_shard(part) for part in self.documents]


def as_shard(documents: list[Document]) -> Shard:
    sentences = [sentence for document in documents for sentence in document]
    tokens = [token for sentence in sentences for token in sentence]
    return Shard(
        "memory",
        np.array(tokens, "<u2"),
        np.cumsum([0, *map(len, sentences)]).astype("<u4"),
        np.cumsum([0, *map(len, documents)]).astype("<u4"),
    )


def golden_documents() -> list[Document]:
    """corpus.txt of the original's golden run, in the ids of its 8,000 pieces."""
    with np.load(FILES / "corpus.npz") as corpus:
        tokens = iter(corpus["tokens"].tolist())
        lengths = iter(corpus["sentence_lengths"].tolist())
        return [
            [[next(tokens) for _ in range(next(lengths))] for _ in range(count)]
            for count in corpus["document_lengths"].tolist()
        ]


def golden_starts_word() -> np.ndarray:
    """The original's word-start rule for those pieces, bool[8000]."""
    with np.load(FILES / "corpus.npz") as corpus:
        return np.unpackbits(corpus["starts_word"]).astype(bool)


def chunks(document: Document, target: int) -> list[tuple[int, int]]:
    """Sentences are gathered until they have `target` tokens or the document ends: (first, end)."""
    found, first, length = [], 0, 0
    for i, sentence in enumerate(document):
        length += len(sentence)
        if length >= target or i == len(document) - 1:
            found.append((first, i + 1))
            first, length = i + 1, 0
    return found


def pairs(documents, index, rng, *, max_seq_length, short_seq_prob, next_sentence=False):
    """The (A, B, label) of one document, cut to length."""
    longest = max_seq_length - 3
    target = longest
    if rng.random() < short_seq_prob:
        target = rng.randint(2, longest)
    document = documents[index]
    found, waiting = [], list(document)
    while waiting:
        chunk = []
        while waiting and len(joined(chunk)) < target:
            chunk.append(waiting.pop(0))
        cut = 1 if len(chunk) == 1 else rng.randint(1, len(chunk) - 1)
        a, rest = joined(chunk[:cut]), chunk[cut:]
        if not rest or (next_sentence and rng.random() < 0.5):
            label = 1
            waiting = rest + waiting
            for _ in range(10):
                other = rng.randrange(len(documents))
                if other != index:
                    break
            b = []
            for sentence in documents[other][rng.randrange(len(documents[other])) :]:
                b = b + sentence
                if len(b) >= target - len(a):
                    break
        else:
            b, label = joined(rest), 0
            if not next_sentence and rng.random() < 0.5:
                a, b, label = b, a, 1
        a, b = truncate(a, b, longest, rng)
        found.append((a, b, label))
    return found


def joined(sentences):
    return [token for sentence in sentences for token in sentence]


def truncate(a, b, longest, rng):
    a, b = list(a), list(b)
    while len(a) + len(b) > longest:
        longer = a if len(a) > len(b) else b
        longer.pop(0 if rng.random() < 0.5 else -1)
    return a, b


def mask(a, b, rng, starts_word, vocab_size, *, most, prob=0.15, ngram=3, favor_shorter=True):
    """[CLS] A [SEP] B [SEP] masked: (ids, {position: original}, words of each n-gram)."""
    row = [CLS, *a, SEP, *b, SEP]
    words: list[list[int]] = []
    for i, token in enumerate(row):
        if token in (CLS, SEP):
            continue
        if words and not starts_word[token]:
            words[-1].append(i)
        else:
            words.append([i])
    budget = min(most, max(1, round(len(row) * prob)))
    sizes = list(range(1, ngram + 1))
    weights = [1 / n for n in sizes]
    if not favor_shorter:
        weights.reverse()
    firsts = list(range(len(words)))
    rng.shuffle(firsts)
    ids, labels, ngrams = list(row), {}, []
    for first in firsts:
        [n] = rng.choices(sizes, weights)
        while n and len(labels) + sum(map(len, words[first : first + n])) > budget:
            n -= 1
        covered = [i for word in words[first : first + n] for i in word]
        if not covered or any(i in labels for i in covered):
            continue
        ngrams.append(len(words[first : first + n]))
        for i in covered:
            labels[i] = row[i]
            if rng.random() < 0.8:
                ids[i] = MASK
            elif rng.random() < 0.5:
                ids[i] = rng.randrange(vocab_size)
    return ids, labels, ngrams


def seeded(seed: int) -> random.Random:
    return random.Random(seed)
