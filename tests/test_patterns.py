"""Braces and stars: what they stand for, against bash, and the sentence for each that is wrong."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnetkit.data.patterns import expand
from resnetkit.errors import UserError
from store_server import Proxy


def test_padding_is_kept_and_the_last_braces_turn_fastest() -> None:
    assert expand("x-{008..011}.tar") == ["x-008.tar", "x-009.tar", "x-010.tar", "x-011.tar"]
    assert expand("{a,b}/{9..10}") == ["a/9", "a/10", "b/9", "b/10"]
    assert expand("s3://b/t-{00000..01023}.tar")[-1] == "s3://b/t-01023.tar"
    assert expand("plain name.tar") == ["plain name.tar"]
    assert expand("{7..7}") == ["7"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@settings(max_examples=20)
@given(st.integers(0, 120), st.integers(0, 9), st.integers(1, 5), st.lists(st.sampled_from("abc"), unique=True))
def test_as_bash_does(begin: int, more: int, digits: int, listed: list[str]) -> None:
    """Of numbers of one length; bash has no opinion on a list of one."""
    digits = max(digits, len(str(begin + more)))
    pattern = f"n-{{{begin:0{digits}}..{begin + more:0{digits}}}}"
    if len(listed) > 1:
        pattern += f"/{{{','.join(listed)}}}.tar"
    found = subprocess.run(["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True)
    assert expand(pattern) == found.stdout.split()


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("x-{000..123.tar", "do not close"),
        ("x-000..123}.tar", "do not close"),
        ("x-{a,{b,c}}", "stand in one another"),
        ("x-{9..1}", r"counts downwards; write {1..9}"),
        ("x-{00..123}", r"2 digits on one side and 3 on the other; write {000..123}"),
        ("x-{1..010}", r"write {001..010}"),
        ("x-{0..9999999}", "more than 1,000,000 names"),
        ("x-{000..999}{000..999}{0..9}", "more than 1,000,000 names"),
        ("x-{0..99999999999999999999}", "more than 1,000,000 names"),
        ("x-{a}", "neither a range"),
        ("x-{}", "neither a range"),
        ("x-{a..f}", "neither a range"),
        ("x-{1..2..3}", "neither a range"),
        ("x-{a,b,a}", "stands for x-a more than once"),
        ("no/such/folder/*.tar", "fits no file"),
        ("a/**/b.tar", r"\*\* is not understood"),
        ("https://host/x-*.tar", "web servers do not list files"),
        ("nonsense://host/x-*.tar", "no store is called 'nonsense'"),
    ],
)
def test_what_is_wrong_is_said(pattern: str, sentence: str) -> None:
    if pattern.startswith("http"):
        pytest.importorskip("aiohttp")
    with pytest.raises(UserError, match=sentence) as error:
        expand(pattern)
    assert str(error.value).startswith(pattern)


def test_stars_find_files_in_order(tmp_path: Path) -> None:
    for name in ("b-1.tar", "a-10.tar", "a-2.tar", "c[1]-3.tar", "a.txt"):
        (tmp_path / name).touch()
    (tmp_path / "a-folder.tar").mkdir()
    assert expand(f"{tmp_path}/{{b,a}}-*.tar") == [f"{tmp_path}/{x}" for x in ("b-1.tar", "a-10.tar", "a-2.tar")]
    assert expand(f"{tmp_path}/c[1]-*.tar") == [f"{tmp_path}/c[1]-3.tar"]
    with pytest.raises(UserError, match="more than once"):
        expand(f"{tmp_path}/{{a,*}}-2.tar")


def test_a_file_whose_name_has_braces_or_stars_is_itself(tmp_path: Path) -> None:
    for name in ("x{1..3}.tar", "*.tar"):
        (tmp_path / name).touch()
        assert expand(f"{tmp_path}/{name}") == [f"{tmp_path}/{name}"]


def test_stars_find_objects_in_order(store: Proxy) -> None:
    for name in ("t/b-1.tar", "t/a-2.tar", "t/a-10.tar", "t/a[2].tar", "t/a-3/inside.tar", "t/a.txt"):
        store.add(name, b"x")
    bucket = f"s3://{store.bucket}"
    names = ("t/b-1", "t/a-10", "t/a-2", "t/a[2]")
    assert expand(f"{bucket}/{{t/b-*,t/a-*,*/a[2]}}.tar") == [f"{bucket}/{name}.tar" for name in names]
    with pytest.raises(UserError, match="fits no object"):
        expand(f"{bucket}/t/z*.tar")
