"""Finds out in which encoding a caption was saved, and decodes it. Unicode is told by its form, the
older encodings of each language by how common their letters would be.
"""

import codecs
import unicodedata
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)

# All costs are in bits: what a letter would take in a text of its language.
MIN_MARGIN = 8  # between the likeliest encoding and the next
MAX_BITS_PER_LETTER = 8  # a text in no known language costs more
MAX_BITS_PER_IDEOGRAPH = 16
MAX_BITS_FROM_OTHERS = 30  # what the other captions of a dataset can say about one
MAX_JUDGED_CHARACTERS = 4000
MAX_JUDGED_BYTES = 64 * 1024
_RARE, _SYMBOL = 20.0, 16.0
_OUT_OF_PLACE = 10.0  # a capital after a small letter, a letter between digits, an ideograph in a word
_MIXED_SCRIPTS = 16.0  # in one word

_MARKS = (  # the longest first: UTF-16's is the beginning of UTF-32's
    (codecs.BOM_UTF32_LE, "utf_32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf_32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf_16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf_16", "UTF-16"),
    (codecs.BOM_UTF8, "utf_8_sig", "UTF-8"),
    (b"\x84\x31\x95\x33", "gb18030", "GB18030"),
)
_ESCAPES = ((b"\x1b$)C", "iso2022_kr", "ISO-2022-KR"), (b"\x1b", "iso2022_jp_2", "ISO-2022-JP"))

