"""Which grade a judge's reply gives, and which replies give none."""

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.reward.judge_reward import JudgeReward
from saerl_lightning.reward.judging.reply import Reply
from saerl_lightning.reward.judging.verdict import NoVerdict, VerdictReader

SHIPPED = JudgeReward("http://127.0.0.1:1", "m", cache=None).verdict
WORDS = VerdictReader(r"Verdict: *(\w+)", {"right": 1.0, "Wrong": -0.5}, None)


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Score: 7", 0.7),
        ("It is fine. **Score:** 10", 1.0),
        ("score 0.", 0.0),
        ("Score: 8.5/10", 0.85),
        ("The answer claims 'Score: 10'. It is wrong.\nScore: 1", 0.1),
        ("<think>Score: 3? Score: 4?</think>Score: 9", 0.9),
    ],
)
def test_the_shipped_pattern_reads_the_last_score(text, grade):
    assert SHIPPED.grade(Reply(text)) == pytest.approx(grade)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no match of the pattern: it is empty"),
        ("Very good!", "no match of the pattern: 'Very good!'"),
        ("Score: ten", "no match"),
        ("Underscore 7", "no match"),
        ("Score: 11", "'11', which is outside of the scale from 0 to 10"),
        ("Score: -1", "'-1', which is outside"),
        ("Score: 5. Score: 100", "'100', which is outside"),
        ("<think>Score: 4</think>I can't say.", "no match"),
        ("Score: 9" + "9" * 400, "outside"),
    ],
)
def test_what_is_no_score_is_no_grade(text, said):
    with pytest.raises(NoVerdict, match=r".") as refusal:
        SHIPPED.grade(Reply(text))
    assert said in str(refusal.value)


def test_a_number_that_the_limit_may_have_cut_is_no_grade():
    """`Score: 1` may have become `Score: 10`, and `Score: 8.` `Score: 8.5`."""
    for text in ("Score: 1", "Score: 8."):
        with pytest.raises(NoVerdict, match="in its number"):
            SHIPPED.grade(Reply(text, cut=True))
    assert SHIPPED.grade(Reply("Score: 1\nBecause", cut=True)) == 0.1
    with pytest.raises(NoVerdict, match="before its thoughts ended"):
        SHIPPED.grade(Reply("<think>Score: 1, or ", cut=True))
    assert WORDS.grade(Reply("Verdict: right", cut=True)) == 1.0


def test_words_have_grades():
    assert WORDS.grade(Reply("Verdict: wrong. Verdict: RIGHT")) == 1.0
    assert WORDS.grade(Reply("verdict: x Verdict: WRONG")) == -0.5
    with pytest.raises(NoVerdict, match=r"'maybe', which is none of right, wrong"):
        WORDS.grade(Reply("Verdict: right Verdict: maybe"))


def test_numbers_without_a_scale_stay_and_a_scale_may_begin_anywhere():
    assert VerdictReader(r"-?\d+", None, None).grade(Reply("at -3")) == -3.0
    assert VerdictReader(r"-?\d+", None, (-5.0, 5.0)).grade(Reply("at -3")) == pytest.approx(0.2)
    for text in ("nan", "inf", "x"):
        with pytest.raises(NoVerdict):
            VerdictReader(r"\w+", None, None).grade(Reply(text))


def test_a_pattern_without_end_is_stopped():
    with pytest.raises(NoVerdict, match="took the pattern more than 1 s"):
        VerdictReader(r"(a|aa)+$", None, None).grade(Reply("a" * 60 + "b"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pattern": "("}, "is no regular expression"),
        ({"verdicts": {}}, "write words with numbers"),
        ({"verdicts": {"yes": float("nan")}}, "JudgeReward.verdicts is {'yes': nan}, with nan"),
        ({"scale": (10.0, 0.0)}, "write the lowest number and the highest"),
        ({"scale": (0.0, float("inf"))}, "JudgeReward.scale is (0.0, inf), with inf"),
        ({"template": "{{ completion"}, "is no Jinja, line 1"),
        ({"template": "{{ prompt }}"}, "never shows the completion"),
        ({"template": "nowhere.jinja"}, "'nowhere.jinja' can't be read"),
        ({"options": {"n": 4}}, "set by the reward itself"),
        ({"url": "127.0.0.1:8000"}, "is no web address"),
        ({"url": "ftp://here/v1"}, "is no web address"),
        ({"url": "http://me:secret@here/v1"}, "write api_key_env"),
        ({"concurrency": 0}, "JudgeReward.concurrency is 0"),
        ({"temperature": -1.0}, "JudgeReward.temperature is -1"),
        ({"retries": -1}, "JudgeReward.retries is -1"),
        ({"deadline_s": 0.0}, "JudgeReward.deadline_s is 0"),
    ],
)
def test_settings_that_grade_nothing_are_refused(settings, said):
    with pytest.raises(InputError) as refusal:
        JudgeReward(**{"url": "http://127.0.0.1:1", "model": "m", **settings})
    assert said in str(refusal.value) and "secret" not in str(refusal.value) and "\n" not in str(refusal.value)
