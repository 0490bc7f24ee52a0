"""mongo.py HOST PORT: writes and reads back a thousand documents with pymongo, by the same client that a user has."""
import sys

import pymongo

with pymongo.MongoClient(sys.argv[1], int(sys.argv[2]), serverSelectionTimeoutMS=10_000) as client:
    items = client.shop.items
    items.drop()
    items.insert_many([{"n": n, "text": "x" * 100} for n in range(1000)])
    print("sum", sum(item["n"] for item in items.find()))