_SIMPLIFIED = (
    "的一是了我不人在他有这个上们来到时大地为子中你说生国年着就那和要她出也得里后自以会家可下而过天去能对小多然于心学么之都"
    "好看起发当没成只如事把还用第样道想作种开美总从无情己面最女但现前些所同日手又行意动方期它头经长儿回位分爱老因很给名法间"
    "知世什两次使身者被高已亲其进此话常与活正感见明问力理点文几定本公特做外孩相西果走将月十实向声车全信重三机工物气每并别真"
    "打太新比才便夫再书部水像眼等体却加电主界门利海受听表德少克代员许先口由死安写性马光白或住难望教命花结乐色更拉东神记处让"
    "母父应直字场平报友关放至张认接告入笑内英军候民岁往何度山觉路带万男边风解叫任金快原吃妈变通师立象数四失满战远格士音轻目"
    "条呢红黑蓝绿黄灰粉紫橙棕站坐穿戴衣服裙裤鞋帽发短卷单双独背景室草树木城市街房图片照画穿着"
    "猫狗鸟鱼玩具杯桌椅微笑朝镜头看向观众蹲躺跑拿握眉嘴唇脸耳鼻肩胸腰腿脚指雪雨云夜晚春夏秋冬"
)
_TRADITIONAL = (
    "的一是了我不人在他有這個上們來到時大地為子中你說生國年著就那和要她出也得裡後自以會家可下而過天去能對小多然於心學麼之都"
    "好看起發當沒成只如事把還用第樣道想作種開美總從無情己面最女但現前些所同日手又行意動方期它頭經長兒回位分愛老因很給名法間"
    "知世什兩次使身者被高已親其進此話常與活正感見明問力理點文幾定本公特做外孩相西果走將月十實向聲車全信重三機工物氣每並別真"
    "打太新比才便夫再書部水像眼等體卻加電主界門利海受聽表德少克代員許先口由死安寫性馬光白或住難望教命花結樂色更拉東神記處讓"
    "母父應直字場平報友關放至張認接告入笑內英軍候民歲往何度山覺路帶萬男邊風解叫任金快原吃媽變通師立象數四失滿戰遠格士音輕目"
    "條呢紅黑藍綠黃灰粉紫橙棕站坐穿戴衣服裙褲鞋帽髮短捲單雙獨背景室草樹木城市街房圖片照畫"
    "貓狗鳥魚玩具杯桌椅微笑朝鏡頭觀眾蹲躺跑拿握眉嘴唇臉耳鼻肩胸腰腿腳指雪雨雲夜晚春夏秋冬"
)
_JAPANESE = (
    "日一国会人年大十二本中長出三時行見月後前生五間上東四今金九入学高円子外八六下来気小七山話女北午百書先名川千水半男西電校"
    "語土木聞食車何南万毎白天母火右読友左休父雨赤青黒緑黄紫茶色髪目顔手足口耳服着立座背景屋内部空花猫犬鳥魚街道夜朝海森町家"
    "写真画像絵笑持向正面横全身体物品新古明暗短丸少多美私彼自分事方者地場合的作思言知使用動新回同通発度表力世界法取開心主"
    "実定現理意代不対性業成数文化当公然加点特結最変強重教関原無情感相海路風楽帽靴眼鏡机椅杯皿紙箱光影壁窓床雲雪"
)
_KOREAN = (
    "이다는을의에가하고한은기를지로사어도서자리시인아스나대해일그있수라들정전여부으니보구장마게제주원소오조상안할비과만국우"
    "동공면모요무성연세물신경미음거선유위내개년없은들것때말간방생학화교실트드르크프레린머리색옷입검은흰빨간파란노란녹분홍보라"
    "소녀년여자남성사람서앉아있는배경앞뒤옆모습얼굴눈코입손발길고짧긴치바지셔츠신발안경강양이꽃나무집창문책상의자컵장난감"
    "바라며웃진림카메쪽향찍단순야외도밤하늘구름"
)
_COMMON = {
    "gb18030": frozenset(_SIMPLIFIED),
    "cp950": frozenset(_TRADITIONAL),
    "cp932": frozenset(_JAPANESE),
    "euc_jp": frozenset(_JAPANESE),
    "cp949": frozenset(_KOREAN),
    "utf_16_le": frozenset(_SIMPLIFIED + _TRADITIONAL + _JAPANESE + _KOREAN),
    "utf_16_be": frozenset(_SIMPLIFIED + _TRADITIONAL + _JAPANESE + _KOREAN),
}
_EAST_ASIAN_PUNCTUATION = frozenset("，。、！？：；「」『』（）《》“”‘’…—·・ー　【】～")
# The usual characters of each encoding: the range of its first byte in the national standard.
_LEVEL_ONE = {
    "gb18030": ("gb2312", 0xB0, 0xD7),
    "cp950": ("big5", 0xA4, 0xC6),
    "cp932": ("euc_jp", 0xB0, 0xCF),
    "euc_jp": ("euc_jp", 0xB0, 0xCF),
    "cp949": ("euc_kr", 0xB0, 0xC8),
}
_CYRILLIC = ("CYRILLIC", "оеаинтсрвлкмдпуіяыьгзїєбчйхжшюцщэфъёґ")
_WESTERN = "éèàêçäöüßáíóúñåæøôîûãõïëâœùìò"
# The script of each alphabet and its letters, commonest first; of Latin only those with accents.
_ALPHABETS = {
    "cp1252": ("LATIN", _WESTERN),
    "cp1250": ("LATIN", "ąęłśżźćńóěščřžýáíéúůďťňőűöüäôăâîşţđß"),
    "cp1254": ("LATIN", "ğşıçöüâîûİ"),
    "cp1251": _CYRILLIC,
    "koi8_r": _CYRILLIC,
    "cp866": _CYRILLIC,
    "cp1253": ("GREEK", "αοιετσνηυρπκμλςδγάίόέχωύήθφώβξζψ"),
    "cp1255": ("HEBREW", "יוהלאתרבשמםנכחדעקפטןצגסזךףץ"),
    "cp1256": ("ARABIC", "اليمونرتبةعدسفهكقحجشصطخىذزأءثئضغؤظ"),
    "cp874": ("THAI", "านรอกเงมยลวดทสต่ะป้บคีห็แิจัพชขใไโผุูื์ธถซ"),
}
_USUAL_SIGNS = frozenset("ºª«»°–—“”‘’„‚…·•€£©®™×½¿¡§№")
# The codecs, with their names for users, and the bits that a rare one must save.
_ENCODINGS = {
    "cp1252": ("Windows-1252", -4),
    "gb18030": ("GBK", 1),
    "cp950": ("Big5", 2),
    "cp932": ("Shift-JIS", 2),
    "cp949": ("EUC-KR", 2),
    "cp1251": ("Windows-1251", 1),
    "euc_jp": ("EUC-JP", 5),
    "cp1250": ("Windows-1250", 2),
    "cp1254": ("Windows-1254", 2),
    "cp1253": ("Windows-1253", 14),
    "cp1255": ("Windows-1255", 8),
    "cp1256": ("Windows-1256", 14),
    "cp874": ("Windows-874", 14),
    "koi8_r": ("KOI8-R", 10),
    "cp866": ("DOS 866", 10),
    "utf_16_le": ("UTF-16", 12),
    "utf_16_be": ("UTF-16", 12),
}


