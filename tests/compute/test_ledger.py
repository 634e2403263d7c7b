"""Shown after recorded: what an acknowledgement lets out, and what a refusal turns into."""

from dataclasses import replace

from compute.ledger import Held, Ledger
from compute.scheduler import Rejection, TokenEvent
from kvmanager.messages import Commit, CommitEntry, Fenced, FinishReason, Grant, Refusal, SequenceId
from tests.support.kv import fork_message, open_message

ONE, TWO = (SequenceId(bytes([n]) * 16) for n in (1, 2))


def event(sequence: SequenceId, finish: FinishReason = FinishReason.NONE) -> TokenEvent:
    return TokenEvent(
        sequence=sequence, client=b"c", epoch=1, first_position=4, token_ids=(7,), finish=finish
    )


def ledger_with(*events: TokenEvent) -> Ledger:
    ledger = Ledger()
    ledger.sent(Held(1, Grant(count=1)))
    ledger.sent(Held(2, Commit(step=5, entries=()), 5, events))
    ledger.sent(Held(3, Commit(step=6, entries=()), 6, (event(ONE),)))
    return ledger


def test_nothing_is_shown_before_its_commit_is_acknowledged() -> None:
    """An answer lets out what it answers, and no more."""
    ledger = ledger_with(event(ONE))
    assert [list(shown.events) for shown in ledger.answered(1)] == [[]]
    assert [list(shown.events) for shown in ledger.answered(2)] == [[event(ONE)]]
    assert len(ledger) == 1


def test_an_answer_stands_for_everything_before_it() -> None:
    """The daemon applies in order, so a later answer covers earlier messages."""
    shown = ledger_with(event(ONE)).answered(3)
    assert [one.held.number for one in shown] == [1, 2, 3]
    assert [one.held.step for one in shown if one.events] == [5, 6]


def test_what_has_no_commit_of_its_own_waits_for_the_last_message_on_its_way() -> None:
    """What it says again may stand in a commit that is not acknowledged."""
    ledger = ledger_with(event(TWO))
    assert ledger.follow([event(TWO)])
    ledger.answered(2)
    [shown] = ledger.answered(3)
    assert [one.sequence for one in shown.events] == [ONE, TWO]
    assert not ledger.follow([event(TWO)]), "nothing is on its way: now"


def test_a_hand_over_is_told_once_it_is_recorded() -> None:
    told = Rejection(sequence=ONE, client=b"c", code=9, message="go elsewhere")
    ledger = Ledger()
    ledger.sent(Held(1, Fenced(sequence=ONE, epoch=1), rejections=(told,)))
    assert [list(shown.rejections) for shown in ledger.answered(1)] == [[told]]


def test_a_refused_entry_is_not_shown() -> None:
    """The others of the same step are."""
    ledger = ledger_with(event(ONE), event(TWO))
    shown = ledger.answered(2, [Refusal(ONE, 1, 4, "fenced")])[-1]
    assert [one.sequence for one in shown.events] == [TWO]
    assert shown.rejections == []


def test_a_refused_end_becomes_the_rejection_of_its_sequence() -> None:
    """Whoever was accepted hears an end, also if its last commit was refused."""
    ledger = ledger_with(event(ONE, FinishReason.LENGTH))
    shown = ledger.answered(2, [Refusal(ONE, 1, 4, "fenced")])[-1]
    assert list(shown.events) == []
    assert [(one.sequence, one.code) for one in shown.rejections] == [(ONE, 4)]


def refused_fork() -> Ledger:
    """A fork of ONE that ends in its first commit, refused; another commit about it was on its way."""
    entry = CommitEntry(
        sequence=ONE, epoch=1, base_recorded=4, base_kv=4, token_ids=(7,), kv_len=4, fork=fork_message(2)
    )
    ledger = Ledger()
    ledger.sent(Held(1, Commit(step=1, entries=[entry]), 1, (event(ONE), event(TWO))))
    ledger.sent(Held(2, Commit(step=2, entries=()), 2, (event(ONE, FinishReason.LENGTH),)))
    (shown,) = ledger.answered(1, [Refusal(ONE, 1, 5, "no room")])
    assert ([one.sequence for one in shown.events], list(shown.rejections)) == ([TWO], [])
    return ledger


def test_nothing_of_a_refused_fork_counts_until_it_opens_for_itself() -> None:
    ledger = refused_fork()
    (shown,) = ledger.answered(2, [Refusal(ONE, 1, 2, "unknown sequence")])
    assert (list(shown.events), list(shown.rejections)) == ([], [])
    ledger.sent(Held(3, replace(open_message(1, [2]), sequence=ONE)))
    ledger.sent(Held(4, Commit(step=3, entries=()), 3, (event(ONE),)))
    assert [one.sequence for shown in ledger.answered(4) for one in shown.events] == [ONE]


def test_a_refused_fork_that_is_canceled_ends_once() -> None:
    ledger = refused_fork()
    end = replace(event(ONE, FinishReason.CANCELLED), token_ids=())
    ledger.sent(Held(3, Commit(step=3, entries=()), 3, (end,)))
    shown = ledger.answered(3, [Refusal(ONE, 1, 2, "unknown sequence")])
    assert [one.finish for each in shown for one in each.events] == [FinishReason.CANCELLED]
    assert [one for each in shown for one in each.rejections] == []
