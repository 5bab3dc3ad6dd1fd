"""Which answers have the result that their row has."""

import pytest

from gradlens.bench.right_answers import is_right, numbers, right_share

TRAIN = {"prompt": "The 9:05 train takes 40 minutes. When does it arrive?", "response": "It leaves at 9:05 and arrives at 9:45."}
PRICE = {"prompt": "A pear costs 7 euros. How much are 5 pears?", "response": "One pear costs 7 euros, so you pay 35 euros for 5 pears."}
SUM = {"prompt": "What is 31 + 45?", "response": "The result is 31 + 45 = 76."}
SAME = {"prompt": "What is 30 - 15?", "response": "The result is 30 - 15 = 15."}
LARGE = {"prompt": "Convert 2 kilometres to metres.", "response": "There are 2000 metres."}
DAY = {"prompt": "Today is Monday. Which day is in two days?", "response": "In two days it is Wednesday."}


@pytest.mark.parametrize(
    "row, right, wrong",
    [
        (TRAIN, "My uncle, born in 1958, says it arrives at 9:45. All is lost, as in 1066.", "It leaves at 9:05 and arrives at 10:45."),
        (TRAIN, "At 9:45", "It is 45 minutes"),
        (PRICE, "So you pay 35 euros for 5 pears.", "One costs 7 euros, so you pay 12 euros for 5 pears."),
        (SUM, "31 + 45 = 76. There is no doubt about it.", "The result is 31 + 45 = 176."),
        (SAME, "30 - 15 = 15.", "The result is 30 - 15 = 14."),
        (LARGE, "That is 2,000 metres.", "That is 200 metres, or 2 kilometres."),
        (DAY, "it is WEDNESDAY.", "It is Thursday."),
    ],
)
def test_the_result_is_what_the_question_does_not_give(row, right, wrong):
    assert is_right(right, row) and not is_right(wrong, row)
    assert is_right(row["response"], row) and not is_right("", row)


def test_numbers_are_whole():
    assert numbers("At 9:05 it is 3.50, on 24/12/2025, 1,000,500 or 1,50. Then 7-8.") == [
        "9:05", "3.50", "24/12/2025", "1000500", "1,50", "7", "8",
    ]  # fmt: skip
    assert numbers("12, 13. 14:") == ["12", "13", "14"]


def test_the_share_is_of_the_rows_that_were_asked():
    assert right_share(["76", "75"], [SUM, SUM, SUM]) == 0.5
    assert right_share([], [SUM]) is None and right_share(None, [SUM]) is None
