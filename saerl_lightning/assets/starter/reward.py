"""A reward function in TRL's form: the completions' texts and the prompts' columns go in, a number a completion comes out."""


def digits(completions: list[str], answer: list[str], **columns: list) -> list[float]:
    """Gives 1 for the answer alone, else up to 0.5 for the share of letters that are digits.

    Args:
        completions: What the policy wrote.
        answer: The prompts' `answer`, once a completion; any other column of the prompts may be asked for by its name.
        columns: All other columns.
    """
    return [
        1.0 if text.strip() == right else 0.5 * sum(letter.isdigit() for letter in text) / max(1, len(text))
        for text, right in zip(completions, answer, strict=True)
    ]
