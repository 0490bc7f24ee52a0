#!/usr/bin/env python3
"""Reads the verbose output of the suite from standard input: prints a line a test as it ends, then a summary.

    conformance.test -test.v=test2json … | lines.py LOG TABLE

LOG gets the whole output, TABLE the results, sorted by name, skipped ones with the reason.
The suite's own report counts every parallel test as passed (v1.6); these lines are what really happened.
"""

import collections
import re
import signal
import sys

ENDED = re.compile(r"^\s*--- (PASS|FAIL|SKIP): TestConformance/([^/\s]+)(/\S+)? \(([\d.]+)s\)")
BEGUN = re.compile(r"^=== (?:RUN|CONT|NAME|PAUSE)\s+TestConformance(?:/([^/\s]+))?")
ERROR = re.compile(r"^\s*(?:Error:|Messages:)\s+(\S.*)")
FATAL = re.compile(r"^\s+[\w-]+\.go:\d+: (?:\S+Z: )?(.*(?:[Ff]ail|[Ee]rror|[Tt]imed out|not ).*)")
SKIPPED = re.compile(r"Skipping \w+: (suite does not support .*|test explicitly skipped)")


def follow(lines, log):
    """{test: (result, seconds)}, {test: [failed part]}, {test: [what went wrong]}, {test: why skipped}"""
    results, parts, errors, skips, last, current = {}, {}, {}, {}, {}, "(setup)"
    for line in lines:
        line = line.replace("\x16", "")  # what marks a line of the test framework in this mode
        log.write(line)
        if begun := BEGUN.match(line):
            current = begun[1] or "(setup)"
        elif ended := ENDED.match(line):
            result, test, part, seconds = ended.groups()
            if part is None:
                results[test] = (result, float(seconds))
                if result != "SKIP":
                    print(f"{result}  {float(seconds):7.1f} s  {test}", flush=True)
            elif result == "FAIL":
                parts.setdefault(test, []).append(part[1:])
        elif skipped := SKIPPED.search(line):
            skips[current] = skipped[1]
        elif error := ERROR.match(line):
            errors.setdefault(current, []).append(error[1].strip())
        elif said := FATAL.match(line):
            last[current] = said[1].strip()  # a test that retries says why in its log before it gives up
    for test, said in last.items():
        errors.setdefault(test, []).append(said)
    return results, parts, errors, skips


def summary(results, parts, errors, skips):
    count = {kind: sum(result == kind for result, _ in results.values()) for kind in ("PASS", "FAIL", "SKIP")}
    for test in sorted(test for test, (result, _) in results.items() if result == "FAIL"):
        print(f"\nFAIL {test}")
        for part in parts.get(test, []):
            print(f"     in {part}")
        for error in list(dict.fromkeys(errors.get(test, [])))[:4]:
            print(f"     {error}")
    if not results:
        print("\nno test ended; the setup said:")
        for error in errors.get("(setup)", []):
            print(f"     {error}")
    print(f"\n{count['PASS']} passed, {count['FAIL']} failed, {count['SKIP']} skipped")
    for reason, number in collections.Counter(skips.values()).most_common():
        print(f"     {number:3} {reason}")


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the suite; what it said until then is still worth a summary
    with open(sys.argv[1], "w", encoding="utf-8") as log:
        results, parts, errors, skips = follow(sys.stdin, log)
    with open(sys.argv[2], "w", encoding="utf-8") as table:
        for test, (result, _) in sorted(results.items()):
            table.write(f"{result}\t{test}\t{skips.get(test, '')}".rstrip() + "\n")
    summary(results, parts, errors, skips)


if __name__ == "__main__":
    main()
