"""What each client of load.py does: asks for one embedding after another."""

import json
import os
import random

from locust import FastHttpUser
from locust import constant
from locust import task

with open(os.environ["SERVE_TEXTS"], encoding="utf-8") as f:
  TEXTS = json.load(f)


class Client(FastHttpUser):
  wait_time = constant(0)

  @task
  def embed(self):
    body = {"input": random.choice(TEXTS), "encoding_format": "base64"}
    with self.client.post(
      "/v1/embeddings", json=body, catch_response=True
    ) as answer:
      if answer.status_code != 200 or not answer.json()["data"]:
        answer.failure(f"status {answer.status_code}")
