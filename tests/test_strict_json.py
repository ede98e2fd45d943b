"""JSON that nobody has checked: what is not defined is refused, and every member has the type that its reader names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lfm_onnx.errors import ArtifactError
from lfm_onnx.strict_json import JsonObject, parse_json


def json_object(**members: Any) -> JsonObject:
    return JsonObject(members, "some.json", ArtifactError)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": 1, "a": 2}', 'key "a" appears twice'),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"{", "not JSON: "),
        (rb'{"a": ["\ud83d"]}', r"\\ud83d is half of a surrogate pair"),
        (rb'{"\uDE00": 1}', r"\\ude00 is half of a surrogate pair"),
    ],
)
def test_what_the_standard_does_not_define_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_an_escaped_surrogate_pair_is_one_character() -> None:
    assert parse_json(rb'["\ud83d\ude00", "\u00e9\ud7ff"]') == ["\U0001f600", "\u00e9\ud7ff"]


@pytest.mark.parametrize(
    ("members", "read", "message"),
    [
        ({}, lambda o: o.integer("count"), "count is missing, expected an integer"),
        ({"count": True}, lambda o: o.integer("count", 1), "count is true, expected an integer of 1 or more"),
        ({"count": 5}, lambda o: o.integer("count", 1, 4), "count is 5, expected an integer from 1 to 4"),
        ({"share": "1"}, lambda o: o.number("share", 0, 1), 'share is "1", expected a number from 0 to 1'),
        ({"share": float("nan")}, lambda o: o.number("share", 0, 1), "share is NaN, expected a number from 0 to 1"),
        ({"on": 1}, lambda o: o.flag("on"), "on is 1, expected true or false"),
        ({"name": None}, lambda o: o.text("name"), "name is null, expected a text"),
        ({"name": "c"}, lambda o: o.text("name", ("a", "b")), 'name is "c", expected one of a, b'),
        ({"file": "../a"}, lambda o: o.path_inside("file"), 'file is "../a", expected a path that stays in the folder'),
        ({"file": "C:\\a"}, lambda o: o.path_inside("file"), "expected a path that stays in the folder"),
        ({"inner": []}, lambda o: o.object("inner"), "inner is [], expected an object"),
        ({"inner": {"n": ""}}, lambda o: o.object("inner").integer("n"), 'inner.n is "", expected an integer'),
        ({"all": [{}, 1]}, lambda o: o.objects("all"), "all[1] is 1, expected an object"),
        ({"all": [{}]}, lambda o: o.objects("all")[0].text("n"), "all[0].n is missing, expected a text"),
        ({"sizes": [1, "2"]}, lambda o: o.integers("sizes"), 'sizes is [1, "2"], expected a list, each an integer'),
        ({"names": "ab"}, lambda o: o.texts("names"), 'names is "ab", expected a list of texts'),
        ({"a\nb": 1}, lambda o: o.all_texts(), '"a\\nb" is 1, expected a text'),
    ],
)
def test_a_wrong_member_is_named_with_what_was_found_and_expected(
    members: dict[str, Any], read: Callable[[JsonObject], Any], message: str
) -> None:
    with pytest.raises(ArtifactError) as caught:
        read(json_object(**members))
    assert str(caught.value).startswith("some.json: ") and str(caught.value).endswith(message)


def test_members_of_the_right_type_are_given_as_they_are() -> None:
    members = json_object(count=3, share=1, on=False, name="a", file="onnx/model.onnx", inner={"n": 1}, sizes=[1, 2])
    assert (members.integer("count", 1), members.number("share", 0, 1), members.flag("on")) == (3, 1.0, False)
    assert (members.text("name", ("a",)), members.path_inside("file")) == ("a", "onnx/model.onnx")
    assert members.object("inner").all_integers() == {"n": 1} and members.integers("sizes") == [1, 2]
    assert members.integer("other", default=7) == 7 and "other" not in members


def test_a_file_that_is_missing_too_large_or_no_object_is_named_with_the_advice(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    with pytest.raises(ArtifactError, match=r"some\.json: cannot be read: No such file"):
        JsonObject.read(path, ArtifactError)
    path.write_text("[1]")
    with pytest.raises(ArtifactError, match=r"some\.json: expected a JSON object, found \[1\]; export again"):
        JsonObject.read(path, ArtifactError, advice="export again")
    path.write_bytes(b" " * (2 << 20))
    with pytest.raises(ArtifactError, match="larger than 1 MB"):
        JsonObject.read(path, ArtifactError, most_bytes=1 << 20)
