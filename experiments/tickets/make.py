"""Makes a table of support tickets with twelve classes of very unequal size.

  python -m experiments.tickets.make runs/tickets --rows=900

Writes train.csv, dev.csv and new.csv (without labels). The tickets are made
from phrases by a seed, so that everybody has the same table. Subjects often say
little, many tickets begin with the same pleasantries, and one in thirty has the
class of another, as in tables that people filled in by hand.
"""

import argparse
import csv
import pathlib
import random

# Class -> its share of the tickets, and what such tickets say.
CLASSES = {
  "Login": (26, (
    "I cannot sign in, it says my password is wrong",
    "The reset mail for my password never arrives",
    "The code of the second factor is refused",
    "My account is locked after {n} attempts",
  )),
  "Invoice": (18, (
    "Invoice {n} lacks our VAT number",
    "Please send invoice {n} again, addressed to our company",
    "The amount of {n} euros on the bill is not what we agreed on",
    "We need a receipt for {n} euros for the tax office",
  )),
  "Bug": (14, (
    "Since the update the app crashes when I press save, error {n}",
    "Export to PDF writes an empty file",
    "Search freezes the whole window for {n} seconds",
    "The screen stays black after I open a project",
  )),
  "Delivery": (11, (
    "My parcel {n} has not arrived yet",
    "The courier left the package with a neighbour I do not know",
    "Tracking says delivered, but nothing is here",
    "When will order {n} be shipped",
  )),
  "Refund": (8, (
    "Please give me back the {n} euros of last month",
    "I sent the goods back and still wait for my money",
    "I was charged twice and want {n} euros back",
  )),
  "How-to": (7, (
    "How do I add a second person to a project",
    "Where do I find the export of my data",
    "Is there a way to sort the list by date",
  )),
  "Cancel": (5, (
    "I want to end my subscription",
    "Please cancel the contract {n} at the end of the month",
    "Stop renewing my plan",
  )),
  "Feature": (4, (
    "It would be great if the app had a dark mode",
    "Could you support files of other formats",
    "I miss a calendar view",
  )),
  "Damaged": (3, (
    "The glass was broken when I opened the box",
    "Half of order {n} came scratched",
    "The device you sent does not switch on",
  )),
  "Privacy": (2, (
    "Which data about me do you keep",
    "Delete everything you know about me, as the law says",
    "Who can read my documents",
  )),
  "Praise": (1.2, (
    "Your colleague on the phone was wonderful",
    "I just want to say that I love the new version",
    "Best service I ever had",
  )),
  "Partner": (0.8, (
    "We sell software and want to resell yours",
    "Our agency proposes a joint campaign",
    "Do you have a programme for universities",
  )),
}  # fmt: skip
OPENINGS = ("", "", "Hello,", "Dear team,", "Hi, a quick one.",
            "I wrote about this {n} days ago.")  # fmt: skip
CLOSINGS = ("", "", "Thanks!", "Please help.", "Kind regards, {name}",
            "This is urgent.")  # fmt: skip
SUBJECTS = ("Question", "Help", "Re: your mail", "Request", "Problem")
NAMES = ("Ada", "Ben", "Chloe", "Deniz", "Eve", "Farid")
NOISE = 1 / 30


def ticket(rng):
  """Returns the subject, the text and the class of a ticket."""
  shares = [share for share, _ in CLASSES.values()]
  (label,) = rng.choices(list(CLASSES), shares)
  said = rng.choice(CLASSES[label][1])
  parts = (rng.choice(OPENINGS), f"{said}.", rng.choice(CLOSINGS))
  text = " ".join(part for part in parts if part)
  text = text.replace("{name}", rng.choice(NAMES))
  while "{n}" in text:
    text = text.replace("{n}", str(rng.randrange(2, 99)), 1)
  subject = rng.choice(SUBJECTS)
  if rng.random() < 0.4:
    subject = " ".join(said.replace("{n}", "").split()[:4])
  if rng.random() < NOISE:
    label = rng.choice(list(CLASSES))
  return subject, text, label


def tables(num_rows, seed):
  """Returns name of a file -> its rows; a fifth of them is for evaluation."""
  rng = random.Random(seed)
  rows = [ticket(rng) for _ in range(num_rows)]
  cut = num_rows - num_rows // 5
  return {
    "train.csv": rows[:cut],
    "dev.csv": rows[cut:],
    "new.csv": [ticket(rng)[:2] for _ in range(20)],
  }


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("folder")
  parser.add_argument("--rows", type=int, default=900)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args(argv)
  if args.rows < 200:
    parser.error(f"--rows={args.rows}; give 200 or more, for the rare classes")
  folder = pathlib.Path(args.folder)
  folder.mkdir(parents=True, exist_ok=True)
  for name, rows in tables(args.rows, args.seed).items():
    with open(folder / name, "w", newline="", encoding="utf-8") as f:
      writer = csv.writer(f)
      writer.writerow(("subject", "body", "team")[: len(rows[0])])
      writer.writerows(rows)
    print(f"wrote {folder / name}: {len(rows)} rows")


if __name__ == "__main__":
  main()
