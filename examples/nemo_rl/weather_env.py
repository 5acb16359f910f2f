"""A reward server of one's own: predictions of rain, scored by Brier's rule.

python examples/nemo_rl/weather_env.py            # serves http://127.0.0.1:18090
python examples/nemo_rl/weather_env.py 18091      # another port
"""

import re
import sys

import uvicorn
from fastapi import FastAPI, Request

app = FastAPI()
NUMBER = re.compile(r"\d*\.?\d+")


@app.post("/verify")
async def verify(request: Request) -> dict[str, object]:
    """The row with a reward: 1 is certain and right, 0 is certain and wrong, or no prediction."""
    body = await request.json()
    message = body["response"]["output"][-1]
    found = NUMBER.findall("".join(part["text"] for part in message["content"]))
    predicted = min(float(found[-1]), 1.0) if found else None
    happened = float(body["rained"])
    reward = 0.0 if predicted is None else 1.0 - (predicted - happened) ** 2
    return {**body, "reward": reward}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int((sys.argv[1:] or [18090])[0]))
