"""Write the golden results anew and print what moved."""

from tests.golden import CASES, measure, moved, record, recorded


def main() -> None:
    for name in CASES:
        old, new = recorded(name), measure(name)
        lines = moved(old, new)
        if lines:
            record(name, new)
        print(f"{name}: " + ("nothing moved" if not lines else f"{len(lines)} values moved" if old else "recorded"))
        if old:
            print("".join(f"  {line}\n" for line in lines), end="")


if __name__ == "__main__":
    main()
