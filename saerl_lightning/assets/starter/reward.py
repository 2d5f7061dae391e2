"""A reward function in TRL's form: takes completions and the prompts' columns, and returns one number per completion."""


def digits(completions: list[str], answer: list[str], **columns: list) -> list[float]:
    """Gives 1 for the exact answer, else up to 0.5 for the share of characters that are digits.

    Args:
        completions: Texts that the policy wrote.
        answer: Correct answer of each completion. Other columns of the prompts can be requested in the same way, by name.
        columns: All other columns of the prompts.
    """
    return [
        1.0 if text.strip() == right else 0.5 * sum(letter.isdigit() for letter in text) / max(1, len(text))
        for text, right in zip(completions, answer, strict=True)
    ]
