"Write autolora/known.json: what `autolora list` says, so that it can say it without torch."

import json
from pathlib import Path

from autolora.runs.catalogue import known

if __name__ == "__main__":
    path = Path(__file__).resolve().parent.parent / "autolora" / "known.json"
    path.write_text(json.dumps(known(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
