"""The two ways a run can go wrong: the user's input, or nothing left that can move."""


class InputError(ValueError):
    """A mistake in a file, a key or an option, worded for the person who made it.

    The message is one line that names the file, the line or key, the value, and what is allowed.
    The command line prints it and exits with code 2; it never shows a traceback.

    >>> print(InputError("unknown model 'lama'", file="a.yaml", line=3, key="model", hint="did you mean 'llama-2-7b'?"))
    a.yaml:3: model: unknown model 'lama'; did you mean 'llama-2-7b'?
    """

    def __init__(
        self,
        problem: str,
        *,
        file: object = None,
        line: int | None = None,
        key: str | None = None,
        hint: str | None = None,
    ) -> None:
        where = ""
        if file is not None:
            where = f"{file}:{line}: " if line is not None else f"{file}: "
        named = f"{key}: " if key else ""
        remedy = f"; {hint}" if hint else ""
        super().__init__(" ".join(f"{where}{named}{problem}{remedy}".split("\n")))
        self.problem = problem
        self.file = file
        self.line = line
        self.key = key
        self.hint = hint
