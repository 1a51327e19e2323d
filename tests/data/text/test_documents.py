# SPDX-License-Identifier: Apache-2.0
"""Documents out of files: every format, any bytes, and the same whatever the blocks and cuts."""

import contextlib
import gzip
import itertools
import os
import re
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert_jax.data.text import documents as corpus
from albert_jax.data.text import lines, python_docs
from albert_jax.data.text.documents import (
    clean_wiki,
    cut_piece,
    find_layout,
    find_pieces,
    read_documents,
    read_piece,
)
from albert_jax.data.text.files import find_files
from albert_jax.data.text.lines import MAX_LINE_BYTES, Reading, read_lines, text_lines
from albert_jax.data.text.sentences import detect_layout, split_sentences
from albert_jax.utils.errors import UserError
from tests.helpers.compressed import read_compressed
from tests.helpers.paths import DATA

PROSE = (
    "Dr. Smith went to Washington, D.C. in January. He came back on the 3rd. Why? Nobody knows.\n"
    "He paid $3.50 for it. That was too much.\n"
)


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name: str = "text.txt") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def read(path, **reading) -> tuple[list[list[str]], Counter]:
    counts: Counter = Counter()
    return list(read_documents(path, Reading(**reading), counts=counts)), counts


# ------------------------------------------------------------------------------------- sentences


def test_abbreviations_do_not_end_sentences():
    assert split_sentences(PROSE.splitlines()[0]) == [
        "Dr. Smith went to Washington, D.C. in January.",
        "He came back on the 3rd.",
        "Why?",
        "Nobody knows.",
    ]


@pytest.mark.parametrize("unit", ["“a ", "“", "“‘a b. ", "(a) ", "a. ", "word ", "x", '"', ". "])
def test_splitting_takes_linear_time_where_the_splitter_alone_does_not(unit):
    started = time.process_time()
    split_sentences(unit * (1_000_000 // len(unit)))
    assert time.process_time() - started < 10  # 0.01 to 1.2 s; sentencex alone: 370 s on the first


def test_a_space_that_panics_the_splitter_is_made_plain(capfd):
    assert split_sentences("By J\u00a0. Smith. He left.") == ["By J . Smith.", "He left."]
    assert "panicked" not in capfd.readouterr().err


ODD = (
    "aZ b. ?!\"'()“”‘’…。\u200b\u00a0\u3000\x85\x1c\u2028٣é\u0301\U0001f600İ\u202e\ud7ff\x00\t\r\n"
)


@settings(max_examples=300)
@given(st.text(st.sampled_from(ODD), max_size=60), st.integers(1, 150))
def test_splitting_loses_no_character(text, times):
    sentences = split_sentences(text * times)
    assert "".join("".join(s.split()) for s in sentences) == "".join((text * times).split())
    assert all(sentences)


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("The cat sat.\nIt was warm.\n\nA dog came.\n" * 5, "lines"),
        (PROSE * 5, "split"),
        ("hello how are you\ni am fine thanks\nwhat did you do today\n" * 9, "lines"),
        ("", "lines"),
        (
            "It was the best of times, it was the worst of times, it was the age of wisdom, it\n"
            "was the age of foolishness, it was the epoch of belief, it was the epoch of\n"
            "incredulity, it was the season of Light, it was the season of Darkness, it was\n"
            "the spring of hope, it was the winter of despair, we had everything before us,\n"
            "we had nothing before us, we were all going direct to Heaven, we were all going\n"
            "direct the other way. In short, the period was so far like the present period,\n"
            "that some of its noisiest authorities insisted on its being received, for good\n"
            "or for evil, in the superlative degree of comparison only. There were a king\n"
            "with a large jaw and a queen with a plain face, on the throne of England; there\n"
            "were a king with a large jaw and a queen with a fair face, on the throne of\n",
            "wrapped",
        ),
    ],
)
def test_layout_is_judged_by_the_first_lines(text, layout):
    assert detect_layout(text.split("\n")) == layout


def test_novels_are_prose(shared):
    novels = sorted((shared / "data" / "books").glob("*.gz"))
    assert len(novels) == 50
    assert {find_layout(str(path), Reading()) for path in novels} == {"split"}


def test_the_originals_corpus_is_a_sentence_a_line(write):
    path = write(read_compressed(DATA / "pretraining" / "corpus.txt"))
    assert find_layout(str(path), Reading()) == "lines"