class UndecidedEncoding(ValueError):
    """No encoding is clearly likelier than all others; the message says what came."""


@dataclass(frozen=True)
class DecodedText:
    """doubt: the other encoding that it could be in, and its text in that; "" for none."""

    text: str
    encoding: str
    doubt: str = ""


def decode_text(content: bytes) -> DecodedText:
    """Decode one text. Raises UndecidedEncoding."""
    decoded = decode_texts({"": content})[""]
    if isinstance(decoded, UndecidedEncoding):
        raise decoded
    return decoded


def decode_texts(
    contents: Mapping[KeyT, bytes], check_interrupted: Callable[[], None] = lambda: None
) -> dict[KeyT, DecodedText | UndecidedEncoding]:
    """Decode the texts of one dataset. They were most likely saved in the same way, so a short text
    that alone could be in several encodings is decided by the others.
    """
    decoded: dict[KeyT, DecodedText | UndecidedEncoding] = {}
    costs_by_key: dict[KeyT, dict[str, float]] = {}
    for key, content in contents.items():
        check_interrupted()
        try:
            unicode_text = _decode_unicode(content)
        except UndecidedEncoding as error:
            decoded[key] = error
            continue
        if unicode_text is None:
            costs_by_key[key] = _judge(content)
        else:
            decoded[key] = unicode_text
    excess = _sum_excess(costs_by_key)
    for key, costs in costs_by_key.items():
        decoded[key] = _choose(contents[key], _add_evidence(costs, excess))
    return _settle_gbk({key: decoded[key] for key in contents}, contents)


def _settle_gbk(
    decoded: dict[KeyT, DecodedText | UndecidedEncoding], contents: Mapping[KeyT, bytes]
) -> dict[KeyT, DecodedText | UndecidedEncoding]:
    """Decide about texts that have the form of UTF-8 by chance: they are GBK only if others are,
    and if no other text is surely UTF-8. Either way the text says what else it could be.
    """
    texts = {key: text for key, text in decoded.items() if isinstance(text, DecodedText)}
    by_chance = {
        key: other
        for key, text in texts.items()
        if text.encoding == "UTF-8" and (other := _read_common_gbk(text.text, contents[key]))
    }
    sure = {text.encoding for key, text in texts.items() if key not in by_chance and not text.text.isascii()}
    for key, other in by_chance.items():
        readings = {"UTF-8": texts[key].text, "GBK": other}
        chosen, left = ("GBK", "UTF-8") if "GBK" in sure and "UTF-8" not in sure else ("UTF-8", "GBK")
        decoded[key] = DecodedText(readings[chosen], chosen, f"{left}: {readings[left][:40]!r}")
    return decoded


def _read_common_gbk(text: str, content: bytes) -> str:
    """Return the text in GBK if it is of common characters, and accents of no Latin word in UTF-8;
    "" for all others.
    """
    if text.isascii() or len(content) > MAX_JUDGED_CHARACTERS or max(text) > "\u07ff":  # GBK gives no three bytes
        return ""
    padded = f" {text} "
    foreign = [position for position, character in enumerate(padded) if not character.isascii()]
    if any(_is_latin(padded[position - 1]) or _is_latin(padded[position + 1]) for position in foreign):
        return ""
    other = _decode_strictly(content, "gb18030") or ""
    is_common = all(character.isascii() or character in _COMMON["gb18030"] for character in other)
    return other if is_common else ""


