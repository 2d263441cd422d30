"""The floor: the least that a client over aiohttp and orjson can do. It asks, parses the answer, and forgets it.

    python tests/bench/bare.py URL PROMPTS.jsonl CONCURRENCY

Leaves with 0 when every prompt was answered.
"""

import asyncio
import sys
from pathlib import Path

import aiohttp
import orjson


async def ask_all(url: str, path: Path, concurrency: int) -> bool:
    """Whether every prompt was answered."""
    wanted = answered = 0
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=concurrency),
        timeout=aiohttp.ClientTimeout(total=120),
        headers={"content-type": "application/json"},
    ) as session:
        with open(path, "rb") as file:

            async def worker() -> None:
                nonlocal wanted, answered
                for line in file:
                    wanted += 1
                    messages = [{"role": "user", "content": orjson.loads(line)["prompt"]}]
                    body = {"model": "mock/model", "messages": messages, "max_tokens": 2048, "temperature": 0.7}
                    async with session.post(url + "/chat/completions", data=orjson.dumps(body)) as response:
                        text = orjson.loads(await response.read())["choices"][0]["message"]["content"]
                    answered += bool(text)

            await asyncio.gather(*(worker() for _ in range(concurrency)))
    return answered == wanted


if __name__ == "__main__":
    sys.exit(not asyncio.run(ask_all(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
