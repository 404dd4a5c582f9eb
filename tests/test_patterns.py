"""Braces in names, against bash's own."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnetkit.data.patterns import expand
from resnetkit.errors import UserError


def test_ranges_and_lists() -> None:
    assert expand("a.tar") == ["a.tar"]
    assert expand("x-{008..011}.tar") == ["x-008.tar", "x-009.tar", "x-010.tar", "x-011.tar"]
    assert expand("{train,val}/{0..1}") == ["train/0", "train/1", "val/0", "val/1"]
    assert len(expand("s3://b/x-{00000..01023}.tar")) == 1024


number = st.integers(0, 40).flatmap(lambda n: st.sampled_from([str(n), f"{n:02}", f"{n:03}"]))
part = st.one_of(
    st.text("ab-", min_size=1, max_size=3),
    st.tuples(number, number).map(lambda two: "{{{}..{}}}".format(*sorted(two, key=int))),
    st.lists(st.text("xy", max_size=2), min_size=2, max_size=3).map(lambda words: "{" + ",".join(words) + "}"),
)


@pytest.mark.skipif(shutil.which("bash") is None, reason="compares with bash")
@settings(max_examples=40)
@given(st.lists(part, min_size=1, max_size=3).map("".join))
def test_as_bash_expands_them(pattern: str) -> None:
    said = subprocess.run(["bash", "-c", f"printf '%s\\n' _{pattern}_"], capture_output=True, text=True, check=True)
    assert [f"_{name}_" for name in expand(pattern)] == said.stdout.splitlines()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("x-{00..", "braces that do not close"),
        ("x-00}.tar", "braces that do not close"),
        ("{a,{b,c}}", "stand in one another"),
        ("{}", r"\{\} is neither a range"),
        ("{7}", r"\{7\} is neither a range"),
        ("{a..b}", r"\{a\.\.b\} is neither a range"),
        ("{0..9..2}", "is neither a range"),
        ("{1...9}", "is neither a range"),
        ("{9..1}", r"ends before it begins; write \{1\.\.9\}"),
        ("{0..99999999999}", "more than 1,000,000 names"),
        ("{0..9999}{0..9999}", "more than 1,000,000 names"),
    ],
)
def test_a_wrong_pattern_is_quoted(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand(pattern)
