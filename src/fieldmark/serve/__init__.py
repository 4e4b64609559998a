"""A classifier over HTTP: answers, heat maps and a page, with limits that are on from the start.

    picture bytes -> gate (who may ask, how much) -> decoding (processes of their own)
                  -> batching (requests that come together are scored together) -> answer

This file imports nothing, so that a decoding process that starts from here loads no server.
"""