# ------------------------------------------------------------------------------------------ text


def test_one_sentence_a_line_is_taken_as_it_is(write):
    documents, _ = read(write("One. Two.\nThree\n\n\n \nFour\n"), sentences="lines")
    assert documents == [["One. Two.", "Three"], ["Four"]]


def test_prose_is_split_by_line(write):
    documents, counts = read(write(PROSE + "\n" + PROSE))
    assert [len(d) for d in documents] == [6, 6]
    assert counts["files_split"] == 1


def test_wrapped_lines_are_joined_and_two_empty_lines_end_a_document(write):
    text = "A man came\nhome. He ate\nsoup.\n\nThen he slept.\n\n\nNext chapter\nbegins.\n"
    documents, _ = read(write(text), sentences="wrapped")
    assert documents == [
        ["A man came home.", "He ate soup.", "Then he slept."],
        ["Next chapter begins."],
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_all_systems_are_alike(write, end):
    text = end.join(["One.", "Two.", "", "Three."])
    assert read(write(text), sentences="lines")[0] == [["One.", "Two."], ["Three."]]


def test_gz_and_plain_are_alike(write):
    plain = read(write(PROSE * 3))[0]
    assert read(write(gzip.compress((PROSE * 3).encode()), "text"))[0] == plain


def test_odd_characters_are_mended_and_counted(write):
    text = "\ufeffOne\x00 two.\u2028Three\u2029four.\n".encode() + b"F\xff\xc3ive \xe2\x82.\nSix.\n"
    documents, counts = read(write(text), sentences="lines")
    assert documents == [["One two. Three four.", "F\ufffd\ufffdive \ufffd.", "Six."]]
    assert counts["invalid_utf8_bytes"] == 4  # ff, c3 and the two bytes of a character cut short
    assert (counts["nul_characters"], counts["byte_order_marks"]) == (1, 1)
    assert counts["line_separators"] == 2


def test_strict_names_file_and_byte_of_invalid_text(write):
    path = write(b"Good.\n" * 100_000 + b"Bad \xff.\n")
    with pytest.raises(UserError, match=r"text\.txt: invalid UTF-8 at byte 600004 \(0xff\)"):
        read(path, strict=True)


def test_an_encoded_replacement_character_is_no_invalid_byte(write):
    assert read(write("A \ufffd b."), strict=True)[1]["invalid_utf8_bytes"] == 0


@pytest.mark.parametrize("word", ["word ", "é", "\u20ac", "\U0001f600", "a. B ", "\t"])
def test_a_ten_megabyte_line_is_cut_and_not_lost(write, word):
    text = word * (10_000_000 // len(word.encode()))
    documents, counts = read(write(text + "\nNext.\n"), sentences="lines", strict=True)
    found = "".join("".join(s.split()) for d in documents for s in d)
    assert found == "".join(text.split()) + "Next."
    assert counts["lines_cut"] >= 9


def test_a_document_without_end_is_cut(write, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_DOCUMENT_CHARS", 1000)
    documents, counts = read(write("A sentence of text.\n" * 200), sentences="lines")
    assert sum(map(len, documents)) == 200
    assert [len(d) for d in documents] == [53, 53, 53, 41]
    assert counts["documents_cut"] == 3


def test_a_document_of_very_many_sentences_is_cut(write, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_DOCUMENT_SENTENCES", 99)
    documents, counts = read(write("A.\n" * 250), sentences="lines")
    assert [len(d) for d in documents] == [100, 100, 50]
    assert counts["documents_cut"] == 2


def test_a_paragraph_of_very_many_lines_is_split_in_parts(write, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_PARAGRAPH_LINES", 10)
    documents, _ = read(write("So it is.\n" * 25), sentences="wrapped")
    assert documents == [["So it is."] * 25]


def test_a_long_text_in_memory_is_read_like_a_file(write):
    text = (b"word " * 300_000 + b"\n\xff\r\nEnd.\n\n") * 2
    counts = Counter(), Counter()
    lines = list(text_lines(text, "here", False, counts[0]))
    piece = find_pieces([write(text)], Reading())[0]
    assert lines == list(read_lines(piece, Reading(), counts[1], lambda _: None))
    assert counts[0] == counts[1] == {"lines_cut": 2, "invalid_utf8_bytes": 2}
    with pytest.raises(UserError, match="here: invalid UTF-8 at byte 1500001"):
        list(text_lines(text, "here", True, Counter()))


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from([b"\n", b"\r", b"\r\n", b"\xff", b"\xe2\x82", b"\x00", b" ", b"a.", b"B "])
        | st.sampled_from(["é", "\u2028", "\ufeff", "\U0001f600", "x" * 70]).map(str.encode)
        | st.binary(max_size=4),
        max_size=80,
    ),
    st.integers(1, 9),
)
def test_any_bytes_give_the_same_documents_by_blocks_as_by_whole_lines(
    tmp_path_factory, parts, block
):
    data = b"".join(parts)
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(b"a" + data)  # so that it is no gz file by chance
    expected = reference_documents(b"a" + data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block)
        patch.setattr(corpus, "foreign_kind", lambda start: None)
        patch.setattr(corpus, "_MOST_FOREIGN", 1.0)
        assert read(path, sentences="lines")[0] == expected


def reference_documents(data: bytes) -> list[list[str]]:
    """The rules of docs/data.md on the whole text at once, by other means."""
    text = data.decode("utf-8", errors="replace")
    marks = str.maketrans({"\0": None, "\ufeff": None, "\u2028": " ", "\u2029": " "})
    sentences = [line.translate(marks).strip() for line in re.split(r"\r\n|\r|\n", text)]
    documents = "\n".join(sentences).split("\n\n")
    return [found for d in documents if (found := [s for s in d.split("\n") if s])]


@settings(max_examples=100)
@given(st.binary(max_size=300), st.sampled_from(["text", "wiki"]), st.booleans())
def test_any_bytes_are_documents_or_one_error(tmp_path_factory, data, format, packed):
    path = tmp_path_factory.getbasetemp() / "any2.txt"
    path.write_bytes(gzip.compress(data)[: len(data) + 10] if packed else data)
    documents = []
    with contextlib.suppress(UserError):
        documents, _ = read(path, format=format)
    assert all(d and all(s.strip() == s != "" for s in d) for d in documents)


# ------------------------------------------------------------------------------------------ wiki


def test_wiki_extract_keeps_paragraphs_and_drops_titles_and_headings(write):
    text = (
        'ignored\n<doc id="1" url="u" title="A &amp; B">\nA & B\n\n'
        "A and B () are two letters [[of the|of an]] <br>alphabet &amp; more. The second is B.\n"
        "History.\nThey were invented a very long time ago by nobody in particular.\n</doc>\n\n"
        '<doc id="2" url="u" title="Empty">\nEmpty\n\nSee also.\n</doc>\n'
    )
    documents, counts = read(write(text), format="wiki")
    assert documents == [
        [
            "A and B are two letters of an alphabet & more.",
            "The second is B.",
            "They were invented a very long time ago by nobody in particular.",
        ]
    ]
    assert counts["short_lines_dropped"] == 4
    assert counts["lines_outside_documents"] == 1


def test_wiki_extracts_are_known_by_their_first_line_and_mix_with_books(write, tmp_path):
    wiki = '<doc id="1" title="A">\nA\n\nThe letter A is the first one of the alphabet.\n\n</doc>\n'
    write(wiki, "wiki/0")
    write(gzip.compress(wiki.replace("first", "last").encode()), "wiki/1")
    documents, counts = read([tmp_path / "wiki", write(PROSE, "wiki/book")])
    assert [len(d) for d in documents] == [1, 1, 6]
    assert (counts["files_wiki"], counts["files_split"]) == (2, 1)
    assert read([tmp_path / "wiki"], format="wiki")[0] == documents[:2]


def test_wiki_sample_has_its_articles_and_nearly_all_its_words(shared):
    path = shared / "data" / "enwiki" / "sample" / "wiki_99.head"
    documents, counts = read(path, format="wiki")
    text = path.read_text()
    # 18 articles, one of which is a list of names without a paragraph.
    assert text.count("<doc ") == 18
    assert len(documents) == 17
    words = sum(len(s.split()) for d in documents for s in d)
    assert 0.97 < words / len(re.sub(r"</?doc.*", "", text).split()) < 1
    assert counts["short_lines_dropped"] == 269
    assert not any("<doc" in s or "</doc" in s for d in documents for s in d)


@pytest.mark.parametrize(
    ("line", "clean"),
    [
        ("X (, ) is", "X is"),
        ("[[Category:A|b]] and [[c]] and [[d", "b and c and d"),
        ("<ref name='a'>a</ref> 1 < 2 > 0 <3", "a  1 < 2 > 0 <3"),
        ("&lt;tag&gt; &amp; R&D", "& R&D"),
    ],
)
def test_left_over_markup_goes(line, clean):
    assert clean_wiki(line) == clean


# ----------------------------------------------------------------------------------------- inputs


def test_folders_patterns_and_repeats_give_each_file_once_in_order(tmp_path):
    for name in ("b/2.txt", "b/1.txt", "b/.hidden", "a.txt", "b/.git/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"In {name}.\n")
    given = [tmp_path / "b", tmp_path / "*.txt", tmp_path / "a.txt", tmp_path / "**" / "1.txt"]
    found = [os.path.relpath(p.path, tmp_path) for p in find_pieces(given, Reading())]
    assert found == ["b/1.txt", "b/2.txt", "a.txt"]


# Packed without the time, as workers of a parallel run must collect the same tests.
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bz2", b"BZh91AY&SY", "is bzip2-compressed; make it UTF-8 text"),
        ("a.txt", "text".encode("utf-16"), "is UTF-16 text"),
        (
            "a.bin",
            bytes(range(256)),
            r"is not UTF-8 text \(154 of its first 256 bytes\); give text",
        ),
        ("a.gz", gzip.compress(bytes(range(256)), mtime=0), "is not UTF-8 text"),
        ("a.txt", ("Мороз и солнце; день чудесный! " * 3).encode("cp1251"), "convert it: iconv"),
        ("a.csv", b"text,label\ngood,1\n", "is a csv file by its name, whose header"),
        ("a.TSV.gz", gzip.compress(b"text\tlabel\n", mtime=0), "is a tsv file by its name"),
        ("a.parquet", b"PAR1....", "Parquet file"),  # damaged, or without pyarrow
        ("a.json", b'[{"text": "a"}]', "is a json file by its name, whose keys"),
        ("wiki_00", b'\xef\xbb\xbf{"id": "0", "text": "a"}\n', r"holds JSON, .* \.jsonl, and its"),
        ("a.txt", b'[\n  {"id": 1,\n', "holds JSON"),
        ("a.tar", b"a.txt".ljust(257, b"\0") + b"ustar  \0", "is a tar archive; make it UTF-8"),
        (
            "a.tar.gz",
            gzip.compress(b"a.txt".ljust(257, b"\0") + b"ustar  \0", mtime=0),
            "packs a tar archive; make it UTF-8",
        ),
    ],
)
def test_other_kinds_of_file_are_named(write, name, content, message):
    with pytest.raises(UserError, match=message):
        read(write(content, name))


@pytest.mark.parametrize("inputs", ["absent.txt", "absent/*.txt", "."])
def test_inputs_that_are_not_there_are_named(tmp_path, inputs):
    with pytest.raises(UserError, match=r"no (such file|file matches|file in the folder)"):
        read(tmp_path / inputs)


@pytest.mark.parametrize("character", ["é", "中", "😀"])
@pytest.mark.parametrize("before", range(4))
def test_a_line_without_end_is_not_cut_within_a_character(write, character, before):
    text = "a" * before + character * (MAX_LINE_BYTES // len(character.encode()) + 9)
    found, counts = read(write(text.encode()), sentences="lines", strict=True)
    assert "".join("".join(document) for document in found) == text
    assert counts["lines_cut"] == 1


def test_a_file_that_has_changed_is_read_by_its_new_layout(write):
    sentences = ["It rained.", "We stayed in.", "Nobody came."]
    path = write("\n".join(sentences * 9).encode())
    assert read(path)[1]["files_lines"] == 1
    os.utime(path, ns=(1, 1))
    path.write_text(" ".join(sentences * 9))
    assert read(path)[1]["files_split"] == 1


def test_text_with_carriage_returns_is_divided_between_its_documents(write):
    document = "One sentence of it.\rAnother one.\r\r"
    path = write((document * 40_000).encode())
    (piece,) = find_pieces([path], Reading())
    parts = cut_piece(piece, 1 << 18, Reading())
    assert len(parts) > 3
    assert sum(len(list(read_piece(part, Reading()))) for part in parts) == 40_000


def test_a_byte_that_is_no_utf8_in_jsonl_is_replaced_and_counted(write):
    path = write(b'{"text": "caf\xe9 noir"}\n', "a.jsonl")
    found, counts = read(path)
    assert (found, counts["invalid_utf8_bytes"]) == ([["caf\ufffd noir"]], 1)
    with pytest.raises(UserError, match="row 1: invalid UTF-8 at byte 13"):
        read(path, strict=True)
    path.write_bytes(b'\xef\xbb\xbf{"text": "begins with a mark"}\n')
    assert read(path)[0] == [["begins with a mark"]]


def test_a_word_that_begins_as_bzip2_does_is_text(write):
    assert read(write(b"BZhang is a rare surname."))[0] == [["BZhang is a rare surname."]]


def test_stores_in_a_folder_of_texts_are_left_out_and_links_named(tmp_path):
    (tmp_path / "a.txt").write_text("Text.")
    store = tmp_path / "store"
    store.mkdir()
    for name in ("manifest.json", "spiece.model"):
        (store / name).write_text("")
    assert [Path(path).name for path in find_files(str(tmp_path))] == ["a.txt"]
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "lib64").symlink_to(tmp_path)  # hidden, and not looked at
    assert [Path(path).name for path in find_files(str(tmp_path))] == ["a.txt"]
    (tmp_path / "link").symlink_to(store)
    with pytest.raises(UserError, match="link is a link to a folder, which is not followed"):
        find_files(str(tmp_path))


def test_stores_are_left_out_of_patterns_and_addresses_too(tmp_path):
    (tmp_path / "a.txt").write_text("Text.")
    store = tmp_path / "deep" / "store"
    (store / "train").mkdir(parents=True)
    for name in ("manifest.json", "vocab.txt", "train/00000.txt"):
        (store / name).write_text("")
    patterns = [f"{tmp_path}/**", f"{tmp_path}/**/*.txt"]
    for asked in (tmp_path, f"file://{tmp_path}", *patterns, *(f"file://{x}" for x in patterns)):
        assert [Path(path).name for path in find_files(str(asked))] == ["a.txt"], asked


def test_a_wiki_extract_is_known_behind_a_mark_and_empty_lines(write):
    article = (
        '<doc id="1" title="T">\nT\n\n' + "A sentence of more than eight words stands here. " * 3
    )
    for before in ("\ufeff", "\n\n", "\ufeff \n"):
        [document] = read(write(f"{before}{article}\n</doc>\n".encode()))[0]
        assert not any("<doc" in sentence for sentence in document)


@pytest.mark.parametrize(
    "line", ['{"key": "value"} is how a dict is written.', "[1] Smith, A. (1990).", "{a} set"]
)
def test_prose_that_begins_as_json_does_is_text(write, line):
    assert read(write(f"{line}\n"))[0] == [[line]]


def test_a_pipe_is_refused_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for asked in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="pipe is no regular file; write its text to one"):
            read(asked)


def test_a_truncated_or_damaged_gz_file_is_named(write):
    whole = gzip.compress(os.urandom(100_000).hex().encode())
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 0xFF
    for broken in (whole[: len(whole) // 2], whole[:-4], whole + b"rubbish", bytes(middle)):
        with pytest.raises(UserError, match=r"text\.gz is a damaged gz file"):
            read(write(broken, "text.gz"), sentences="lines")


def test_settings_that_are_unknown_are_refused():
    with pytest.raises(UserError, match="format 'html' is unknown"):
        Reading(format="html")
    with pytest.raises(UserError, match="sentences 'words' is unknown"):
        Reading(sentences="words")
    for language in ("German", "en-US", ""):
        with pytest.raises(UserError, match=f"language '{language}' is no code of a language"):
            Reading(language=language)


@pytest.mark.parametrize(
    ("format", "layout"),
    [("text", "lines"), ("text", "split"), ("text", "wrapped"), ("wiki", "auto")],
)
def test_cuts_fall_between_documents(write, format, layout, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 50)  # the search for a cut takes many blocks
    gap, line = "\n", "Document {} has text enough to stay here.\n"
    if layout == "wrapped":
        gap, line = "\n\n", "\nDocument {} has text\nenough to stay here.\n"
    texts = [(line * (i % 7 + 1)).replace("{}", str(i)).lstrip() for i in range(400)]
    if format == "wiki":
        texts = [
            f'<doc id="{i}" title="{i}">\n{i}\n\n{text}</doc>\n' for i, text in enumerate(texts)
        ]
    reading = Reading(format=format, sentences=layout)
    path = write(gap.join(texts))
    (whole,) = find_pieces([path], reading)
    pieces = cut_piece(whole, whole.bytes // 9, reading)
    assert len(pieces) == 9
    assert sum(piece.bytes for piece in pieces) == whole.bytes
    assert [piece.start for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]
    documents = [list(corpus.read_piece(piece, reading)) for piece in pieces]
    assert all(documents)
    together = list(itertools.chain.from_iterable(documents))
    assert together == list(read_documents(path, reading))
    assert len(together) == 400


def test_text_without_empty_lines_is_cut_at_lines(write):
    path = write("A line of text.\n" * 100_000)
    (whole,) = find_pieces([path], Reading())
    pieces = cut_piece(whole, whole.bytes // 4, Reading())
    found = [list(corpus.read_piece(piece, Reading())) for piece in pieces]
    assert len(pieces) > 2
    assert sum(len(s) for piece in found for s in piece) == 100_000


# ------------------------------------------------------------------------------ Python's own text


@pytest.mark.slow
def test_pythons_documentation_is_english_prose_and_the_same_each_time():
    documents = list(read_documents("python-docs"))
    text = " ".join(s for d in documents for s in d)
    assert len(text.encode()) == pytest.approx(python_docs.PROSE_BYTES["python-docs"], rel=0.2)
    assert len(documents) > 300
    assert "The pass statement" in text or '"pass" is a null operation' in text
    letters = sum(unicodedata.category(c)[0] in "LZ" for c in text)
    assert letters > 0.93 * len(text)
    words = Counter(text.lower().split())
    assert [w for w, _ in words.most_common(2)] == ["the", "a"]
    assert ">>>" not in text
    assert documents[:40] == list(read_documents("python-docs"))[:40]


@pytest.mark.slow
def test_packages_documentation_is_prose_of_all_of_them_without_headings():
    documents = list(read_documents("package-docs"))
    text = " ".join(s for d in documents for s in d)
    assert len(text.encode()) == pytest.approx(python_docs.PROSE_BYTES["package-docs"], rel=0.2)
    assert len(documents) > 1000
    assert text.count("----") < 100
    assert sum(unicodedata.category(c)[0] in "LZ" for c in text) > 0.9 * len(text)
    found = str(python_docs._packages())
    assert all(f"site-packages/{name}/" in found for name in python_docs.PACKAGES)
    assert "/tests/" not in found


def test_packages_documentation_is_read_without_importing_them():
    code = "import sys; from albert_jax.data.text.python_docs import read_docs as read; "
    code += "print(len(next(read('package-docs'))), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    sentences, *modules = done.stdout.split()
    assert int(sentences) >= python_docs.MIN_SENTENCES
    assert not {"flax", "jax", "scipy", "matplotlib", "optax"} & set(modules)


def test_underlined_headings_are_no_part_of_a_sentence():
    text = "Rotate an array.\n\nParameters\n----------\naxis : int\n    The axis to rotate around."
    assert python_docs._sentences(text, "en") == ["axis : int The axis to rotate around."]
    assert python_docs._sentences(f"Notes\n=====\n{text}", "en")[-1].endswith("rotate around.")


def test_reading_pythons_documentation_imports_no_module_of_it():
    before = set(sys.modules)
    next(read_documents("python-docs"))
    list(python_docs._docstrings(Path(os.__file__).with_name("antigravity.py")))
    assert {name for name in set(sys.modules) - before if "." not in name} <= {"pydoc_data"}


def test_docstrings_come_in_the_order_of_the_source(write):
    source = '''"""M."""
class A:
  """A."""
  if x:
    def f(self):
      """F."""
def g(): """G."""
'''
    assert list(python_docs._docstrings(write(source, "m.py"))) == ["M.", "A.", "F.", "G."]
    assert list(python_docs._docstrings(write("def (:", "broken.py"))) == []
