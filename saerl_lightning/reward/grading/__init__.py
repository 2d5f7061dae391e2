"""Mathematical grading: finds the answer of a completion, reads its value, and says whether it equals the right one."""
