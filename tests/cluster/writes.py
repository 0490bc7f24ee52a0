#!/usr/bin/env python3
"""Counts the writes in the API server's audit log: who wrote what how often, most often first.

    writes.py LOG [--objects] [TEXT]

--objects counts for each object; TEXT keeps the lines that contain it, e.g. a user's name or "httproutes/status".
"""

import collections
import json
import sys


def main():
    arguments = sys.argv[1:]
    objects = "--objects" in arguments and not arguments.remove("--objects")
    path, text = arguments[0], "".join(arguments[1:2])
    counts = collections.Counter()
    with open(path, encoding="utf-8") as log:
        for line in log:
            event = json.loads(line)
            what = event.get("objectRef", {})
            if event["stage"] != "ResponseComplete" or event["verb"] in ("get", "list", "watch"):
                continue
            resource = "/".join(filter(None, [what.get("resource"), what.get("subresource")]))
            name = f"{what.get('namespace', '')}/{what.get('name', '')}" if objects else ""
            # Refused writes are counted apart: a conflict is no change.
            code = event.get("responseStatus", {}).get("code", 0)
            counts[event["user"]["username"], event["verb"], resource, name, code] += 1
    for (user, verb, resource, name, code), count in counts.most_common():
        line = f"{count:7} {code} {verb:6} {resource:40} {user} {name}".rstrip()
        if text in line:
            print(line)


if __name__ == "__main__":
    main()
