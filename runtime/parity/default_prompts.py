# ruff: noqa: RUF001
"""Texts and chats that parity compares on unless others are given: several scripts, code, figures, tools."""

from __future__ import annotations

from typing import Any

TEXTS: tuple[tuple[str, str], ...] = (
    (
        "english prose",
        "The lighthouse keeper wrote down the weather every evening, even on the evenings when there was none to speak "
        "of. Wind from the west, he wrote, and then, after a pause, sea calm, one sail on the horizon. In forty years "
        "the notebooks had filled two shelves. Nobody read them, but he had found that a day which has been written "
        "down is easier to put away, and that the small differences between one calm and another were the only news "
        "that the island had ever produced.",
    ),
    (
        "german",
        "Der Zug nach Süden hatte zwanzig Minuten Verspätung, und so blieb Zeit für einen zweiten Kaffee. Am "
        "Nebentisch erklärte ein Großvater seiner Enkelin, weshalb Brücken im Sommer länger sind als im Winter: "
        "Stahl dehnt sich aus, wenn er warm wird, sagte er, und deshalb lässt man an den Enden eine Fuge.",
    ),
    (
        "french",
        "Chaque matin, la boulangère ouvrait les volets avant le lever du jour. L'odeur du pain chaud descendait la "
        "rue jusqu'au canal, où les pêcheurs démêlaient leurs lignes. « Il fera beau », disait-elle à chacun, et le "
        "plus souvent elle avait raison.",
    ),
    (
        "spanish",
        "Para preparar la sopa se cortan tres tomates maduros, una cebolla pequeña y medio pimiento. Se sofríen a "
        "fuego lento durante quince minutos, se añade el caldo y, al final, un puñado de arroz. ¿El secreto? No tener "
        "prisa.",
    ),
    (
        "russian",
        "Вечером на даче собрались соседи. Говорили о погоде, о яблоках, о том, что мост через реку снова закрыт до "
        "весны. Потом кто-то принёс гитару, и разговор утих сам собой.",
    ),
    (
        "japanese",
        "駅前の小さな本屋は、毎週土曜日の朝に読書会を開いている。今月の課題は、海辺の町を舞台にした短い物語だ。"
        "参加者は十人ほどで、お茶を飲みながら感想を話し合う。",
    ),
    (
        "chinese",
        "山脚下有一条小河，春天的时候水很急，到了夏天就可以赤脚走过去。村里的孩子们在岸边搭了一座木桥，桥上只能站两个人。",
    ),
    (
        "arabic",
        "في السوق القديم بائع ساعات يعرف كل زبائنه بأسمائهم. يقول إن الساعة التي تتأخر دقيقة كل يوم خير من الساعة "
        "المتوقفة، لأنها على الأقل تحاول.",
    ),
    (
        "korean",
        "도서관은 언덕 위에 있어서 창가에 앉으면 항구가 한눈에 보인다. 비가 오는 날에는 배들이 천천히 움직이고, "
        "책장을 넘기는 소리만 들린다.",
    ),
    (
        "python",
        "def moving_average(values: list[float], width: int) -> list[float]:\n"
        '    """Mean of each window of `width` neighbours."""\n'
        "    if width < 1:\n"
        '        raise ValueError(f"width must be positive, got {width}")\n'
        "    total, means = sum(values[:width]), []\n"
        "    for i in range(len(values) - width + 1):\n"
        "        means.append(total / width)\n"
        "        if i + width < len(values):\n"
        "            total += values[i + width] - values[i]\n"
        "    return means\n",
    ),
    (
        "json",
        '{"station": "harbour", "readings": [{"time": "06:00", "celsius": 11.4, "wind": null}, {"time": "12:00", '
        '"celsius": 17.25, "wind": {"from": "NNW", "knots": 9}}], "checked": true}',
    ),
    (
        "figures",
        "12 + 7 = 19; 144 / 12 = 12; 3.5 km = 3500 m; 2^10 = 1024; 17 * 23 = 391; 1/8 = 0.125; "
        "0 °C = 32 °F = 273.15 K; x² − 5x + 6 = 0 ⇒ x ∈ {2, 3}.",
    ),
)

CHATS: tuple[tuple[str, list[dict[str, Any]], list[dict[str, Any]] | None], ...] = (
    (
        "chat, first turn",
        [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is the difference between a lake and a pond?"},
        ],
        None,
    ),
    (
        "chat, later turn",
        [
            {"role": "user", "content": "Name a fruit that is yellow."},
            {"role": "assistant", "content": "A banana."},
            {"role": "user", "content": "And one that is red? Answer in one word."},
        ],
        None,
    ),
    (
        "chat, tools",
        [{"role": "user", "content": "How warm is it in Lisbon right now?"}],
        [
            {
                "name": "get_temperature",
                "description": "Current temperature of a city.",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["C", "F"]}},
                    "required": ["city"],
                },
            }
        ],
    ),
)
