"""The hostfile is DeepSpeed's: what we accept means the same there, and what is wrong is said by line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_trainer.config import Topology
from sft_trainer.errors import UserError
from sft_trainer.launcher.hostfile import Host, check, parse


def test_hosts_keep_their_order_and_comments_are_ignored() -> None:
    text = "# made by the operator\njob-1-0.job slots=2\n\n  job-1-1.job\tslots=2  \n"
    assert parse(text) == (Host("job-1-0.job", 2), Host("job-1-1.job", 2))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("a slots=1\nb\n", "line 2: expected `HOST slots=N`", id="no slots"),
        pytest.param("a slots=0", "N at least 1", id="zero slots"),
        pytest.param("a slots=-1", "line 1", id="negative"),
        pytest.param("a slots=1 b slots=2", "line 1", id="two hosts on a line"),
        pytest.param("a slots=1\n\na slots=2", "line 3: a stands here a second time", id="twice"),
        pytest.param("# nobody\n", "names no host", id="empty"),
        pytest.param("a slots=\u0661", "line 1", id="a digit that is not ASCII"),
    ],
)
def test_a_wrong_hostfile_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert words in caught.value.message


def test_a_hostfile_of_another_gang_is_refused() -> None:
    topology = Topology(nodes=2, processes_per_node=4, accelerator="cpu")
    check((Host("a", 4), Host("b", 4)), topology)
    with pytest.raises(UserError, match=r"names 1 nodes, topology\.nodes is 2"):
        check((Host("a", 4),), topology)
    with pytest.raises(UserError, match="b has slots=2 in the hostfile"):
        check((Host("a", 4), Host("b", 2)), topology)


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        hosts = parse(text)
    except UserError:  # anything else fails the test
        return
    assert all(host.slots > 0 for host in hosts)


_LINES = st.one_of(
    st.builds("{} slots={}".format, st.from_regex(r"[a-z0-9.:-]{1,12}", fullmatch=True), st.integers(-1, 20)),
    st.sampled_from(
        ["", "#", "# x slots=1", "a slots=1 # x", " b  slots=3", "slots=1", "c slots=1x", "d\tslots=9"]
    ),
)


@pytest.mark.processes  # importing DeepSpeed takes longer than all other tests of this file
@settings(deadline=None)
@given(st.lists(_LINES, max_size=6))
def test_what_we_accept_deepspeed_reads_in_the_same_way(lines: list[str]) -> None:
    from deepspeed.launcher.runner import _parse_hostfile

    try:
        ours = parse("\n".join(lines))
    except UserError:
        return
    assert list(_parse_hostfile([line + "\n" for line in lines]).items()) == [tuple(host) for host in ours]
