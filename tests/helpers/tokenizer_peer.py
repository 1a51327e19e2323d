# SPDX-License-Identifier: Apache-2.0
"""Makes what tests compare with of transformers' fast tokenizers. Run once for each major version,
by a Python that has it and none of this package:

    python tests/helpers/tokenizer_peer.py tests/data/tokenizer OUT

writes OUT/transformersN.json.xz, ids and offsets of strings, and of version 5 the tokenizer.json
that it saves, without SentencePiece's rules, which spiece.model has too.
"""

import json
import lzma
import sys
import tempfile
from pathlib import Path

TRICKY = [
    'The "quick" (brown) fox-trot, 1,000 times.  ',
    "  \t It's ``quoted'' text – £5, €6,50; 19,000,000.\n",
    "x199, in 92000, 3,5",
    "Ünïcödé naïve ÆØÅ straße ΣΊΣΥΦΟΣ İstanbul ﬁne ½ ① ﷺ",
    "한국어 텍스트, 日本語のテキスト、 中文文本。",
    "हिन्दी ไทย العَرَبِيَّة עִבְרִית",
    "zero\u200bwidth\u00a0space\u3000wide \ufeffmark 👩‍👩‍👧 e\u0301",
    "[MASK] in [CLS] the <pad> text [SEP] , <unk>?",
    '(a) "b" -c- .d. –e– £f€',
    "▁under▁scored _ text",
    "",
    " ",
    "𝒜𝓁𝒷𝑒𝓇𝓉 ℌ ｆｕｌｌ ｗｉｄｔｈ",
]
CHINESE = [
    "今天天气很好，我们去公园玩吧。",
    "ALBERT是一个轻量的BERT模型 (2019年)!",
    "Hello world, hello Worlds unhappiness",
    "Résumé NAÏVE café 中国China中国",
    "数字12345,6和100%",
    "[MASK]天气[SEP]好 [UNK]",
    "繁體字與简体字\u3000混排\tok",
    "超長" + "a" * 120,
    "ありがとう 한국 \u0301",
    "",
]


def encode(tokenizer, texts):
    rows = []
    for text in texts:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        rows.append([text, found["input_ids"], [list(x) for x in found["offset_mapping"]]])
    return rows


def main() -> None:
    import transformers

    files, out = map(Path, sys.argv[1:])
    out.mkdir(exist_ok=True)
    golden = json.loads(lzma.decompress((files / "tokenizer_cased.json.xz").read_bytes()))
    texts = [row["text"] for row in golden["strings"]] + TRICKY
    major = transformers.__version__.split(".")[0]
    results = {"transformers": transformers.__version__}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = lzma.decompress((files / "cased.model.xz").read_bytes())
        (place / "spiece.model").write_bytes(model)
        for name, settings in (("lower", {}), ("cased", {"do_lower_case": False})):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                place, tokenizer_type="albert", **settings
            )
            saved = place / name
            tokenizer.save_pretrained(saved)
            (saved / "config.json").write_text('{"model_type": "albert"}')
            again = transformers.AutoTokenizer.from_pretrained(saved)
            results[name] = encode(again, texts)
        if major == "5":
            document = json.loads((place / "lower" / "tokenizer.json").read_text())
            for step in document["normalizer"]["normalizers"]:
                if step["type"] == "Precompiled":
                    step["precompiled_charsmap"] = ""
            text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
            data = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
            (out / "transformers5_tokenizer.json.xz").write_bytes(data)
            config = (place / "lower" / "tokenizer_config.json").read_text()
            (out / "transformers5_tokenizer_config.json").write_text(config)
    for name, settings in (
        ("wordpiece", {}),
        ("wordpiece_cased", {"do_lower_case": False}),
        ("wordpiece_accents", {"strip_accents": False}),
    ):
        tokenizer = transformers.BertTokenizerFast(str(files / "zh_vocab.txt"), **settings)
        results[name] = encode(tokenizer, CHINESE)
    text = json.dumps(results, ensure_ascii=False)
    data = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
    (out / f"transformers{major}.json.xz").write_bytes(data)


if __name__ == "__main__":
    main()