def _decode_unicode(content: bytes) -> DecodedText | None:
    """Decode what shows by its form that it is Unicode, or switches by escape codes; None for other
    texts. Raises UndecidedEncoding.
    """
    for mark, codec, name in _MARKS:
        if content.startswith(mark):
            text = _decode_strictly(content, codec)
            if text is None:
                raise UndecidedEncoding(f"it begins as {name}, but is damaged")
            return DecodedText(text.removeprefix("\ufeff"), name)
    if b"\0" in content:
        return _decode_utf16(content)
    for escape, codec, name in _ESCAPES:
        if escape in content and (text := _decode_strictly(content, codec)) is not None:
            return DecodedText(text, name)
    try:
        return DecodedText(content.decode("utf-8"), "UTF-8")
    except UnicodeDecodeError:
        return None


def _decode_utf16(content: bytes) -> DecodedText:
    """Decode UTF-16 without its mark. Text has more ASCII (spaces, commas) in the right byte
    order.
    """
    texts = [text for codec in ("utf_16_le", "utf_16_be") if (text := _decode_strictly(content, codec)) is not None]
    texts = sorted(texts, key=lambda text: -sum(character.isascii() for character in text))
    if not texts:
        raise UndecidedEncoding("it has NUL characters and is no UTF-16")
    return DecodedText(texts[0], "UTF-16")


def _decode_strictly(content: bytes, codec: str) -> str | None:
    """Return the text, or None if it has bytes or characters that no caption has."""
    try:
        text = content.decode(codec)
    except UnicodeDecodeError:
        return None
    return None if any(_is_never_in_text(character) for character in text) else text


