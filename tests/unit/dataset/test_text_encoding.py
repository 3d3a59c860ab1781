"""Captions in the encodings that programs of many countries write."""

import random

import pytest

from tests.unit.dataset.folders import list_reasons, scan, write_photo
from trainers.dataset.report import Remark
from trainers.dataset.text_encoding import DecodedText, UndecidedEncoding, decode_text, decode_texts

TEXTS = [
    ("gbk", "GBK", "一个女孩站在草地上，穿着红色的裙子"),
    ("gbk", "GBK", "1girl, 长发, 微笑, 水彩画"),
    ("gb18030", "GBK", "一只棕色的玩具熊坐在木桌上"),
    ("big5", "Big5", "一個女孩站在草地上，穿著紅色的裙子"),
    ("cp932", "Shift-JIS", "赤いドレスを着た女の子が草原に立っている"),
    ("euc_jp", "EUC-JP", "赤いドレスを着た女の子が草原に立っている"),
    ("iso2022_jp", "ISO-2022-JP", "赤いドレスを着た女の子"),
    ("cp949", "EUC-KR", "빨간 드레스를 입은 소녀가 잔디밭에 서 있다"),
    ("cp1251", "Windows-1251", "девушка в красном платье стоит на траве"),
    ("koi8_r", "KOI8-R", "девушка в красном платье стоит на траве"),
    ("cp866", "DOS 866", "девушка в красном платье стоит на траве"),
    ("cp1253", "Windows-1253", "ένα κορίτσι με κόκκινο φόρεμα στέκεται στο γρασίδι"),
    ("cp1255", "Windows-1255", "ילדה בשמלה אדומה עומדת על הדשא"),
    ("cp1255", "Windows-1255", "חתול אדום יושב על כיסא"),
    ("cp1251", "Windows-1251", "меч и щит"),
    ("cp1256", "Windows-1256", "فتاة ترتدي فستانا أحمر تقف على العشب"),
    ("cp874", "Windows-874", "เด็กผู้หญิงในชุดสีแดงยืนอยู่บนสนามหญ้า"),
    ("cp1250", "Windows-1250", "příliš žluťoučký kůň"),
    ("cp1252", "Windows-1252", "un café “bleu” à côté d’une façade"),
    ("cp1252", "Windows-1252", "Mädchen in grünem Kleid"),
    ("cp1252", "Windows-1252", "ÉTÉ À LA PLAGE, 2ème"),
    ("utf_16_le", "UTF-16", "a red cat"),
    ("utf_16_be", "UTF-16", "a red cat, 红色的猫"),
    ("utf-16", "UTF-16", "红色的猫"),
    ("utf-32", "UTF-32", "红色的猫"),
    ("utf-8", "UTF-8", "红色的猫"),
    ("utf-8-sig", "UTF-8", "红色的猫"),
]


@pytest.mark.parametrize(("codec", "name", "text"), TEXTS, ids=[f"{codec} {text[:6]}" for codec, _, text in TEXTS])
def test_a_caption_is_decoded_and_its_encoding_named(codec, name, text):
    decoded = decode_text(text.encode(codec))
    assert (decoded.text, decoded.encoding) == (text, name)


def test_a_scan_reads_a_caption_in_gbk_and_says_so(tmp_path):
    text = "一个女孩站在草地上，穿着红色的裙子"
    write_photo(tmp_path / "a.png").with_suffix(".txt").write_bytes(text.encode("gbk"))
    dataset = scan(tmp_path)
    assert dataset.images[0].caption == text
    assert dataset.report.notes == [Remark("a.png", "a.txt is not UTF-8; it was read as GBK")]


def test_a_short_caption_in_gbk_that_is_valid_utf8_is_named(tmp_path):
    """The bytes of 猫 in GBK are those of è in UTF-8."""
    write_photo(tmp_path / "a.png").with_suffix(".txt").write_bytes("1girl, 猫".encode("gbk"))
    dataset = scan(tmp_path)
    assert dataset.images[0].caption == "1girl, è"
    reason = "a.txt was read as UTF-8, but could be GBK: '1girl, 猫'. If so, save all captions as UTF-8"
    assert dataset.report.notes == [Remark("a.png", reason)]


def test_such_a_caption_is_read_as_gbk_if_the_others_are(tmp_path):
    for name, text in (("a", "1girl, 猫"), ("b", "一个女孩站在草地上，穿着红色的裙子")):
        write_photo(tmp_path / f"{name}.png", colour=(len(text), 0, 0)).with_suffix(".txt").write_bytes(
            text.encode("gbk")
        )
    dataset = scan(tmp_path)
    assert [image.caption for image in dataset.images] == ["1girl, 猫", "一个女孩站在草地上，穿着红色的裙子"]
    reason = "a.txt was read as GBK, but could be UTF-8: '1girl, è'. If so, save all captions as UTF-8"
    assert dataset.report.notes[0] == Remark("a.png", reason)


@pytest.mark.parametrize("text", ["un café à côté d'une façade", "très", "caffè", "девушка в красном", "ילדה", "naïve"])
def test_usual_texts_in_utf8_are_not_doubted(text):
    decoded = decode_texts({"a": text.encode(), "b": "一个女孩站在草地上，穿着红色的裙子".encode("gbk")})["a"]
    assert isinstance(decoded, DecodedText) and (decoded.text, decoded.encoding, decoded.doubt) == (text, "UTF-8", "")


def test_a_short_caption_is_decided_by_the_others(tmp_path):
    texts = ["藍天白雲", "一個女孩站在草地上，穿著紅色的裙子", "一隻棕色的玩具熊坐在木桌上"]
    with pytest.raises(UndecidedEncoding, match="it is not UTF-8, and could be Big5 or"):
        decode_text(texts[0].encode("big5"))
    decoded = decode_texts({text: text.encode("big5") for text in texts})
    assert [each.text for each in decoded.values()] == texts  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "content", ["猫".encode("cp932"), b"\xfd\xff\x81\x8d\x90\xfe", b"a\0\0\0b", b"\xff\xfea"], ids=repr
)
def test_a_caption_that_cannot_be_decided_is_an_error_for_its_image(tmp_path, content):
    write_photo(tmp_path / "a.png").with_suffix(".txt").write_bytes(content)
    write_photo(tmp_path / "b.png", colour=(1, 0, 0))
    dataset = scan(tmp_path)
    assert [image.name for image in dataset.images] == ["b.png"]
    assert list_reasons(dataset)["a.png"].startswith("its caption a.txt cannot be used: it ")
    assert list_reasons(dataset)["a.png"].endswith(". Save it as UTF-8")


def test_any_bytes_are_decoded_or_refused():
    generator = random.Random(0)
    for _ in range(200):
        content = generator.randbytes(generator.randrange(1, 60))
        try:
            decode_text(content)
        except UndecidedEncoding:
            continue