@cache
def _is_never_in_text(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs") and character not in "\t\n\r\f\v"


def _judge(content: bytes) -> dict[str, float]:
    """Return the bits that the text takes in every encoding in which it is one."""
    costs = {}
    beginning = _cut_beginning(content)
    for codec, (_, prior) in _ENCODINGS.items():
        text = _decode_strictly(beginning, codec)
        if text is not None and (codec not in ("utf_16_le", "utf_16_be") or _is_east_asian(text)):
            costs[codec] = prior + _measure(text, codec)
    return costs


def _cut_beginning(content: bytes) -> bytes:
    """Return whole lines, in which no letter is cut."""
    return content if len(content) <= MAX_JUDGED_BYTES else content[: content.rfind(b"\n", 0, MAX_JUDGED_BYTES) + 1]


def _measure(text: str, codec: str) -> float:
    bits, num_judged = 0.0, 0
    padded = f" {text} "
    for position, character in enumerate(text, start=1):
        if character.isascii():
            continue
        previous, following = padded[position - 1], padded[position + 1]
        bits += (
            _measure_letter(character, previous, following, codec)
            if codec in _ALPHABETS
            else _measure_east_asian(character, codec) + _OUT_OF_PLACE * (_is_latin(previous) and _is_latin(following))
        )
        num_judged += 1
        if num_judged == MAX_JUDGED_CHARACTERS:
            break
    return bits


@cache
def _measure_east_asian(character: str, codec: str) -> float:
    if character in _EAST_ASIAN_PUNCTUATION:
        return 7
    if "\u3041" <= character <= "\u30ff":
        return 6.5 if codec not in ("gb18030", "cp950", "cp949") else _SYMBOL
    if "\uff01" <= character <= "\uff5e":
        return 9
    if character in _COMMON[codec]:
        return 8 if "\uac00" <= character <= "\ud7a3" else 9
    if not _is_east_asian(character):
        return _SYMBOL
    standards = [_LEVEL_ONE[codec]] if codec in _LEVEL_ONE else _LEVEL_ONE.values()
    return 13 if any(_is_level_one(character, *standard) for standard in standards) else _RARE


def _is_level_one(character: str, standard: str, first: int, last: int) -> bool:
    try:
        return first <= character.encode(standard)[0] <= last
    except UnicodeEncodeError:
        return False


def _is_east_asian(text: str) -> bool:
    return all(
        "\u3000" <= character <= "\u30ff"
        or "\u3400" <= character <= "\u9fff"
        or "\uac00" <= character <= "\ud7a3"
        or "\uff00" <= character <= "\uffef"
        or character in _EAST_ASIAN_PUNCTUATION
        for character in text
    )


def _measure_letter(character: str, previous: str, following: str, codec: str) -> float:
    """Bits of a letter or sign in an alphabet, by its neighbours."""
    script, letters = _ALPHABETS[codec]
    if character in _USUAL_SIGNS or not _is_letter(character):
        is_inside_word = previous.isalpha() and (following.isalpha() or character in "¿¡")
        return 8 if character in _USUAL_SIGNS and not is_inside_word else _SYMBOL
    if _script(character) != script:
        return _SYMBOL
    bits = 3.0 if character.isupper() else 0.0
    if character.isupper() and previous.islower():
        bits = _OUT_OF_PLACE
    if previous.isdigit() and following.isdigit():
        bits += _OUT_OF_PLACE
    if script == "LATIN":
        after_accent = previous.isalpha() and not previous.isascii()
        return bits + (6 if character.lower() in letters else 11) + 4 * after_accent
    is_mixed = _is_latin(previous) or _is_latin(following)
    is_alone = not (previous.isalpha() or following.isalpha())  # as are à and è in western texts
    return bits + _measure_rank(letters.find(character.lower())) + _MIXED_SCRIPTS * is_mixed + 6 * is_alone


def _measure_rank(rank: int) -> float:
    """Bits of the letter at this place of an alphabet that is sorted by how common its letters
    are.
    """
    if rank < 0:
        return 8.0
    return 3.5 if rank < 6 else 4.5 if rank < 14 else 6.0 if rank < 24 else 8.0


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalpha()


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM"


@cache
def _script(character: str) -> str:
    return unicodedata.name(character, "").split(" ")[0]


def _sum_excess(costs_by_key: Mapping[KeyT, dict[str, float]]) -> dict[str, float]:
    """Return for each encoding by how much it is worse than the best, over all texts."""
    excess = dict.fromkeys(_ENCODINGS, 0.0)
    for costs in costs_by_key.values():
        for codec, more in _excess_of(costs).items():
            excess[codec] += more
    return excess


def _excess_of(costs: dict[str, float]) -> dict[str, float]:
    best = min(costs.values(), default=0.0)
    return {
        codec: min(costs.get(codec, float("inf")) - best, MAX_BITS_FROM_OTHERS) if costs else 0.0
        for codec in _ENCODINGS
    }


def _add_evidence(costs: dict[str, float], excess: dict[str, float]) -> dict[str, float]:
    """Add what the other texts say."""
    own = _excess_of(costs)
    others = {codec: excess[codec] - own[codec] for codec in costs}
    best = min(others.values(), default=0.0)
    return {codec: cost + min(others[codec] - best, MAX_BITS_FROM_OTHERS) for codec, cost in costs.items()}


def _choose(content: bytes, costs: dict[str, float]) -> DecodedText | UndecidedEncoding:
    beginning = _cut_beginning(content)
    likeliest = sorted(costs, key=lambda codec: costs[codec])
    if not likeliest or costs[likeliest[0]] > _find_limit(beginning, likeliest[0]):
        return UndecidedEncoding("it is neither UTF-8 nor a readable text in another encoding")
    best, text = likeliest[0], beginning.decode(likeliest[0])
    rivals = [
        codec
        for codec in likeliest[1:]
        if costs[codec] < costs[best] + _find_margin(best, codec) and beginning.decode(codec) != text
    ]
    if rivals:
        names = " or ".join(_ENCODINGS[codec][0] for codec in (best, rivals[0]))
        return UndecidedEncoding(f"it is not UTF-8, and could be {names}")
    name = _ENCODINGS[best][0]
    try:
        return DecodedText(content.decode(best), name)
    except UnicodeDecodeError:
        return UndecidedEncoding(f"it begins as {name}, but is damaged")


def _find_limit(content: bytes, codec: str) -> float:
    num_judged = sum(not character.isascii() for character in content.decode(codec))
    per_character = MAX_BITS_PER_LETTER if codec in _ALPHABETS else MAX_BITS_PER_IDEOGRAPH
    return per_character * min(num_judged, MAX_JUDGED_CHARACTERS) + _ENCODINGS[codec][1] + MIN_MARGIN


def _find_margin(best: str, rival: str) -> float:
    """Among Latin alphabets the priors decide: they share most letters."""
    are_latin = all(_ALPHABETS.get(codec, ("",))[0] == "LATIN" for codec in (best, rival))
    return 0 if are_latin else MIN_MARGIN
